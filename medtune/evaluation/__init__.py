"""Protocols, metrics and results: a number always carries its definition, its n and its unit."""
