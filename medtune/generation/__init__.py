"""Inference: batched generation with a key-value cache, and likelihoods of given continuations."""
