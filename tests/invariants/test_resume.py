"""Invariant 2: kill it anywhere, resume, and nothing differs to the bit; what is left out on purpose is seen."""

import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from medtune.objectives import InstFree
from medtune.training import checkpoints, optimization
from medtune.training import trainer as trainer_module
from medtune.training.data import BatchLoader
from medtune.training.trainer import Trainer
from tests.runs import LORA, kill_self, launch, losses, metrics, tiny, weights

STEPS = {"objective": {"warmup_steps": 20}, "max_steps": 40, "save_every_steps": 4, "gradient_accumulation_steps": 2}
BATCH = {"batch_size": 1}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The uninterrupted run of 60 steps, and its seconds."""
    folder = tmp_path_factory.mktemp("straight")
    started = time.perf_counter()
    assert launch(tiny(folder, **STEPS, **BATCH)) == [0]
    return folder, time.perf_counter() - started


def die_in_accumulation(step: int) -> Callable[[], None]:
    """Die after the first micro-batch of a step."""

    def harm() -> None:
        original = torch.Tensor.backward
        calls = iter(range(10**6))

        def backward(self: torch.Tensor, *args: object, **kwargs: object) -> None:
            original(self, *args, **kwargs)
            if next(calls) == 2 * step:
                kill_self()

        torch.Tensor.backward = backward  # type: ignore[method-assign]

    return harm


def die_in_save(number: int, files: int) -> Callable[[], None]:
    """Die inside the given checkpoint, after some of its files were written."""

    def harm() -> None:
        original = checkpoints.save_file
        calls = iter(range(10**6))

        def save_file(*args: object, **kwargs: object) -> None:
            if next(calls) == 3 * number + files:
                kill_self()
            original(*args, **kwargs)

        checkpoints.save_file = save_file

    return harm


def moments() -> list[tuple[str, Callable[[], None] | None]]:
    """20 moments: in the warm-up, in the momentum stage, inside an accumulation window, inside a save, at any time."""
    rng = random.Random(2)
    warmup = [("warm-up", die_in_accumulation(step)) for step in rng.sample(range(1, 20), 4)]
    tune = [("momentum", die_in_accumulation(step)) for step in rng.sample(range(20, 60), 5)]
    saves = [("save", die_in_save(rng.randrange(15), rng.randrange(3))) for _ in range(6)]
    return [*warmup, *tune, *saves, *[("any", None)] * 5]


@pytest.mark.parametrize("number", range(20))
def test_killed_and_resumed_is_bitwise_the_uninterrupted_run(
    number: int, straight: tuple[Path, float], tmp_path: Path
) -> None:
    reference, seconds = straight
    kind, harm = moments()[number]
    config = tiny(tmp_path, **STEPS, **BATCH)
    moment = random.Random(number).uniform(0.2, 1.0) * seconds if harm is None else None
    killed = launch(config, harm=harm, kill_after=moment)
    if kind != "any":
        assert killed == [-signal.SIGKILL]
    assert launch(config) == [0]
    assert differing(tmp_path, reference) == []


def differing(found: Path, reference: Path) -> list[str]:
    """The logged lines and the tensors in which two runs differ, to the bit."""
    lines = [f"step {a['step']}" for a, b in zip(metrics(found), metrics(reference), strict=True) if a != b]
    ours, theirs = weights(found), weights(reference)
    assert ours.keys() == theirs.keys()
    return [*lines, *(name for name, value in theirs.items() if not torch.equal(value, ours[name]))]


CUT = 6  # in the middle of the first epoch of the joint stage, whose first step is 2
WHOLE: dict[str, Any] = {
    "model": {**LORA, "lora_dropout": 0.2},
    "trainable": ["adapter", "fusion"],
    "objective": {"warmup_steps": 2},
    "schedule": {"kind": "cosine", "warmup_steps": 2},
    "max_steps": 8,
}


def trained(folder: Path, stop_at: int | None = None) -> None:
    """Train in this process, to the end or to a signal after a step."""
    trainer = Trainer(tiny(folder, **WHOLE))
    step = trainer._optimizer_step

    def and_stop(batches: list[dict[str, Any]]) -> int:
        noted = step(batches)
        return signal.SIGTERM if trainer.step == stop_at else noted

    trainer._optimizer_step = and_stop  # type: ignore[method-assign]
    assert trainer.run() == (0 if stop_at is None else 128 + signal.SIGTERM)


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An uninterrupted run, and one that was stopped."""
    whole, stopped = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("stopped")
    trained(whole)
    trained(stopped, CUT)
    return whole, stopped


