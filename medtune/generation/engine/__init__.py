"""Answers of a model in memory: prompts, batches, caches, sampling."""
