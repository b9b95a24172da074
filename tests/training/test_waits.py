"""How often the loop waits for the device: once a step. On a CPU the calls that would wait are counted."""

import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import medtune.training.trainer
from medtune.errors import TrainingError
from medtune.objectives.base import Objective
from medtune.training.trainer import Trainer
from tests.runs import LORA, SFT, tiny

WAITING = ("item", "tolist", "__float__", "__int__", "__bool__", "__index__", "numpy", "cpu")
TRAINING = str(Path(medtune.training.trainer.__file__).parent)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Calls that wait for a tensor's value, made by a line of ``medtune/training``, as ``file:line``."""
    seen: list[str] = []

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            frame = traceback.extract_stack(limit=2)[0]  # torch's optimizers look at counters that lie on the host
            if frame.filename.startswith(TRAINING):
                seen.append(f"{Path(frame.filename).name}:{frame.name}")
            return original(tensor, *args, **kwargs)

        return call

    for name in WAITING:
        monkeypatch.setattr(torch.Tensor, name, counted(getattr(torch.Tensor, name)))
    yield seen


def run(config: Any, waits: list[str], monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The waits of each step of a run."""
    steps: list[list[str]] = []
    original = Trainer._optimizer_step

    def step(self: Trainer, batches: list[Any]) -> int:
        waits.clear()
        status = original(self, batches)
        steps.append(list(waits))
        return status

    monkeypatch.setattr(Trainer, "_optimizer_step", step)
    assert Trainer(config).run() == 0
    return steps


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {**SFT, "model": LORA, "trainable": ["adapter"], "gradient_accumulation_steps": 2, "batch_size": 2},
    ],
    ids=["instfree", "sft-lora-accumulated"],
)
def test_the_loop_waits_for_the_device_once_a_step(
    changes: dict[str, Any], waits: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    steps = run(tiny(tmp_path / "run", max_steps=3, **changes), waits, monkeypatch)
    micro_batches = changes.get("gradient_accumulation_steps", 1)
    on_host = ["trainer.py:<genexpr>"] * micro_batches  # tokens of a batch that still lies in host memory
    assert len(steps) >= 3
    for step in steps:
        assert sorted(step) == sorted([*on_host, "trainer.py:_optimizer_step"])


def test_a_second_wait_would_be_seen(waits: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    original = Trainer._guard
    code = compile("def wait(tensor):\n    return tensor.item()\n", f"{TRAINING}/made_up.py", "exec")
    scope: dict[str, Any] = {}
    exec(code, scope)
    monkeypatch.setattr(
        Trainer, "_guard", lambda self, *args: (scope["wait"](torch.ones(())), original(self, *args))[1]
    )
    steps = run(tiny(tmp_path / "run", max_steps=1), waits, monkeypatch)
    assert all("made_up.py:wait" in step for step in steps)


def test_a_weight_that_the_forward_pass_does_not_count_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    original = Objective.weight
    monkeypatch.setattr(Objective, "weight", lambda self, batch: original(self, batch) + 1)
    trainer = Trainer(tiny(tmp_path / "run", **SFT, max_steps=1))
    trainer.setup()
    before = {name: parameter.detach().clone() for name, parameter in trainer.trained.items()}
    with pytest.raises(TrainingError, match=r"SFT.weight counted .* the two must agree"):
        trainer._optimizer_step(next(trainer.feed.epoch(0)))
    assert all(torch.equal(parameter, before[name]) for name, parameter in trainer.trained.items())
    trainer._close()
