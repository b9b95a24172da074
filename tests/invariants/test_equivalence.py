"""Invariants 1, 3, 4, 7: the same run by other means, frozen parts, the non-finite guard."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from medtune.training.trainer import Trainer
from tests.runs import SGD, largest_difference, launch, losses, tiny, weights

WAYS: dict[str, tuple[int, dict[str, Any]]] = {
    "two processes": (2, {"batch_size": 2}),
    "accumulation": (1, {"batch_size": 1, "gradient_accumulation_steps": 4}),
    "two processes, accumulation": (2, {"batch_size": 1, "gradient_accumulation_steps": 2}),
    "activation checkpointing": (1, {"activation_checkpointing": True}),
    "two processes, activation checkpointing": (2, {"batch_size": 2, "activation_checkpointing": True}),
    "chunked loss": (1, {"objective": {"chunk_tokens": 7}}),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, one micro-batch, all logits at once; SGD, because Adam turns rounding noise into steps."""
    folder = tmp_path_factory.mktemp("plain")
    assert launch(tiny(folder, optimizer=SGD, objective={"chunk_tokens": 0})) == [0]
    return folder


@pytest.mark.parametrize("way", WAYS)
def test_same_run_by_other_means(way: str, plain: Path, tmp_path: Path) -> None:
    world, changes = WAYS[way]
    objective = {"chunk_tokens": 0, **changes.get("objective", {})}
    config = tiny(tmp_path, **{"optimizer": SGD, **changes, "objective": objective})
    assert launch(config, world) == [0] * world
    assert losses(tmp_path) == pytest.approx(losses(plain), abs=1e-6)
    assert largest_difference(weights(plain), weights(tmp_path)) < 1e-6


def test_workers_change_nothing(plain: Path, tmp_path: Path) -> None:
    assert launch(tiny(tmp_path, optimizer=SGD, objective={"chunk_tokens": 0}, num_workers=2)) == [0]
    assert losses(tmp_path) == losses(plain)


def start_weights(tmp_path: Path) -> dict[str, torch.Tensor]:
    torch.manual_seed(11)
    from medtune.config import instantiate

    return instantiate(tiny(tmp_path).model).state_dict()


@pytest.mark.parametrize("world", [1, 2])
def test_frozen_is_unchanged_to_the_bit_and_trained_has_moved(world: int, tmp_path: Path) -> None:
    config = tiny(tmp_path, trainable=["vision"], batch_size=4 // world)
    assert launch(config, world) == [0] * world
    before, after = start_weights(tmp_path), weights(tmp_path)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(name.startswith("encoder.clip.") for name in moved)
    still = [name for name in before if name.startswith("encoder.clip.") and name not in moved]
    assert len(still) < 0.2 * len(moved), still


def test_warmup_leaves_the_model_alone(tmp_path: Path) -> None:
    def only_warmup() -> None:
        original = Trainer._optimizer_step

        def step(self: Trainer, batches: list) -> int:
            if self.step == 4:
                assert largest_difference(start_weights(tmp_path), self.model.state_dict()) == 0.0
                assert not any(p.grad is not None for p in self.model.parameters())
                Path(self.folder, "checked").touch()
            return original(self, batches)

        Trainer._optimizer_step = step  # type: ignore[method-assign]

    assert launch(tiny(tmp_path), harm=only_warmup) == [0]
    assert (tmp_path / "checked").exists()


@pytest.mark.parametrize(
    ("first", "second"), [(("momentum", 0.0), ("update", 0.5)), (("momentum", 1.0), ("fixed", 0.5))]
)
def test_ends_of_alpha_are_the_baselines(first: tuple[str, float], second: tuple[str, float], tmp_path: Path) -> None:
    found = []
    for mode, alpha in (first, second):
        folder = tmp_path / mode / str(alpha)
        folder.mkdir(parents=True)
        objective = {"mode": mode, "alpha": alpha}
        assert launch(tiny(folder, objective=objective, clip_grad_norm=None)) == [0]
        found.append({k: v for k, v in weights(folder).items() if k not in ("objective.average", "objective.last_t")})
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


def broken(field: str) -> Callable[[], None]:
    """Make a loss or a gradient not finite at step 6."""

    def harm() -> None:
        original = Trainer._forward_backward

        def step(self: Trainer, batches: list) -> torch.Tensor:
            sums = original(self, batches)
            if self.step == 6 and field == "loss":
                sums[0] = float("nan")
            if self.step == 6 and field == "gradient":
                next(p for p in self.trained.values() if p.grad is not None).grad.fill_(float("inf"))
            return sums

        Trainer._forward_backward = step  # type: ignore[method-assign]

    return harm


@pytest.mark.parametrize("field", ["loss", "gradient"])
def test_a_non_finite_step_changes_nothing_and_names_the_batch(field: str, tmp_path: Path) -> None:
    config = tiny(tmp_path, save_every_steps=2)
    assert launch(config, harm=broken(field)) == [2]
    assert "weights were not changed" in (tmp_path / "error_0.txt").read_text()
    report = json.loads((tmp_path / "nonfinite_step_6.json").read_text())
    assert len(report["ids"][0]) == 4 and all(name.startswith("cell-") for name in report["ids"][0])
    assert launch(config) == [0], "the run goes on from the last checkpoint"


def test_a_trained_part_that_no_gradient_reaches_is_refused(tmp_path: Path) -> None:
    text = {"_component_": "medtune.datasets.cells.rendered_cells_dataset", "size": 22, "seed": 5, "kind": "text"}
    config = tiny(tmp_path, dataset=text, objective={"_component_": "medtune.objectives.SFT"}, learning_rates={})
    config.max_steps = 12
    assert launch(config) == [2]
    assert "no gradient has reached" in (tmp_path / "error_0.txt").read_text()
