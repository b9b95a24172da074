"""The prepare recipe, in this process and as `tune run` launches it from another folder."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from medtune.data.folders import RECORD
from medtune.data.source import JsonlSource
from medtune.recipes.prepare import main

TUNE = Path(sys.executable).with_name("tune")


@pytest.fixture
def overrides(medtune_data, tmp_path):
    """The owners' tables, cut down to the rows whose image is at hand."""
    data = medtune_data / "wbcatt"
    if not (data / "subset").is_dir():
        pytest.skip(f"the WBCAtt subset is not in {data}")
    return [f"data.annotations={data / 'subset'}", f"image_root={data / 'images'}", f"output_dir={tmp_path / 'out'}"]


@pytest.fixture
def prepare(overrides, capsys):
    """Runs the recipe in this process; returns its status and what it printed."""

    def run(*more):
        status = main(["--config", "prepare/wbcatt", *overrides, *more])
        said = capsys.readouterr()
        return status, said.out + said.err

    return run


def contents(folder):
    files = (path for path in folder.iterdir() if path.name != RECORD)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_prepare_writes_once_and_repeats_to_the_byte(prepare, tmp_path):
    status, said = prepare("dry_run=true")
    assert status == 0 and "nothing was written" in said and not (tmp_path / "out").exists()
    assert prepare()[0] == 0
    written = contents(tmp_path / "out")
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["outputs"] == {name: digest for name, digest in written.items() if name != "manifest.json"}
    assert manifest["counts"]["train"] == 120 and manifest["options"]["seed"] == 0
    assert str(tmp_path) not in (tmp_path / "out/manifest.json").read_text()
    assert len(JsonlSource(tmp_path / "out/test.jsonl", None)) == manifest["counts"]["test"]
    assert "already holds exactly this" in prepare()[1]
    status, said = prepare("data.questions=one")
    assert status == 2 and "different val.jsonl, test.jsonl" in said
    assert contents(tmp_path / "out") == written
    assert prepare("data.questions=one", "overwrite=true")[0] == 0
    after = contents(tmp_path / "out")
    assert after["train.jsonl"] == written["train.jsonl"] and after["test.jsonl"] != written["test.jsonl"]


def test_missing_images_stop_it_or_are_listed(prepare, medtune_data, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(medtune_data / "wbcatt/images", images)
    gone = next(images.rglob("EO_501290.jpg"))
    gone.parent.chmod(0o755)
    gone.unlink()
    status, said = prepare(f"image_root={images}")
    assert status == 2 and "1 images cannot be used" in said and "EO_501290.jpg is not in" in said
    status, said = prepare(f"image_root={images}", "on_error=skip")
    assert status == 0 and "(1 left out: image missing or unreadable)" in said
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["skipped"]["test_reports"] == ["test/EO_501290"]
    assert manifest["counts"]["test_reports"] == 79
    assert "EO_501290" not in (tmp_path / "out/test.jsonl").read_text()


def test_no_image_at_all_is_an_error_even_when_skipping(prepare, tmp_path):
    (tmp_path / "bare").mkdir()
    status, said = prepare(f"image_root={tmp_path / 'bare'}", "on_error=skip")
    assert status == 2 and "No sample is left" in said


def test_tune_launches_it_from_any_folder(overrides, tmp_path):
    command = [TUNE, "run", "medtune/recipes/prepare.py", "--config", "prepare/wbcatt_official", *overrides]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out/manifest.json").read_text())["counts"]["test"] == 80


def test_a_misspelt_key_is_refused(prepare):
    status, said = prepare("outputdir=x")
    assert status == 2 and "did you mean 'output_dir'" in said
