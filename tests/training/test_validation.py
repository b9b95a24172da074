"""Validation loss, the best weights, early stopping."""

import json
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from medtune.training.trainer import Trainer
from medtune.training.validation import EarlyStopping, Validated, Validation
from tests.runs import SGD, TINY, die_at, largest_difference, launch, losses, metrics, tiny, weights

HELD_OUT = {**TINY["dataset"], "size": 6, "offset": 100}
RUN: dict[str, Any] = {"dataset_val": HELD_OUT, "validate_every_steps": 2, "optimizer": SGD, "save_every_steps": 3}


def validations(folder: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["validation_loss"]) for line in metrics(folder) if "validation_loss" in line]


def given(values: list[float]) -> Callable[[], None]:
    """Say these validation losses, one after the other by the order of steps 4, 6, 8, ..., whatever the model says."""

    def harm() -> None:
        original = Trainer._validate_if_due

        def due(self: Trainer) -> None:
            said = Validated({"validation_loss": values[self.step // 2 - 2]})
            self.validation.measure = lambda *_: said  # type: ignore[method-assign]
            original(self)

        Trainer._validate_if_due = due  # type: ignore[method-assign]

    return harm


def best_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())["best_validation"]
    return found


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    assert launch(tiny(folder, **RUN)) == [0]
    return folder


def test_validation_comes_every_n_steps_and_at_the_end_of_each_stage(plain: Path) -> None:
    assert [step for step, _ in validations(plain)] == [2, 4, 6, 8, 10, 12]
    best = min(value for step, value in validations(plain) if step > 4)
    assert best_of(plain)["value"] == best, "the warm-up is no candidate: its weights are the base's"


def test_validation_changes_nothing(plain: Path, tmp_path: Path) -> None:
    assert launch(tiny(tmp_path, optimizer=SGD)) == [0]
    assert losses(tmp_path) == losses(plain)
    assert largest_difference(weights(tmp_path), weights(plain)) == 0.0


def test_validation_is_the_mean_over_supervised_tokens(tmp_path: Path) -> None:
    found = []
    for size in (1, 4):
        trainer = Trainer(tiny(tmp_path / str(size), **RUN, batch_size=size))
        trainer.setup()
        measured = trainer.validation.measure(trainer.model, trainer.objective, trainer.runtime, trainer._collect_skips)
        found.append(measured.losses["validation_loss"])
        assert trainer.model.training and trainer.objective.training
    assert found[0] == pytest.approx(found[1], abs=1e-6), "4 + 2 samples, the last batch filled up, or one by one"


def test_validation_looks_at_the_held_out_samples_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(tiny(tmp_path, **{**RUN, "validate_every_steps": 6, "max_steps": 2}))
    validated: list[str] = []
    shown: list[list[list[int]]] = []
    original = Validation.measure

    def watched(self: Validation, model: Any, objective: Any, runtime: Any, seen: Any) -> Validated:
        def look(batch: dict[str, Any]) -> None:
            validated.extend(batch["ids"])
            shown.append(batch["tokens"].tolist())

        return original(self, model, objective, runtime, look)

    monkeypatch.setattr(Validation, "measure", watched)
    assert trainer.run() == 0
    assert trainer.held_out is not None
    held_out = {trainer.held_out.source[index].id for index in range(6)}
    trained = {trainer.feed.source[index].id for index in range(22)}
    assert not held_out & trained
    assert set(validated) == held_out and len(validated) >= 12, "at the end of both stages"
    first = [batch["tokens"].tolist() for batches in trainer.held_out.epoch(0) for batch in batches]
    assert shown == 2 * first, "each time with the words of the first epoch"


def test_two_processes_validate_the_same(plain: Path, tmp_path: Path) -> None:
    assert launch(tiny(tmp_path, **RUN, batch_size=2), world=2) == [0, 0]
    assert [value for _, value in validations(tmp_path)] == pytest.approx(
        [value for _, value in validations(plain)], abs=1e-6
    )
    assert best_of(tmp_path)["step"] == best_of(plain)["step"]
    name = "best/model.safetensors"
    assert largest_difference(load_file(tmp_path / name), load_file(plain / name)) < 1e-6


@pytest.mark.parametrize("world", [1, 2])
def test_the_best_weights_are_kept_where_the_last_are_worse(world: int, tmp_path: Path) -> None:
    config = tiny(tmp_path, **RUN, batch_size=4 // world)
    assert launch(config, world, harm=given([9.0, 3.0, 2.0, 3.0, 4.0])) == [0] * world
    assert best_of(tmp_path) == {"monitor": "validation_loss", "value": 2.0, "step": 8, "worse": 2, "checked": 12}
    short = tiny(tmp_path / "short", **RUN, batch_size=4 // world)
    assert launch(short, world, harm=die_at(9)) == [9] * world
    # The weights of step 8 are also the "best" of a run that ended there.
    best, last = load_file(tmp_path / "best/model.safetensors"), load_file(tmp_path / "weights/model.safetensors")
    assert largest_difference(best, load_file(tmp_path / "short/best/model.safetensors")) == 0.0
    assert largest_difference(best, last) > 1e-4


@pytest.mark.parametrize("world", [1, 2])
def test_early_stopping_stops_writes_and_stays_stopped(world: int, tmp_path: Path) -> None:
    config = tiny(tmp_path, **RUN, early_stopping_patience=2, batch_size=4 // world)
    said = given([9.0, 2.0, 3.0, 4.0, 1.0])
    assert launch(config, world, harm=said) == [0] * world
    assert len(losses(tmp_path)) == 10 and best_of(tmp_path)["step"] == 6
    first = weights(tmp_path)
    assert launch(config, world, harm=said) == [0] * world
    assert len(losses(tmp_path)) == 10, "a stopped run that is started again does not go on"
    assert largest_difference(first, weights(tmp_path)) == 0.0
    config.early_stopping_patience = 4
    assert launch(config, world, harm=said) == [0] * world
    assert len(losses(tmp_path)) == 12, "more patience lets it go on"


def test_a_kill_between_validation_and_checkpoint_changes_nothing(plain: Path, tmp_path: Path) -> None:
    # Validated at 8, saved at 6: the validations of 8 are made, and written down, once more and only once.
    assert launch(tiny(tmp_path, **RUN), harm=die_at(8)) == [9]
    assert launch(tiny(tmp_path, **RUN)) == [0]
    assert metrics(tmp_path) == metrics(plain) and best_of(tmp_path) == best_of(plain)


def test_a_signal_does_not_wait_for_validation_which_is_made_up_for(plain: Path, tmp_path: Path) -> None:
    def harm() -> None:
        original = Trainer._forward_backward

        def step(self: Trainer, batches: list) -> torch.Tensor:
            if self.step == 7:
                signal.raise_signal(signal.SIGTERM)
            return original(self, batches)

        Trainer._forward_backward = step  # type: ignore[method-assign]

    assert launch(tiny(tmp_path, **RUN), harm=harm) == [128 + signal.SIGTERM]
    assert validations(tmp_path)[-1][0] == 6
    assert launch(tiny(tmp_path, **RUN)) == [0]
    assert metrics(tmp_path) == metrics(plain) and best_of(tmp_path) == best_of(plain)


def test_best() -> None:
    best = EarlyStopping()
    assert [best.update(step, loss) for step, loss in enumerate([3.0, 2.0, 2.0, 2.5])] == [True, True, False, False]
    assert (best.step, best.worse) == (1, 2)
    assert best.exhausted(2) and not best.exhausted(3) and not best.exhausted(None)


@pytest.mark.parametrize("higher", [True, False])
def test_a_value_that_is_no_number_is_never_the_best(higher: bool) -> None:
    best = EarlyStopping()
    values = [math.nan, 0.5, math.nan, 0.7]
    assert [best.update(step, one, higher) for step, one in enumerate(values)] == [False, True, False, higher]
    healed = EarlyStopping.of({"value": math.nan, "step": 8, "worse": 1, "checked": 10})
    assert healed.update(12, 0.5, higher) and (healed.value, healed.worse) == (0.5, 0)
