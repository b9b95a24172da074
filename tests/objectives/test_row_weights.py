"""A sample's weight multiplies its loss, in every method, and the run divides by the weights."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from medtune.data.class_weights import balanced_class_weights, given_class_weights
from medtune.objectives.classification import Classification
from medtune.objectives.instfree import InstFree
from medtune.objectives.sft import SFT
from tests import runs
from tests.objectives.tiny_vitask import ALIGN, CONTRAST, batch_of, bound, close, family, loss_and_gradients
from tests.tiny_task import task_rows, write_task

CHOSEN, WEIGHTS = [1, 4, 2, 20], [2.0, 0.25, 1.0, 3.5]


def weighted(task: SimpleNamespace) -> SimpleNamespace:
    """The task's samples with weights."""

    class Source:
        name = "weighted"

        def __getattr__(self, name: str) -> Any:
            return getattr(task.source, name)

        def __len__(self) -> int:
            return len(task.source)

        def __getitem__(self, index: int) -> Any:
            weight = WEIGHTS[CHOSEN.index(index)] if index in CHOSEN else 1.0
            return replace(task.source[index], weight=weight)

    return SimpleNamespace(source=Source(), tsm=task.tsm)


def method(name: str, task: SimpleNamespace, model: Any, transform: Any) -> Any:
    if name.startswith("vitask"):
        _, stage, passes = name.split("-")
        return bound(task, model, transform, {"align": ALIGN, "contrast": CONTRAST}[stage], passes=passes)
    objective: Any = SFT(chunk_tokens=4) if name == "sft" else InstFree("momentum", 3, sigma=0.5)
    objective.bind(model, transform, seed=2)
    return objective


@pytest.mark.parametrize(
    "name", ["sft", "instfree", "vitask-align-joint", "vitask-contrast-packed", "vitask-contrast-joint"]
)
def test_a_batch_is_the_sum_of_its_rows_times_their_weights(task: SimpleNamespace, name: str) -> None:
    model, transform = family("internvl")
    objective = method(name, task, model, transform)
    singles, expected = [], {}
    for index, weight in zip(CHOSEN, WEIGHTS, strict=True):
        output, gradients = loss_and_gradients(model, objective, batch_of(task, objective, transform, [index]))
        singles.append((weight, output))
        for key, value in gradients.items():
            expected[key] = expected.get(key, 0.0) + weight * value
    batch = batch_of(weighted(task), objective, transform, CHOSEN)
    assert batch["weights"].tolist() == WEIGHTS
    output, found = loss_and_gradients(model, objective, batch)
    assert output.loss_sum.item() == pytest.approx(sum(w * one.loss_sum.item() for w, one in singles), rel=1e-6)
    assert output.weight.item() == pytest.approx(sum(w * one.weight.item() for w, one in singles), rel=1e-12)
    assert objective.weight(batch) == pytest.approx(output.weight.item(), rel=1e-12)
    for key, value in output.metrics.items():
        assert value.item() == pytest.approx(sum(w * one.metrics[key].item() for w, one in singles), rel=1e-3, abs=1e-6)
    close({key: value for key, value in found.items() if key in expected}, expected, 1e-4)


def test_a_batch_without_weights_is_as_before(task: SimpleNamespace) -> None:
    _, transform = family("internvl")
    assert "weights" not in batch_of(task, SFT(), transform, CHOSEN)


def config(folder: Path, weights: list[float], **changes: Any) -> Any:
    rows = [{**row, "weight": weight} for row, weight in zip(task_rows(2)[:8], weights, strict=True)]
    data = write_task(folder / "data", rows)
    settings = {**runs.SFT, "dataset": data, "max_steps": 2, **changes}
    return runs.tiny(folder / "run", **settings)


def test_weights_that_are_all_equal_change_nothing_also_far_below_one(tmp_path: Path) -> None:
    found = []
    for name, weight in (("one", 1.0), ("small", 1e-3)):
        runs.launch(made := config(tmp_path / name, [weight] * 8))
        found.append((runs.losses(Path(made.output_dir)), runs.weights(Path(made.output_dir))))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert runs.largest_difference(found[0][1], found[1][1]) < 1e-5


def test_a_run_with_weights_is_the_same_on_two_processes(tmp_path: Path) -> None:
    weights = [0.1, 2.0, 0.7, 1.0, 5.0, 0.3, 1.1, 0.9]
    found = []
    for world in (1, 2):
        made = config(tmp_path / str(world), weights, batch_size=4 // world, max_steps=1)
        runs.launch(made, world)
        found.append(runs.losses(Path(made.output_dir)))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    plain = config(tmp_path / "plain", [1.0] * 8, max_steps=1)
    runs.launch(plain)
    assert found[0][0] != pytest.approx(runs.losses(Path(plain.output_dir))[0], rel=1e-3)


def test_an_images_weight_multiplies_its_label_loss() -> None:
    batch = {"weight": torch.tensor([2.0, 0.0, 0.5])}
    assert Classification().weight(batch) == 2.5


def test_balanced_weights_are_n_over_c_times_n_k() -> None:
    labels = [(0,)] * 6 + [(2,)] * 2
    assert balanced_class_weights(labels, 3, False).tolist() == pytest.approx([8 / (2 * 6)] * 6 + [8 / (2 * 2)] * 2)


def test_balanced_weights_of_several_labels_are_the_mean_over_labels() -> None:
    labels: list[tuple[int, ...]] = [(0,), (0, 1), (), (0,)]
    present = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [1, 0, 0]])
    expected = []
    for row in range(4):
        own = [4 / (2 * (present[:, k] == present[row, k]).sum()) for k in (0, 1)]  # no row has the third label
        expected.append(sum(own) / 2)
    weights = balanced_class_weights(labels, 3, True)
    assert weights.tolist() == pytest.approx(expected) and weights.mean() == pytest.approx(1.0)
    assert (
        balanced_class_weights([(0,), (0,)], 1, True).tolist() == [1.0, 1.0]
        and len(balanced_class_weights([], 2, True)) == 0
    )


def test_given_weights_of_several_labels_are_their_mean() -> None:
    rows = [["a"], ["a", "b"], [], ["c"]]
    assert given_class_weights(rows, {"a": 2.0, "b": 4.0, "none": 0.5}, "none").tolist() == [2.0, 3.0, 0.5, 1.0]
