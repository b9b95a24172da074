"""Samples, and the pure functions on them: reading, shuffling, asking, batching."""
