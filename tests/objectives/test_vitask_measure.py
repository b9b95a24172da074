"""VITask's items: what they say of their size before training, the negative's row included."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from medtune.config import instantiate
from medtune.data.items import Row
from medtune.data.preflight import preflight
from medtune.data.randomness import sample_rng
from medtune.data.training_set import TrainingSet
from medtune.errors import DataError
from medtune.models.classifier.tsm import load_tsm
from tests.objectives.tiny_vitask import ALIGN, CONTRAST, bound, family
from tests.tiny_task import task_rows, write_task


def held(item: dict[str, Any], drawn: bool = False) -> Row:
    """The size of a row of a made item."""
    supervised = sum(label != -100 for label in item["labels"][1:])
    return Row(len(item["tokens"]), supervised, sum(len(tiles) for tiles in item["images"]), drawn)


@pytest.mark.parametrize("name", ["cross-attention", "internvl", "llava"])
def test_every_row_of_an_item_is_as_long_as_was_said(name: str, task: SimpleNamespace) -> None:
    """Where images are tokens, a wide negative makes a longer row than the sample's own."""
    model, transform = family(name)
    objective = bound(task, model, transform)
    every = np.arange(len(task.source))
    longer = 0
    for stage in (ALIGN, CONTRAST):
        items = objective.items(task.source, every, stage)
        for epoch in range(3):
            for index in every.tolist():
                item = TrainingSet(task.source, items, transform, 3)[(epoch, index, True)]
                own, *others = items.measure(task.source, index, sample_rng(3, epoch, index), transform)
                assert own == held(item)
                assert others == ([held(item["negative"], True)] if item.get("negative") else [])
                longer += any(other.tokens > own.tokens for other in others)
    assert (longer > 0) == (name == "internvl")


def checked(task: SimpleNamespace, name: str, on_error: Any = "raise", **arguments: Any) -> Any:
    model, transform = family(name)
    objective = bound(task, model, transform, **arguments)
    stages = (ALIGN, CONTRAST)
    return preflight(
        task.source,
        transform,
        lambda: [objective.items(task.source, None, stage) for stage in stages],
        on_error,
        progress=False,
        seed=3,
    )


def test_the_check_knows_the_longest_row_and_batches_do_not(task: SimpleNamespace) -> None:
    found, plain = checked(task, "internvl"), checked(task, "internvl", negatives="roll")
    for name in ("lengths", "tiles", "supervised"):
        assert np.array_equal(getattr(found, name), getattr(plain, name)), "they are planned by the sample's own row"
    assert np.array_equal(plain.longest, plain.lengths) and np.array_equal(plain.most_tiles, plain.tiles)
    assert (found.longest > found.lengths).any() and (found.longest >= found.lengths).all()
    assert ((found.most_tiles > found.tiles) == (found.longest > found.lengths)).all()


def test_a_negative_too_long_for_the_model_is_none(task: SimpleNamespace) -> None:
    model, transform = family("internvl")
    items = bound(task, model, transform).items(task.source, np.arange(len(task.source)), CONTRAST)
    for index in range(len(task.source)):
        sizes = items.measure(task.source, index, sample_rng(0, 0, index), transform)
        if len(sizes) == 2 and sizes[1].tokens > sizes[0].tokens:
            break
    transform.max_seq_len = sizes[0].tokens
    assert items.measure(task.source, index, sample_rng(0, 0, index), transform) == sizes[:1]
    assert TrainingSet(task.source, items, transform, 0)[(0, index, True)]["negative"] is None


def test_samples_without_an_image_are_found_before_training(tmp_path: Path, task: SimpleNamespace) -> None:
    rows = task_rows()
    rows[4]["images"] = []
    (tmp_path / "data").mkdir()
    other = SimpleNamespace(source=instantiate(write_task(tmp_path / "data", rows)), tsm=task.tsm)
    with pytest.raises(DataError, match=r"1 of 21 rows(?s:.*)line 5 .*no exemplar for it"):
        checked(other, "llava")
    found = checked(other, "llava", "skip")
    assert 4 not in found.indices and len(found.indices) == 20
    assert len(checked(other, "llava", exemplar="none", alpha=0.0, beta=0.0).indices) == 21


def test_the_exemplar_is_that_of_the_last_image(tmp_path: Path, task: SimpleNamespace) -> None:
    rows = task_rows()
    rows[0]["images"].append(rows[1]["images"][0])
    source = instantiate(write_task(tmp_path / "data", rows))
    model, transform = family("internvl")
    objective = bound(task, model, transform)
    items = objective.items(source, np.arange(len(source)), ALIGN)
    item = items(source, 0, sample_rng(0, 0, 0), transform)
    first, last = (load_tsm(task.tsm).transform.pixels(image) for image in source.open_images(source[0]))
    assert torch.equal(item["exemplar_pixels"], last) and not torch.equal(first, last)


def test_rows_that_are_no_samples_do_not_hide_the_others_while_they_are_checked(
    tmp_path: Path, task: SimpleNamespace
) -> None:
    """Negatives are drawn while the check is under way; a broken row, or a broken negative, is named once."""
    data = write_task(tmp_path / "data")
    file = Path(data["source"])
    lines = file.read_text().splitlines()
    file.write_text("\n".join(["{", *lines[1:]]) + "\n")
    (tmp_path / "data" / (task_rows()[1]["images"][0])).write_bytes(b"no image")
    other = SimpleNamespace(source=instantiate(data), tsm=task.tsm)
    found = checked(other, "internvl", "skip")
    assert [problem.id for problem in found.problems] == ["row 1", task_rows()[1]["id"]]


def test_one_response_for_each_question_is_no_matter_while_rows_are_checked(
    tmp_path: Path, task: SimpleNamespace
) -> None:
    rows = [row for row in task_rows() if row["messages"][1]["content"] in ("red", "thin")]
    source = instantiate(write_task(tmp_path, rows))
    objective = bound(task, *family("llava"))
    assert objective.items(source, None, CONTRAST) and objective.items(source, np.arange(len(source)), ALIGN)
    with pytest.raises(DataError, match="every instruction has one response only"):
        objective.items(source, np.arange(len(source)), CONTRAST)
