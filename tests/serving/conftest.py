"""The small models of the generation tests."""

from tests.generation.conftest import deep, early, setup, tokenizer

__all__ = ["deep", "early", "setup", "tokenizer"]
