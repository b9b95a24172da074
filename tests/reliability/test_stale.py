"""What is kept between runs carries a fingerprint of what it was made from, and is refused when that has changed."""

import importlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from medtune.cli.main import main
from medtune.training.building import base_fingerprint
from tests.datasets.owners import skincon_rows, write_picture, write_skincon
from tests.reliability.faults import said
from tests.runs import CELLS, die_at, launch, tiny

SAVES: dict[str, Any] = {"save_every_steps": 3}


def run(name: str, *arguments: str) -> int:
    return importlib.import_module(f"medtune.recipes.{name}").main(["--config", *arguments])


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Weights that a run starts from: those of another tiny run."""
    assert launch(tiny(tmp_path / "base", max_steps=1)) == [0]
    return tmp_path / "base" / "weights" / "model.safetensors"


def change_one_tensor(file: Path, name: str) -> None:
    state = load_file(file)
    save_file({**state, name: state[name] + 0.01}, file)


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_base_weights_that_change_between_runs(place: str, base: Path, tmp_path: Path) -> None:
    """Whichever tensor of a file has changed, neither the run nor its export takes the file for the old one."""
    names = sorted(load_file(base))
    config = tiny(tmp_path / "run", **SAVES, checkpoint=str(base))
    assert launch(config, harm=die_at(8)) == [9]
    before = base.read_bytes()
    change_one_tensor(base, names[{"first": 0, "middle": len(names) // 2, "last": -1}[place]])
    assert len(before) == base.stat().st_size
    assert launch(config) == [2]
    assert "\n  weights: " in said(tmp_path / "run")[0] and f"the contents of {base}" in said(tmp_path / "run")[0]
    assert main(["export", str(tmp_path / "run"), "--to", "torchtune", "--out", str(tmp_path / "out")]) == 2
    base.write_bytes(before)
    assert launch(config) == [0]


def test_a_fingerprint_tells_shards_names_and_values_apart(tmp_path: Path) -> None:
    # What differs lies beyond the file's first megabyte.
    one, two = {"a": torch.zeros(400_000), "b": torch.ones(5000)}, {"c": torch.zeros(2, 2)}
    found = set()
    for number, shards in enumerate(([one, two], [one], [two, one], [{**one, "b": torch.zeros(5000)}, two])):
        folder = tmp_path / str(number)
        folder.mkdir()
        for place, shard in enumerate(shards):
            save_file(shard, folder / f"model-{place}.safetensors")
        found.add(base_fingerprint(str(folder)))
    assert len(found) == 4


def questions(folder: Path) -> Path:
    """Four questions on two pictures."""
    rows = []
    for number in range(4):
        pixels = Image.effect_noise((64, 64), 30 + number // 2).convert("RGB")
        pixels.save(folder / f"{number // 2}.png")
        meta = {"attribute": "cell size", "options": ["big", "small"], "answer": ("big", "small")[number % 2]}
        turns = [{"role": "user", "content": f"What is the cell size ({number})?"}]
        turns.append({"role": "assistant", "content": str(meta["answer"])})
        rows.append(json.dumps({"id": f"q{number}", "images": [f"{number // 2}.png"], "messages": turns, "meta": meta}))
    (folder / "test.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "training_majority.json").write_text(json.dumps({"cell size": "big"}))
    return folder / "test.jsonl"


def test_answers_to_questions_that_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A prediction file is neither continued with other questions or settings, nor scored against other answers."""
    file, out = questions(tmp_path), tmp_path / "out"
    ask = ["predict/mini", f"output_dir={out}", f"questions.source={file}", f"questions.image_root={tmp_path}"]
    ask += ["protocols=[open]", "swapped=[]", "max_new_tokens=3", "device=cpu"]
    assert run("predict", *ask) == 0
    before, answers = file.read_text(), (out / "predictions.jsonl").read_text()
    capsys.readouterr()

    file.write_text(before.replace("cell size (2)", "size of the cell (2)"))
    assert run("predict", *ask) == 2
    assert "was made with other settings (data: " in capsys.readouterr().err

    score = ["evaluate/default", f"predictions={out / 'predictions.jsonl'}", f"prepared_dir={tmp_path}"]
    score += [f"output={out}", "protocols=[open]", "swapped=[]", "bootstrap_draws=10"]
    file.write_text(before.replace('"answer": "small"', '"answer": "big"'))
    assert run("evaluate", *score) == 2
    assert "the prediction was made on another question file" in capsys.readouterr().err

    file.write_text(before)
    assert run("predict", *ask, "max_new_tokens=4") == 2
    assert "config.max_new_tokens: 3 before, 4 now" in capsys.readouterr().err
    assert run("predict", *ask) == 0 and run("evaluate", *score) == 0
    assert (out / "predictions.jsonl").read_text() == answers


def test_prepared_data_of_tables_that_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prepared files of other contents are not overwritten unasked, and a run on the old ones refuses the new."""
    rows = skincon_rows(80)
    for number, row in enumerate(rows):
        write_picture(tmp_path / "images" / row["ImageID"], number)
    table, prepared = write_skincon(tmp_path, rows), tmp_path / "prepared"
    make = ["prepare/skincon", f"data.annotations={table}", f"data.images={tmp_path}/images"]
    make += [f"image_root={tmp_path}/images", f"output_dir={prepared}"]
    assert run("prepare", *make) == 0
    source = {"source": str(prepared / "train.jsonl"), "image_root": str(tmp_path / "images")}
    data = {"_component_": "medtune.datasets.jsonl_dataset", **source}
    config = tiny(tmp_path / "run", **SAVES, dataset=data)
    assert launch(config, harm=die_at(8)) == [9]

    random.Random(0).shuffle(features := [name for name, value in rows[0].items() if value in (0, 1) and name])
    for row in rows:
        row[features[0]] = 1 - int(row[features[0]])
    write_skincon(tmp_path, rows)
    capsys.readouterr()
    assert run("prepare", *make) == 2
    assert f"{prepared} already holds a different " in (error := capsys.readouterr().err) and "overwrite=true" in error
    assert run("prepare", *make, "overwrite=true") == 0
    assert launch(config) == [2]
    assert f"the contents of {prepared / 'train.jsonl'}" in said(tmp_path / "run")[0]


def test_a_checkpoint_of_an_older_version_is_compared_by_what_it_recorded(tmp_path: Path) -> None:
    """Nothing that a later version writes down besides keeps a run from being continued."""
    config = tiny(tmp_path, **SAVES)
    assert launch(config, harm=die_at(8)) == [9]
    for state in tmp_path.glob("checkpoints/*/state.json"):
        values = json.loads(state.read_text())
        for later in ("sampling", "usable"):
            del values["identity"][later]
        state.write_text(json.dumps(values))
        manifest = state.with_name("manifest.json")
        listed = json.loads(manifest.read_text())
        del listed["state.json"]
        manifest.write_text(json.dumps(listed))
    assert launch(config) == [0]
    assert launch(tiny(tmp_path, **SAVES, dataset={"_component_": CELLS, "size": 23})) == [2]
