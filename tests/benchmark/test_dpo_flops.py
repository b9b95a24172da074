"""Operations of a DPO step, counted for a mini model: each plan does what its name says."""

from typing import Any

import pytest

from medtune.models.mini import lora_mini_vlm
from tests.benchmark.scripts import script

bench = script("dpo_flops")


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return bench.count(bench.CASES["mini_llava"], 16)


def test_each_plan_leaves_out_what_it_says(found: dict[str, Any]) -> None:
    plans, encode = found["teraflops_per_pair"], found["encode_teraflops"]
    assert plans["trl"] - plans["one_encode"] == pytest.approx(3 * encode)
    assert plans["medtune_precomputed"] - plans["medtune_precomputed_features"] == pytest.approx(encode)
    assert plans["medtune_precomputed"] < plans["medtune"] < plans["one_encode"]
    assert found["ratio_to_trl"]["medtune"] == plans["medtune"] / plans["trl"] < 0.7


def test_tokens_of_the_language_model_are_counted(found: dict[str, Any]) -> None:
    """64 image tokens, 88 of the prompt's text and 16 of each answer, through policy and reference."""
    assert found["lm_tokens_per_pair"] == {"plain": 4 * 168, "shared": 2 * 184}
    assert found["lm_tokens_ratio"] == 184 / 336


def test_deep_fusion_is_counted_too() -> None:
    found = bench.count(bench.Case(lambda: lora_mini_vlm(**bench.LORA, vocab_size=1024), 40), 8)
    assert found["teraflops_per_pair"]["medtune"] < found["teraflops_per_pair"]["trl"] and found["encode_teraflops"] > 0
