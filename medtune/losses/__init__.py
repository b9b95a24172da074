"""Losses: tensors in, ``(sum, count)`` out; no config, no model, no process group."""
