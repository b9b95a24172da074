"""Whoever answers in place of medtune's own generator."""
