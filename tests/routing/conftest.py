"""Cases of tests.routing.families, made once per module."""

from collections.abc import Callable
from functools import cache

import pytest

from medtune.models.mini import train_mini_tokenizer
from tests.routing.families import Case


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, int]:
    """The folder of a tokenizer, and the size of its vocabulary."""
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = ["What is the cell size? big small nucleus color"]
    return str(folder), train_mini_tokenizer(texts, 300, folder).vocab_size


@pytest.fixture(scope="session")
def cases(tokenizer: tuple[str, int]) -> Callable[..., Case]:
    """Makes a case once."""
    return cache(lambda name, quantized=False, where="decoder": Case(name, quantized, tokenizer, where))
