"""The small models of the generation tests."""

from tests.generation.conftest import axes, deep, early, setup, tokenizer

__all__ = ["axes", "deep", "early", "setup", "tokenizer"]
