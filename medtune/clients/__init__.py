"""Clients of programs that run elsewhere; shared by prediction, judges and the generation of data."""
