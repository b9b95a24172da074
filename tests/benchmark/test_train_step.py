"""The benchmark of one training step: both sides do the same work, and the figures are named."""

import json
from pathlib import Path

import pytest
import torch

from tests.benchmark.scripts import script

bench = script("train_step")
CPU = torch.device("cpu")


def test_both_sides_take_the_same_steps() -> None:
    """Without a proxy InstFree is plain fine-tuning: scaling, clipping and optimizer included, nothing may differ."""
    ours, theirs = bench.medtune_step("text", 2, CPU), bench.stock_step("text", 2, CPU)
    for _ in range(3):
        assert float(ours()) == pytest.approx(float(theirs()), abs=1e-5)


def test_the_stock_side_reads_the_placeholders_of_the_proxy() -> None:
    proxy, stock = (step("momentum", 2, CPU) for step in (bench.medtune_step, bench.stock_step))
    tokens = [bench.build(mode, 2, CPU)[2]["tokens"].shape[1] for mode in ("momentum", "text")]
    assert tokens[0] > tokens[1]
    assert float(proxy()) != float(stock())


def test_the_command_writes_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sys.argv", ["train_step.py", "--rounds", "3", "--batch-size", "2", "--out", str(tmp_path / "r")]
    )
    assert bench.main() == 0
    result = json.loads((tmp_path / "r").read_text())
    assert result["memory_ratio"] == result["peak_bytes"]["medtune"] / result["peak_bytes"]["torchtune"]
    assert set(result["isolated"]) == set(bench.ISOLATED)
    low, middle, high = result["time_ratio_quartiles"]
    assert low <= middle == result["time_ratio"] <= high
