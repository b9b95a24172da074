"""Samples and pure functions on them: reading, shuffling, writing questions, batching."""
