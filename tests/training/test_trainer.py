"""What is drawn anew: samples and texts of each epoch, random numbers of each forward pass."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from medtune.errors import ConfigError, DataError
from medtune.training import beforehand
from medtune.training.data import BatchLoader
from medtune.training.trainer import Trainer
from tests.runs import TINY, tiny


def shown_by(folder: Path, **changes: Any) -> list[tuple[str, list[int]]]:
    """The id and the tokens of every sample that a run shows, in order."""
    trainer = Trainer(tiny(folder, objective={"warmup_steps": 0, "shuffle_separator": ","}, **changes))
    seen: list[tuple[str, list[int]]] = []
    step = trainer._forward_backward

    def watched(batches: list[dict[str, Any]]) -> torch.Tensor:
        for batch in batches:
            rows = [tokens[real].tolist() for tokens, real in zip(batch["tokens"], batch["padding"], strict=True)]
            seen.extend(zip(batch["ids"], rows, strict=True))
        return step(batches)

    trainer._forward_backward = watched  # type: ignore[method-assign]
    assert trainer.run() == 0
    return seen


@pytest.mark.parametrize("bucket", [False, True])
def test_two_epochs_show_the_same_samples_in_another_order_and_with_other_texts(bucket: bool, tmp_path: Path) -> None:
    seen = shown_by(tmp_path, max_steps=None, epochs=2, batch_size=2, bucket=bucket)
    first, second = seen[:22], seen[22:]
    assert {name for name, _ in first} == {name for name, _ in second} and len(dict(first)) == len(second) == 22
    assert [name for name, _ in first] != [name for name, _ in second]
    shuffled = [name for name, tokens in first if dict(second)[name] != tokens]
    assert len(shuffled) > 11, "the phrases of most reports are in another order"


def test_each_forward_pass_has_a_seed_of_its_own() -> None:
    """Of the run, the step, the micro-batch and the process; the same whenever it is drawn."""
    seeds = []
    for seed in (0, 1):
        for step in range(3):
            for rank in range(2):
                trainer = object.__new__(Trainer)
                trainer.config = SimpleNamespace(seed=seed)  # type: ignore[assignment]
                trainer.step, trainer.runtime = step, SimpleNamespace(rank=rank)  # type: ignore[assignment]
                seeds += [trainer._draw(number) for number in range(3)]
                assert trainer._draw(2) == seeds[-1]
    assert len(set(seeds)) == len(seeds) == 36


def test_what_a_run_says_and_writes_of_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of the proxy alone, then two epochs of six steps, each line at once where somebody follows a file."""
    said: list[tuple[str, bool]] = []
    monkeypatch.setattr("builtins.print", lambda *text, flush=False, **_: said.append((" ".join(text), flush)))
    method = {"warmup_steps": 2, "shuffle_separator": ","}
    config = tiny(tmp_path, objective=method, max_steps=None, epochs=2, export="none", save_every_steps=None)
    trainer = Trainer(config)
    assert trainer.run() == 0
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 15))
    assert [row["stage"] for row in rows] == 2 * ["warmup"] + 12 * ["tune"]
    assert [row["epoch"] for row in rows] == 2 * [0] + 6 * [1] + 6 * [2]
    assert all(type(row["weight"]) is int and row["weight"] > 0 and row["loss"] > 0 for row in rows)
    shape = [0.5, 1.0, *(0.5 * (1 + math.cos(math.pi * done / 10)) for done in range(10))]
    assert [row["lr/vision"] for row in rows[2:]] == pytest.approx([2e-3 * factor for factor in shape])
    assert [row["lr/proxy"] for row in rows] == pytest.approx([0.01, 0.02, *(0.01 * factor for factor in shape)])
    assert {key for key in rows[0] if key.startswith("lr/")} == {"lr/proxy"}, "the first stage trains nothing else"
    first, second = (text for text, _ in said if text.startswith("stage "))
    assert first.startswith("stage warmup: 2 steps\npart ") and second.startswith("stage tune: 12 steps\npart ")
    assert all(flush for _, flush in said)
    found = trainer.checkpointer.newest(lambda message: None)
    assert found is not None and found[1].values["step"] == 14 and found[1].values["skipped"] == {}


def test_each_stage_begins_for_training_and_for_validation_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[BatchLoader, str]] = []
    monkeypatch.setattr(BatchLoader, "begin_stage", lambda feed, stage: seen.append((feed, stage.name)))
    data = {**TINY["dataset"], "size": 4, "seed": 6}
    trainer = Trainer(tiny(tmp_path, objective={"warmup_steps": 2}, dataset_val=data))
    trainer.setup()
    trainer._enter_stage(1)
    both = (trainer.feed, trainer.held_out)
    assert seen == [(feed, stage) for stage in ("warmup", "tune") for feed in both]


def test_features_are_kept_of_each_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[object, Path]] = []
    monkeypatch.setattr(beforehand, "check_frozen", lambda *_: None)
    monkeypatch.setattr(beforehand, "use_features", lambda feed, folder, *_: made.append((feed, folder)))
    feed: Any = SimpleNamespace(
        config=SimpleNamespace(feature_cache=str(tmp_path)), dataset=SimpleNamespace(transform=None)
    )
    other: Any = SimpleNamespace(config=SimpleNamespace(feature_cache=None), dataset=feed.dataset)
    parts: Any = SimpleNamespace(model=None, objective=SimpleNamespace(precompute=lambda: None))
    runtime: Any = None
    beforehand.compute_beforehand({"train": feed, "validation": feed}, parts, [], runtime, print)
    assert made == [(feed, tmp_path / "train"), (feed, tmp_path / "validation")]
    beforehand.compute_beforehand({"train": other}, parts, [], runtime, print)
    assert len(made) == 2, "without a folder nothing is kept"


def test_training_data_are_not_validation_data_too(tmp_path: Path) -> None:
    same = {"dataset_val": TINY["dataset"]}
    with pytest.raises(DataError, match="files that are the data of train and of val"):
        Trainer(tiny(tmp_path / "refused", **same)).setup()
    Trainer(tiny(tmp_path / "allowed", **same, allow_leakage=["same_file"])).setup()
    with pytest.raises(ConfigError, match="same_files"):
        Trainer(tiny(tmp_path / "misspelt", **same, allow_leakage=["same_files"])).setup()
