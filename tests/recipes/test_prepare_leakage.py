"""The leakage gate of the prepare recipe, and what it leaves in the manifest, the results and the report."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from medtune.reporting.leakage import known_overlaps, leakage_text
from tests.recipe_modules import load_recipe

prepare = load_recipe("prepare")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Six images of two classes with a split; d (test) has the pixels of a (train), and another label."""
    images = tmp_path / "images"
    images.mkdir()
    for name, seed in zip("abcdef", (1, 2, 3, 1, 4, 5), strict=True):
        pixels = np.random.default_rng(seed).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{name}.png")
    rows = ["image,label,split", "a.png,one,train", "b.png,two,train", "c.png,one,val", "d.png,two,test",
            "e.png,one,test", "f.png,two,val"]  # fmt: skip
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


@pytest.fixture
def run(table: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(table / "cache"))

    def run(*more: str) -> tuple[int, str]:
        given = [f"data.table={table / 'labels.csv'}", f"image_root={table / 'images'}", f"output_dir={table / 'out'}"]
        status = prepare.main(
            ["--config", "prepare/labelled_csv", "data.split_column=split", "data.image_column=image", *given, *more]
        )
        said = capsys.readouterr()
        return status, said.out + said.err

    return run


def test_an_image_in_two_splits_and_with_two_labels_is_refused_and_listed(run, table):
    status, said = run()
    assert status == 2 and "images of test with the same pixels as an image of train: 1" in said
    assert "allow_leakage=[identical_images, conflicting_labels]" in said
    rows = list(csv.DictReader((table / "out/leakage.csv").open()))
    assert [row["kind"] for row in rows] == ["identical_images", "conflicting_labels"]
    assert {(row["first_image"], row["second_image"]) for row in rows} == {("a.png", "d.png")}
    assert not (table / "out/train.jsonl").exists() and not (table / "out/manifest.json").exists()


def test_what_is_allowed_by_name_is_counted_in_the_manifest(run, table):
    status, _ = run("allow_leakage=[identical_images,conflicting_labels]")
    assert status == 0
    manifest = json.loads((table / "out/manifest.json").read_text())["leakage"]
    assert manifest == {
        "images": 6,
        "compared": "pixels",
        "found": {"identical_images": {"train-test": 1}, "conflicting_labels": {"train-test": 1}},
        "allowed": ["conflicting_labels", "identical_images"],
    }


def test_data_without_overlaps_leave_no_list_and_a_clean_manifest(run, table):
    assert run()[0] == 2
    Image.new("RGB", (16, 16)).save(table / "images/d.png")
    status, _ = run()
    assert status == 0 and not (table / "out/leakage.csv").exists()
    assert json.loads((table / "out/manifest.json").read_text())["leakage"]["found"] == {}


def test_a_dry_run_says_what_was_found_and_writes_nothing(run, table):
    status, said = run("dry_run=true")
    assert status == 0 and "leakage: images of test with the same pixels" in said and not (table / "out").exists()


def test_the_check_can_be_left_out_and_the_manifest_says_so(run, table):
    assert run("check_leakage=false")[0] == 0
    assert json.loads((table / "out/manifest.json").read_text())["leakage"] == {"checked": False}
    assert "not checked" in leakage_text({"checked": False})


def test_similar_images_are_refused_if_they_are_looked_for(run, table):
    pytest.importorskip("imagehash")
    plain = Image.open(table / "images/b.png")
    plain.point(lambda value: min(255, value + 1)).save(table / "images/e.png")
    allowed = "allow_leakage=[identical_images,conflicting_labels]"
    status, said = run(allowed, "near_duplicates=2")
    assert status == 2 and "images of test that look like an image of train: 1" in said
    assert run(allowed)[0] == 0


def test_a_wrong_kind_and_a_wrong_number_of_bits_are_refused_when_the_config_is_read(run):
    assert run("allow_leakage=[identical]")[0] == 2 and run("near_duplicates=40")[0] == 2


def test_a_report_names_the_overlaps_of_the_data():
    known = {"images": 6, "compared": "pixels", "found": {"identical_images": {"train-test": 4}},
             "allowed": ["identical_images"]}  # fmt: skip
    text = leakage_text(known)
    assert text == (
        "identical images train-test: 4; allowed by name: identical_images; 6 images compared by their pixels"
    )
    clean = {"images": 6, "compared": "pixels", "found": {}, "allowed": []}
    runs = [SimpleNamespace(results={"provenance": {"leakage": one}}) for one in (known, known, clean, None)]
    assert known_overlaps(runs) == [text]
    assert leakage_text(clean).startswith("none found") and leakage_text(None).startswith("not known")
