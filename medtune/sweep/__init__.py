"""Sweeps: several variants of one experiment, compared in one report."""
