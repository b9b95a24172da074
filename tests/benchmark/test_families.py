"""The benchmark of families: both sides take the same steps on the same weights, and the figures are named."""

import json
import random
from pathlib import Path

import pytest
import torch

from tests.benchmark.scripts import script

bench = script("families")
check = script("check")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SIZES", {**bench.SIZES, "embed_dim": 96, "vision_layers": 2, "decoder_layers": 2})
    monkeypatch.setattr(bench, "ROWS", 2)
    monkeypatch.setattr(bench, "WORDS", 4)
    monkeypatch.setattr(bench, "GRIDS", ((5, 4), (1, 1), (2, 6)))


@pytest.mark.parametrize("name", bench.FAMILIES)
def test_both_sides_take_the_same_steps(name: str, tmp_path: Path) -> None:
    """Losses stay equal while both sides train, and training changes them."""
    ours, theirs = bench.both_sides(bench.FAMILIES[name], tmp_path)
    losses = [(ours(), theirs()) for _ in range(3)]
    for a, b in losses:
        assert a == pytest.approx(b, abs=2e-6)
    assert losses[0][0] - losses[2][0] > 1e-4


def test_the_command_writes_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(10_000))
    rng = random.Random(0)
    lengths = [rng.random() + 0.5 for _ in range(10_000)]
    monkeypatch.setattr(bench, "seconds", lambda run: (lengths[next(ticks)], run()))
    threads = torch.get_num_threads()
    bench.main(["--only", "qwen2_5_vl", "--rounds", "3", "--out", str(tmp_path / "families.json")])
    torch.set_num_threads(threads)
    result = json.loads((tmp_path / "families.json").read_text())
    assert list(result["families"]) == ["qwen2_5_vl"]
    for figure in check.FIGURES["families"]:
        expected = figure.path[1] in ("qwen2_5_vl", "vision_time_ratio")
        assert (figure.of(result) is not None) == expected, figure.name
    assert result["vision"]["max_difference"] < 3e-5
    assert result["families"]["qwen2_5_vl"]["max_loss_difference"] < 2e-6
    # per round: the first family of calls alternates which side goes first
    theirs_first = [(lengths[1] / lengths[0]), (lengths[2] / lengths[3]), (lengths[5] / lengths[4])]
    assert result["families"]["qwen2_5_vl"]["time_ratio"] == sorted(theirs_first)[1]
    assert result["vision"]["vision_time_ratio"] == sorted(lengths[n] / lengths[n + 1] for n in (6, 8, 10))[1]


def test_every_family_has_figures_that_are_checked() -> None:
    checked = {figure.path[1] for figure in check.FIGURES["families"] if figure.path[0] == "families"}
    assert checked == set(bench.FAMILIES)
