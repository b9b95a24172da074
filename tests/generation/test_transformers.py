"""Greedy answers equal those of transformers' ``generate`` on the same weights; the benchmark measures on these."""

import argparse

import pytest

from tests.benchmark.scripts import script


@pytest.mark.slow
def test_answers_equal_transformers_generate():
    arguments = argparse.Namespace(device="cpu", images=2, rounds=1, batch_size=5, new_tokens=8, clock="wall")
    result = script("predict").measure(arguments)
    assert result["same_answers"] == dict.fromkeys(result["same_answers"], 1.0)
    assert len(result["same_answers"]) == 4
    assert result["different_answers"] > 1, "the model answers all alike"