def fresh_random_numbers(patch: pytest.MonkeyPatch) -> None:
    """Dropout as if its generator had begun anew."""
    draw = Trainer._draw

    def instead(self: Trainer, micro_batch: int) -> int:
        self.step -= CUT
        seed = draw(self, micro_batch)
        self.step += CUT
        return seed

    patch.setattr(Trainer, "_draw", instead)


def first_samples_again(patch: pytest.MonkeyPatch) -> None:
    epoch = BatchLoader.epoch
    patch.setattr(BatchLoader, "epoch", lambda self, number, start_step=0: epoch(self, number, 0))


def schedule_from_its_start(patch: pytest.MonkeyPatch) -> None:
    factor = trainer_module.rate_factor
    patch.setattr(trainer_module, "rate_factor", lambda schedule, at, length: factor(schedule, at + 2 - CUT, length))


def no_average(patch: pytest.MonkeyPatch) -> None:
    """The proxy and its average as they were made."""
    patch.setattr(InstFree, "load_state_dict", lambda self, state: None)


def no_moments(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(optimization, "restore_optimizer", lambda *_: None)


def no_step_counts(patch: pytest.MonkeyPatch) -> None:
    """Moments with the bias correction of a first step."""
    restore = optimization.restore_optimizer

    def without(optimizer: Any, names: Any, tensors: dict[str, torch.Tensor], numbers: Any) -> None:
        zeroed = {name: value * 0 if name.endswith("|step") else value for name, value in tensors.items()}
        restore(optimizer, names, zeroed, numbers)

    patch.setattr(optimization, "restore_optimizer", without)


def no_weights(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(trainer_module, "put_back", lambda *_: None)


LEFT_OUT = [
    fresh_random_numbers,
    first_samples_again,
    schedule_from_its_start,
    no_average,
    no_moments,
    no_step_counts,
    no_weights,
]


@pytest.mark.parametrize("leave_out", [None, *LEFT_OUT], ids=lambda one: one.__name__ if one else "nothing")
def test_what_a_resumed_run_leaves_out_is_seen(
    leave_out: Callable[[pytest.MonkeyPatch], None] | None, cut: tuple[Path, Path], tmp_path: Path
) -> None:
    """Negative controls: the comparison that all other tests here rest on goes red for each part of the state."""
    whole, stopped = cut
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        if leave_out is not None:
            leave_out(patch)
        trained(tmp_path)
    found = differing(tmp_path, whole)
    if leave_out is None:
        assert found == []
    else:
        assert "step 8" in found and any(name.startswith("decoder.") for name in found), found
        assert not set(found) & {f"step {number}" for number in range(1, CUT + 1)}, "what was done stays"


def test_sigterm_saves_and_the_run_goes_on(straight: tuple[Path, float], tmp_path: Path) -> None:
    def harm() -> None:
        original = Trainer._forward_backward

        def step(self: Trainer, batches: list) -> torch.Tensor:
            if self.step == 10:
                signal.raise_signal(signal.SIGTERM)
            return original(self, batches)

        Trainer._forward_backward = step  # type: ignore[method-assign]

    config = tiny(tmp_path, **{**STEPS, "save_every_steps": None}, **BATCH)
    assert launch(config, harm=harm) == [128 + signal.SIGTERM]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000011"]
    assert launch(config) == [0]
    assert losses(tmp_path) == losses(straight[0])


def test_another_seed_or_batch_is_refused(tmp_path: Path) -> None:
    assert launch(tiny(tmp_path)) == [0]
    assert launch(tiny(tmp_path, seed=12, batch_size=2)) == [2]
    message = (tmp_path / "error_0.txt").read_text()
    assert "seed: 11 there, 12 here" in message and "global_batch: 4 there, 2 here" in message


def test_never_resume_refuses_a_used_folder_and_must_refuses_an_empty_one(tmp_path: Path) -> None:
    assert launch(tiny(tmp_path, resume="must")) == [2]
    assert "no whole checkpoint" in (tmp_path / "error_0.txt").read_text()
    assert launch(tiny(tmp_path)) == [0]
    assert launch(tiny(tmp_path, resume="never")) == [2]
    assert "already holds a run" in (tmp_path / "error_0.txt").read_text()
