"""Variants of one experiment side by side."""
