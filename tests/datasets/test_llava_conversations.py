"""LLaVA's conversations with images that are gone: counted, listed, refused or left out."""

import csv
import json

import pytest

from medtune.data.source import JsonlSource
from medtune.datasets.llava_conversations import prepare_llava_json
from medtune.errors import ConfigError, DataError
from medtune.recipes.prepare import main
from tests.data.tools import write_pictures


def item(number, image, key="conversatons"):
    turns = [{"from": "human", "value": "What is shown?\n<image>"}, {"from": "gpt", "value": f"Case {number}."}]
    return {"id": f"c{number}", "image": image, "pair_id": "x", "domain": {"ct_scan": True}, key: turns}


@pytest.fixture
def run(tmp_path, capsys):
    """Runs the recipe on six conversations, one without an image, three on images that cannot be used."""
    images = write_pictures(tmp_path / "images", 3)
    (images / "torn.png").write_bytes((images / "0.png").read_bytes()[:20])
    rows = [
        item(0, "0.png"),
        item(1, "gone.jpg"),
        item(2, "1.png", "conversations"),
        item(3, "gone.jpg"),
        item(4, "torn.png"),
    ]
    rows.append({"id": "c5", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]})
    (tmp_path / "med.json").write_text(json.dumps(rows))

    def call(*more):
        told = [f"data.source={tmp_path / 'med.json'}", f"image_root={images}", f"output_dir={tmp_path / 'out'}"]
        status = main(["--config", "prepare/llava_json", *told, *more])
        said = capsys.readouterr()
        return status or 0, said.out + said.err

    return call


def listed(tmp_path):
    with (tmp_path / "out/unusable_images.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_missing_images_are_refused_counted_and_listed(run, tmp_path):
    status, said = run()
    assert status == 2
    assert "2 images cannot be used, of 3 samples; all are listed in" in said and "unusable_images.csv" in said
    gone, torn = listed(tmp_path)
    assert (gone["image"], gone["samples"], gone["first_sample"]) == ("gone.jpg", "2", "c1")
    assert "is not in" in gone["reason"] and torn["image"] == "torn.png"
    assert not (tmp_path / "out/train.jsonl").exists()


def test_missing_images_are_left_out_counted_and_listed(run, tmp_path):
    status, said = run("on_error=skip")
    assert status == 0 and "2 images cannot be used, of 3 samples" in said and "(3 left out" in said
    assert [row["image"] for row in listed(tmp_path)] == ["gone.jpg", "torn.png"]
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["counts"] == {"train": 3} and manifest["skipped"] == {"train": ["c1", "c3", "c4"]}
    assert (manifest["unusable_images"], manifest["without_image"]) == (2, 1)
    written = JsonlSource(tmp_path / "out/train.jsonl", tmp_path / "images")
    assert [written[at].id for at in range(3)] == ["c0", "c2", "c5"]
    assert "already holds exactly this" in run("on_error=skip")[1]


def test_the_list_goes_when_the_images_are_there(run, tmp_path):
    run()
    for name in ("gone.jpg", "torn.png"):
        (tmp_path / "images" / name).write_bytes((tmp_path / "images/0.png").read_bytes())
    status, said = run()
    assert status == 0 and "cannot be used" not in said
    assert not (tmp_path / "out/unusable_images.csv").exists()
    assert "unusable_images" not in json.loads((tmp_path / "out/manifest.json").read_text())


def test_a_dry_run_writes_no_list(run, tmp_path):
    status, said = run("dry_run=true", "on_error=skip")
    assert status == 0 and "2 images cannot be used, of 3 samples" in said and "listed" not in said
    assert not (tmp_path / "out").exists()


def test_a_file_of_the_users_own_is_not_replaced_by_the_list(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/unusable_images.csv").write_text("mine")
    status, said = run()
    assert status == 2 and "unusable_images.csv" in said
    assert (tmp_path / "out/unusable_images.csv").read_text() == "mine"


def test_wrong_sources_are_one_sentence(tmp_path):
    (tmp_path / "a.json").write_text('[{"id": 1}]')
    with pytest.raises(DataError, match=r"a\.json, item 1: the field 'messages' is missing"):
        prepare_llava_json(str(tmp_path / "a.json")).counts()
    with pytest.raises(ConfigError, match="name must not be empty"):
        prepare_llava_json(str(tmp_path / "a.json"), name=" ")
