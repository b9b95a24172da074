"""A handful of questions, and a way to answer them."""

from collections.abc import Callable

import pytest

from medtune.data.sample import Sample
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.base import Query
from tests.evaluation.tools import question

MAJORITY = {"cell size": "big", "granule type": "small"}


@pytest.fixture
def questions() -> list[Sample]:
    sizes = ["big", "small", "big", "big"]
    types = ["coarse", "round", "small", "round"]
    return [
        *(question(f"s{i}", "cell size", ["big", "small"], sizes[i], f"{i}.png") for i in range(4)),
        *(question(f"t{i}", "granule type", ["coarse", "round", "small"], types[i], f"{i}.png") for i in range(4)),
    ]


@pytest.fixture
def majority() -> dict[str, str]:
    return dict(MAJORITY)


@pytest.fixture
def answer() -> Callable[..., Prediction]:
    """Answer a query rightly, or with the given text, or with the given scores."""

    def answer_one(query: Query, text: str | None = None, scores: list[float] | None = None) -> Prediction:
        right = query.references[0] if query.references else "This image shows a cell that is round."
        meta = dict(query.meta)
        if query.continuations:
            meta["scores"] = scores or [0.0 if one == right else -1.0 for one in query.continuations]
        return Prediction(query.id, query.task, query.prompt, right if text is None else text, query.references, meta)

    return answer_one
