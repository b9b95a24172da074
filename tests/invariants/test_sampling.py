"""Balanced sampling in whole runs: one process equals two, a killed run goes on exactly, rare words come up more."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medtune.config import instantiate
from medtune.data.balance import balanced_weights
from medtune.objectives import SFT
from medtune.training.data import BatchLoader
from medtune.training.runtime import Runtime
from tests.data.tools import row, write_rows
from tests.runs import SGD, die_at, largest_difference, launch, losses, metrics, tiny, weights

BALANCED = {"sampling": "balanced", "optimizer": SGD, "objective": {"chunk_tokens": 0}, "save_every_steps": 3}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    assert launch(tiny(folder, **BALANCED)) == [0]
    return folder


def test_two_processes_take_the_same_steps(plain: Path, tmp_path: Path) -> None:
    assert launch(tiny(tmp_path, **BALANCED, batch_size=2), world=2) == [0, 0]
    assert losses(tmp_path) == pytest.approx(losses(plain), abs=1e-6)
    assert largest_difference(weights(plain), weights(tmp_path)) < 1e-6


def test_a_killed_run_goes_on_to_the_bit(plain: Path, tmp_path: Path) -> None:
    config = tiny(tmp_path, **BALANCED)
    assert launch(config, harm=die_at(8)) == [9]
    assert launch(config) == [0]
    assert metrics(tmp_path) == metrics(plain)
    expected, found = weights(plain), weights(tmp_path)
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_another_sampling_is_another_run_both_ways(plain: Path, tmp_path: Path) -> None:
    uniform = {**BALANCED, "sampling": "uniform"}
    assert launch(tiny(tmp_path, **uniform)) == [0]
    assert losses(tmp_path) != losses(plain)
    assert launch(tiny(tmp_path, **BALANCED)) == [2]
    assert "sampling: uniform there, balanced here" in (tmp_path / "error_0.txt").read_text()
    assert launch(tiny(plain, **uniform)) == [2]
    assert "sampling: balanced there, uniform here" in (plain / "error_0.txt").read_text()


def feed(folder: Path, shuffle: bool = True, **changed: Any) -> BatchLoader:
    config = tiny(folder, **{**BALANCED, **changed})
    transform = instantiate(config.transform)
    transform.dtype = torch.float32
    method = SFT()
    stages = method.stages((), 1, None)
    return BatchLoader(config.dataset, method, transform, config, Runtime.start("cpu"), stages, shuffle=shuffle)


def test_the_feed_draws_by_the_words_of_the_reports(tmp_path: Path) -> None:
    fed = feed(tmp_path)
    reports = [fed.source[index].messages[-1].content for index in range(len(fed.source))]
    expected = balanced_weights(reports)
    assert expected.max() > 1.2 * expected.min()
    steps = [step for epoch in range(300) for step in fed.plan.steps(epoch)]
    drawn = np.bincount([index for step in steps for index in step], minlength=len(reports))
    np.testing.assert_allclose(drawn / drawn.mean(), expected / expected.mean(), rtol=0.25)
    assert np.corrcoef(drawn, expected)[0, 1] > 0.9


def test_validation_sees_every_sample_once(tmp_path: Path) -> None:
    fed = feed(tmp_path, shuffle=False)
    assert [index for step in fed.plan.steps(3) for index in step] == list(range(len(fed.source)))


@pytest.mark.parametrize("labelled", [True, False])
def test_the_length_of_a_label_does_not_sort_the_steps(tmp_path: Path, labelled: bool) -> None:
    answers = ("no", "a finding whose name is long")
    target = {"protocol": "classification"} if labelled else {}
    rows = [{**row(str(at), answers[at % 2]), "meta": target} for at in range(160)]
    data = {"_component_": "medtune.datasets.jsonl_dataset", "source": str(write_rows(tmp_path / "a.jsonl", rows))}
    fed = feed(tmp_path, dataset=data, sampling="uniform", batch_size=8)
    pure = [len({index % 2 for index in step}) == 1 for step in fed.plan.steps(0)]
    assert np.mean(pure) < 0.2 if labelled else np.mean(pure) > 0.8
