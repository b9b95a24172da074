"""Invariant 2: kill it anywhere, resume, and nothing differs to the bit."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from medtune.training import checkpoints
from medtune.training.trainer import Trainer
from tests.runs import kill_self, launch, losses, metrics, tiny, weights

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
    assert metrics(tmp_path) == metrics(reference)
    expected, found = weights(reference), weights(tmp_path)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


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
