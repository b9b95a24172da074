"""The adapter that a classifier's scores choose."""

import numpy as np
import pytest

from medtune.errors import ConfigError
from medtune.routing.routes import Route, choose

LABELS = ("classification", "counting", "detection")
ADAPTERS = ("classification", "counting", "all")


def chosen(row: list[float], threshold: float = 0.5, fallback: str | None = "all") -> Route:
    (route,) = choose(np.asarray([row]), LABELS, ADAPTERS, threshold, fallback)
    return route


def test_a_score_at_the_threshold_goes_to_the_tasks_adapter() -> None:
    assert chosen([0.25, 0.5, 0.25]) == Route("counting", 0.5, "counting")


def test_a_score_below_the_threshold_goes_to_the_fallback() -> None:
    assert chosen([0.3, 0.49, 0.21]) == Route("counting", 0.49, "all")


def test_a_task_without_adapter_goes_to_the_fallback() -> None:
    assert chosen([0.0, 0.0, 1.0]) == Route("detection", 1.0, "all")
    assert chosen([0.0, 0.0, 1.0], fallback=None) == Route("detection", 1.0, None)


def test_thresholds_of_zero_and_above_one_are_the_two_extremes() -> None:
    assert chosen([0.4, 0.3, 0.3], threshold=0).adapter == "classification"
    assert chosen([1.0, 0.0, 0.0], threshold=1.01).adapter == "all"


def test_rows_keep_their_order() -> None:
    routes = choose(np.eye(3)[[1, 0, 2, 1]], LABELS, ADAPTERS, 0.5, "all")
    assert [route.adapter for route in routes] == ["counting", "classification", "all", "counting"]


@pytest.mark.parametrize(
    ("scores", "fallback", "words"),
    [
        (np.eye(3), "none", "fallback 'none' is not among"),
        (np.eye(2), "all", "scores of shape"),
        (np.full((1, 3), np.nan), "all", "not a finite number"),
    ],
)
def test_what_cannot_be_a_route_is_refused(scores: np.ndarray, fallback: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        choose(scores, LABELS, ADAPTERS, 0.5, fallback)
