"""Training on class labels: what an item holds, what a step adds up, what is refused."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medtune.data.preflight import preflight
from medtune.datasets import jsonl_dataset
from medtune.errors import ConfigError, DataError, ModelError
from medtune.losses.labels import label_losses, labels_right
from medtune.models.classifier.tsm import PixelTransform, TaskModel, task_model
from medtune.objectives.base import Stage
from medtune.objectives.classification import Classification, LabelledImages
from tests.labelled_pictures import TINY_VIT, rows, write

STAGE = Stage("train", ())
VIT = "vit_tiny_patch16_224"


def bound(folder: Path, **arguments: Any) -> tuple[TaskModel, Classification, Any]:
    """A tiny model of the drawn sets, the method bound to it, and the rows."""
    path = write(folder)
    torch.manual_seed(2)
    model = task_model(path, VIT, 8, **TINY_VIT)
    method = Classification(**arguments)
    method.bind(model, model.transform, 0)
    return model, method, jsonl_dataset(path, image_root=str(folder))


def made(items: LabelledImages, source: Any, model: TaskModel, seed: int = 0) -> list[dict[str, Any]]:
    return [items(source, index, random.Random(seed + index), model.transform) for index in range(len(source))]


def test_an_item_is_a_picture_and_its_labels(tmp_path: Path) -> None:
    model, method, source = bound(tmp_path)
    items = made(method.items(source, np.arange(len(source)), STAGE), source, model)
    long, none, both, grave = items[1], items[3], items[5], items[8]
    assert long["target"].tolist() == [0, 1, 0, 0, 0, 0, 0] and long["among"].tolist() == [True] * 3 + [False] * 4
    assert none["target"].sum() == 0 and none["multi_label"] and not long["multi_label"]
    assert both["target"].tolist() == [0, 0, 0, 1, 1, 0, 0]
    assert grave["target"].tolist() == [0, 0, 0, 0, 0, 0, 1] and not grave["multi_label"]
    assert torch.equal(long["pixels"], model.transform.pixels(source.open_images(source[1])[0]))


def test_only_named_sets_are_mirrored_and_only_half_of_them(tmp_path: Path) -> None:
    model, method, source = bound(tmp_path, flip=["cells"])
    items = method.items(source, np.arange(len(source)), STAGE)
    seen = [made(items, source, model, seed) for seed in range(30)]
    plain = [model.transform.pixels(source.open_images(source[index])[0]) for index in range(len(source))]
    for index, pixels in enumerate(plain):
        turned = sum(torch.equal(run[index]["pixels"], pixels.flip(-1)) for run in seen)
        kept = sum(torch.equal(run[index]["pixels"], pixels) for run in seen)
        assert turned + kept == len(seen)
        assert 6 <= turned <= 24 if source[index].meta["set"] == "cells" else turned == 0


def test_a_step_sums_the_losses_of_its_images(tmp_path: Path) -> None:
    model, method, source = bound(tmp_path)
    items = method.items(source, np.arange(len(source)), STAGE)
    batch = items.collate(made(items, source, model)[:9], None)
    output = method(model, batch)
    logits = model.encoder(batch["pixels"])
    losses = label_losses(logits, batch["target"], batch["among"], batch["multi_label"])
    assert output.loss_sum.item() == pytest.approx(losses.sum().item(), abs=1e-12)
    right = labels_right(logits, batch["target"], batch["among"], batch["multi_label"])
    assert output.weight == 9 and output.metrics["accuracy"] == right.sum()
    assert batch["padding"].sum() == 9


def test_present_findings_are_weighed_by_a_mapping_or_by_their_frequency(tmp_path: Path) -> None:
    path = write(tmp_path)
    labels = [row["meta"] for row in rows() if row["meta"]["set"] == "chest"]
    classes = labels[0]["classes"]
    counts = [sum(place in one["label_index"] for one in labels) for place in range(len(classes))]
    assert all(0 < count < len(labels) for count in counts) and len(set(counts)) > 1
    by_hand = [1.0] * 3 + [(len(labels) - count) / count for count in counts] + [1.0] * 2
    model, counted, source = bound(tmp_path, pos_weight=path)
    assert counted.pos_weight is not None and counted.pos_weight.tolist() == pytest.approx(by_hand)
    _, given, _ = bound(tmp_path, pos_weight={"chest": {classes[1]: 4.0}})
    assert given.pos_weight is not None and given.pos_weight.tolist() == [1, 1, 1, 1, 4, 1, 1]
    assert "pos_weight" in given.state_dict() and "pos_weight" not in bound(tmp_path)[1].state_dict()
    items = given.items(source, np.arange(len(source)), STAGE)
    batch = items.collate(made(items, source, model), None)
    targets = batch["target"], batch["among"], batch["multi_label"]
    losses = label_losses(model.encoder(batch["pixels"]), *targets, given.pos_weight)
    assert given(model, batch).loss_sum.item() == pytest.approx(losses.sum().item(), abs=1e-12)
    assert given(model, batch).loss_sum.item() != pytest.approx(counted(model, batch).loss_sum.item(), abs=1e-3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"chess": {}}, "no set 'chess'; did you mean 'chest'"),
        ({"cells": {"round": 2.0}}, "cells has one label an image; weigh its rows in prepare"),
        ({"chest": {"efusion": 2.0}}, "chest has no class 'efusion'; did you mean 'effusion'"),
        ({"chest": {"effusion": 0.0}}, "the weight of 'effusion' must be a number above 0"),
        ("gone.jsonl", "the data file gone.jsonl does not exist"),
    ],
)
def test_weights_that_fit_no_finding_are_refused(given: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, DataError), match=said):
        bound(tmp_path, pos_weight=given)


def test_blank_items_weigh_nothing(tmp_path: Path) -> None:
    model, method, source = bound(tmp_path)
    items = method.items(source, np.arange(len(source)), STAGE)
    whole = made(items, source, model)[:4]
    alone = method(model, items.collate(whole[:3], None))
    filled = method(model, items.collate([*whole[:3], items.blank(whole[3])], None))
    assert filled.weight == alone.weight == 3
    everything = made(items, source, model)
    known = method(model, items.collate(everything, None)).metrics["accuracy"]
    blanks = [items.blank(item) for item in everything]
    assert method(model, items.collate([*everything, *blanks], None)).metrics["accuracy"] == known > 0
    assert filled.loss_sum.item() == pytest.approx(alone.loss_sum.item(), abs=1e-6)
    alone.loss_sum.backward()
    first = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    filled.loss_sum.backward()
    second = [p.grad for p in model.parameters() if p.grad is not None]
    assert max((a - b).abs().max() for a, b in zip(first, second, strict=True)) < 1e-5


def test_unusable_rows_are_found_before_training(tmp_path: Path) -> None:
    model, method, _ = bound(tmp_path)
    table = rows(1)
    table[1]["meta"] |= {"classes": ["round", "long", "lost"]}
    table[2]["meta"] = {}
    table[3]["images"] = [table[3]["images"][0], table[4]["images"][0]]
    table[5]["meta"] |= {"set": "skin"}
    table[7]["meta"] |= {"task": "multi_class"}
    path = write(tmp_path / "other", table)
    source = jsonl_dataset(path, image_root=str(tmp_path / "other"))
    found = preflight(source, model.transform, lambda: [method.items(source, None, STAGE)], "skip", progress=False)
    reasons = {problem.id: problem.reason for problem in found.problems}
    assert list(reasons) == ["cells/0/1", "cells/0/2", "chest/0/0", "chest/0/2", "grades/0/1"]
    assert "not one that the model was built for (cells, chest, grades)" in reasons["cells/0/1"]
    assert "'protocol': 'classification'" in reasons["cells/0/2"] and "looks at one" in reasons["chest/0/0"]
    with pytest.raises(DataError, match="'skin'"):
        method.items(source, np.arange(9), STAGE)(source, 5, random.Random(0), model.transform)


def test_what_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    model, method, _ = bound(tmp_path)
    with pytest.raises(ConfigError, match="is not the model's"):
        method.bind(model, PixelTransform(16), 0)
    with pytest.raises(ConfigError, match="PixelTransform"):
        method.bind(model, object(), 0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="task_model"):
        method.bind(torch.nn.Linear(2, 2), model.transform, 0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no set 'cell'; the model has cells, chest, grades"):
        Classification(flip=["cell"]).bind(model, model.transform, 0)
    for wrong in ("cells", True, [1]):
        with pytest.raises(ValueError, match="list of sets"):
            Classification(flip=wrong)  # type: ignore[arg-type]
    unread = TaskModel("resnet10t", model.sets, 32)
    with pytest.raises(ModelError, match="batch normalisations"):
        method.bind(unread, unread.transform, 0)
