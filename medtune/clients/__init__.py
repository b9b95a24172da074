"""Clients of servers; used by prediction, judges and data generation."""
