"""CBIS-DDSM, SKINCON and MIMIC-CXR through the prepare recipe, from the owners' files to samples read back."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from medtune.data.folders import RECORD
from medtune.data.sample import Sample
from medtune.data.source import SampleSource
from medtune.datasets import jsonl_dataset
from medtune.datasets.prepared import Prepared, Stream
from medtune.evaluation.questions import read_questions
from medtune.recipes import prepare as recipe
from medtune.recipes.prepare import main
from tests.recipes.doors import DOORS, mimic_cxr

QUESTIONS = ("val", "test")


@pytest.mark.parametrize("door", DOORS)
def test_from_the_owners_files_to_samples(
    door: Callable[[Path, Path], list[str]], medtune_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = [*door(tmp_path, medtune_data), f"output_dir={tmp_path / 'out'}"]
    assert main([*call, "dry_run=true"]) == 0 and not (tmp_path / "out").exists()
    assert main(call) == 0, capsys.readouterr().err
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    manifest = json.loads(written["manifest.json"])
    assert set(manifest["counts"]) == {"train", "val_reports", "val", "test_reports", "test"}
    assert all(manifest["counts"].values()) and str(tmp_path) not in written["manifest.json"].decode()
    root = next(part for part in call if part.startswith("image_root=")).removeprefix("image_root=")
    for split, count in manifest["counts"].items():
        source: SampleSource = jsonl_dataset(str(tmp_path / f"out/{split}.jsonl"), root, pad_to_square=32)
        assert len(source) == count
        for index in (0, count - 1):
            sample = source[index]
            assert ("options" in sample.meta) == (split in QUESTIONS)
            assert source.open_images(sample)[0].size == (32, 32) == source.image_sizes(sample)[0]
    majority = json.loads(written["training_majority.json"])
    assert {q.meta["attribute"] for q in read_questions(tmp_path / "out/test.jsonl")} <= set(majority)
    capsys.readouterr()
    assert main(call) == 0 and "already holds exactly this" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == written


def test_streams_with_missing_images(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(recipe, "_REMEMBERED", 3)  # images are forgotten and checked again
    call = [*mimic_cxr(tmp_path, tmp_path), f"output_dir={tmp_path / 'out'}"]
    assert main([*call, "dry_run=true"]) == 0
    before = capsys.readouterr().out
    assert main([*call, f"output_dir={tmp_path / 'whole'}"]) == 0
    gone = json.loads((tmp_path / "whole/test.jsonl").read_text().splitlines()[0])["images"][0]
    (tmp_path / "mimic/files" / gone).unlink()
    capsys.readouterr()
    assert main(call) == 2 and "1 images cannot be used" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").glob("[!.]*")] == ["unusable_images.csv"]
    assert main([*call, "on_error=skip"]) == 0
    assert "left out: image missing or unreadable" in (said := capsys.readouterr().out) and said != before
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    whole = json.loads((tmp_path / "whole/manifest.json").read_text())
    assert set(manifest["skipped"]) == {"test_reports", "test"}
    for split, count in whole["counts"].items():
        assert manifest["counts"][split] == count - len(manifest["skipped"].get(split, []))
        assert gone not in (tmp_path / f"out/{split}.jsonl").read_text()


def test_data_that_change_between_the_two_passes_are_not_written(tmp_path: Path, monkeypatch, capsys) -> None:
    passes = iter(range(9))

    def samples():
        yield Sample(f"report {next(passes)}", (), (), {})

    monkeypatch.setattr(recipe, "instantiate", lambda component: Prepared("x", {"train": Stream(samples)}, {}, {}))
    status = main(["--config", "prepare/wbcatt", "image_root=null", f"output_dir={tmp_path / 'out'}"])
    assert status == 2 and "train.jsonl: the data it is made of changed while it was written" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == [RECORD], "whose the folder is, and nothing else"
