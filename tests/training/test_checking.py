"""Where a run remembers the check of its data, and what makes it look again."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medtune.config import build, instantiate
from medtune.data import preflight as checks
from medtune.data.preflight_record import SUFFIX, Record
from medtune.errors import ConfigError
from medtune.objectives.base import Stage
from medtune.training import checking
from medtune.training.checking import check_record, code_digest
from medtune.training.config import TrainConfig
from medtune.training.data import BatchLoader
from medtune.training.runtime import Runtime
from tests.data.tools import row, write_pictures, write_rows
from tests.runs import SFT, tiny

STAGES = (Stage("warmup", ()), Stage("tune", ()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "images", 4)
    write_rows(tmp_path / "a.jsonl", [row(str(n), "round cell", (f"{n}.png",)) for n in range(4)])
    return tmp_path


def config_of(folder: Path, **changes: Any) -> TrainConfig:
    data = {"source": str(folder / "a.jsonl"), "image_root": str(folder / "images")}
    data["_component_"] = "medtune.datasets.jsonl_dataset"
    values = {"dataset": data, "preflight_cache": str(folder / "cache"), **changes}
    return tiny(folder / "run", **values)


def record_of(config: TrainConfig, stages: tuple[Stage, ...] = STAGES) -> Record:
    record = check_record(config, instantiate(config.dataset), stages)
    assert record is not None
    return record


def test_what_a_check_depends_on_names_its_record(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = record_of(config_of(folder)).path
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    asset = Path(config_of(folder).transform["path"])
    for file in asset.iterdir():
        (tokenizer / file.name).write_bytes(file.read_bytes())
    write_pictures(tmp_path / "elsewhere", 4)
    others = [
        config_of(folder, seed=12),
        config_of(folder, objective={"shuffle_separator": ";"}),
        config_of(folder, objective=SFT["objective"]),
        config_of(folder, transform={"max_num_tiles": 2}),
        config_of(folder, model={"vocab_size": 1025}),
        config_of(folder, dataset={**config_of(folder).dataset, "image_root": str(tmp_path / "elsewhere")}),
        config_of(folder, dataset={**config_of(folder).dataset, "center_crop": 0.5}),
    ]
    paths = [record_of(config).path for config in others]
    paths.append(record_of(config_of(folder), STAGES[1:]).path)
    moved = config_of(folder)
    moved.transform["path"] = str(tokenizer)
    paths.append(record_of(moved).path)
    for file in tokenizer.glob("*.json"):
        file.write_text(file.read_text() + " ")
    paths.append(record_of(moved).path)
    monkeypatch.setattr(checking, "_version", lambda package: "9.9")
    paths.append(record_of(config_of(folder)).path)
    monkeypatch.undo()
    write_rows(folder / "a.jsonl", [row("0", "round cell", ("0.png",))])
    paths.append(record_of(config_of(folder)).path)
    assert len({base, *paths}) == 1 + len(paths)


def test_what_it_does_not_depend_on_names_it_too(folder: Path) -> None:
    base = record_of(config_of(folder)).path
    for changes in (
        {"num_workers": 2},
        {"batch_size": 1},
        {"on_error": "skip"},
        {"max_steps": 3},
        {"learning_rates": {}},
        {"output_dir": "other"},
    ):
        values = {**config_of(folder).__dict__, **changes}
        assert record_of(build(TrainConfig, {k: v for k, v in values.items() if k != "schedule"}, "test")).path == base


def test_code_from_elsewhere_is_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "their_own_data.py").write_text("def rows():\n    return 1\n")
    part = [{"parts": [{"_component_": "their_own_data.rows"}]}]
    first = code_digest(part)
    assert first == code_digest(part) != code_digest([])
    (tmp_path / "their_own_data.py").write_text("def rows():\n    return 2\n")
    assert code_digest(part) != first
    assert code_digest([{"_component_": "medtune.datasets.jsonl_dataset"}]) == code_digest([])


def test_where_records_are(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "xdg"))
    assert record_of(config_of(folder, preflight_cache="auto")).folder == folder / "xdg" / "medtune" / "preflight"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(folder))
    assert record_of(config_of(folder, preflight_cache="auto")).folder == folder / ".cache" / "medtune" / "preflight"
    assert record_of(config_of(folder, preflight_cache="~/x")).folder == folder / "x"
    source = instantiate(config_of(folder).dataset)
    assert check_record(config_of(folder, preflight_cache=None), source, STAGES) is None
    inside = config_of(folder, preflight_cache=str(folder / "images" / ".cache"))
    with pytest.raises(ConfigError, match="preflight_cache: .* lies inside the image root .*name a folder outside"):
        check_record(inside, source, STAGES)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "images"))
    assert check_record(config_of(folder, preflight_cache="auto"), source, STAGES) is None
    cells = tiny(folder)
    assert check_record(cells, instantiate(cells.dataset), STAGES) is None, "drawn images are in no files"


def feed_of(config: TrainConfig) -> BatchLoader:
    method, transform = instantiate(config.objective), instantiate(config.transform)
    stages = method.stages((), 1, 4)
    return BatchLoader(config.dataset, method, transform, config, Runtime.start("cpu"), stages)


def test_a_start_remembers_and_the_next_reads_no_row(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(folder, **{k: v for k, v in SFT.items() if k != "dataset"}, num_workers=2)
    first = feed_of(config)
    assert len(list((folder / "cache").glob(f"*{SUFFIX}"))) == 1
    monkeypatch.setattr(checks, "_look", lambda *_: pytest.fail("rows were read"))
    again = feed_of(config)
    for name, value in vars(first.checked).items():
        assert np.array_equal(value, getattr(again.checked, name))
    assert first.plan.steps(3) == again.plan.steps(3)
    config.preflight_cache = None
    with pytest.raises(pytest.fail.Exception):
        feed_of(config)


def test_items_are_those_of_the_stage(folder: Path) -> None:
    """Made when the run starts, and taken when the stage begins; an epoch that has begun keeps its own."""

    class Staged:
        def __init__(self, inner: Any) -> None:
            self.inner, self.asked = inner, []

        def items(self, source: Any, usable: Any, stage: Stage) -> Any:
            self.asked.append((stage.name, None if usable is None else usable.tolist()))
            return self.inner.items(source, usable, stage)

    config = config_of(folder, **{k: v for k, v in SFT.items() if k != "dataset"})
    method: Any = Staged(instantiate(config.objective))
    feed = BatchLoader(config.dataset, method, instantiate(config.transform), config, Runtime.start("cpu"), STAGES)
    every = [0, 1, 2, 3]
    assert method.asked == [("warmup", None), ("tune", None), ("warmup", every), ("tune", every)]
    first = feed.dataset
    epoch = feed.epoch(0)
    next(epoch)
    feed.begin_stage(STAGES[1])
    assert feed.dataset is not first and feed.dataset.items is not first.items
    assert feed.dataset.source is first.source and feed.dataset.transform is first.transform
    feed.begin_stage(STAGES[0])
    assert feed.dataset.items is first.items
    assert len(method.asked) == 4, "nothing is made anew in the middle of a run"


def test_a_record_is_json_of_plain_values(folder: Path) -> None:
    made_of = record_of(config_of(folder)).made_of
    assert json.loads(json.dumps(made_of)) == made_of
    assert made_of["roots"] == [os.path.realpath(folder / "images")]


def test_files_above_256_mb_are_told_by_size_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "file_sha256", lambda path: "read")
    path = tmp_path / "weights"
    for size, expected in ((1 << 28, "read"), ((1 << 28) + 1, f"{(1 << 28) + 1}|2000000000")):
        with path.open("wb") as file:
            file.truncate(size)  # sparse: nothing is written
        os.utime(path, (2, 2))
        assert checking._contents(path) == expected


def test_other_code_means_another_record(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = record_of(config_of(folder)).path
    assert record_of(config_of(folder)).path == base
    monkeypatch.setattr(checking, "code_digest", lambda parts: "of a later version")
    assert record_of(config_of(folder)).path != base
