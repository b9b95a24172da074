"""The numbers of the packaged protocols stay as they are, whoever computes them."""

import json
from typing import Any

import pytest

from tests.evaluation.golden import PATH, cases


def compare(found: Any, expected: Any, where: str) -> None:
    """Equal to the last key and text; numbers to 1e-12, since processors differ in the last bit of a product."""
    if isinstance(expected, dict):
        assert list(found) == list(expected), where
        for key, value in expected.items():
            compare(found[key], value, f"{where}/{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for place, value in enumerate(expected):
            compare(found[place], value, f"{where}/{place}")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-12, abs=1e-12), where
    else:
        assert found == expected and type(found) is type(expected), where


def test_results_numbers_and_verdicts_are_those_of_the_golden_file():
    compare(json.loads(json.dumps(cases())), json.loads(PATH.read_text()), "")
