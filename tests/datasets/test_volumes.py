"""Rows about volumes through the converter: slices as several images, tags, splits, refusals, the recipe."""

import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medtune.data.sample import Message
from medtune.datasets import jsonl_dataset
from medtune.datasets.prepared import Prepared
from medtune.datasets.volumes import prepare_volumes
from medtune.errors import ConfigError, DataError
from medtune.recipes.prepare import main
from tests.data.test_volumes import series
from tests.data.tools import row, write_rows

SHAPE = (9, 8, 20)


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """Two volumes, of which one lies head first."""
    folder = tmp_path / "ct"
    (folder / "deep").mkdir(parents=True)
    for number, (name, turn) in enumerate((("a.nii.gz", 1), ("deep/b.nii", -1))):
        data = np.random.default_rng(number).integers(-1000, 1000, SHAPE).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(data, np.diag([1, 1, turn, 1])), folder / name)
    return folder


def table(folder: Path, text: str) -> str:
    (folder / "rows.csv").write_text(text)
    return str(folder / "rows.csv")


def units(volumes: Path, name: str) -> np.ndarray:
    return np.asarray(nibabel.load(volumes / name).get_fdata())


def paths(prepared: Prepared, split: str = "train") -> list[tuple[str, ...]]:
    return [sample.images for sample in prepared.splits[split]]


def test_a_report_about_a_volume_gets_its_slices_in_order(tmp_path: Path, volumes: Path) -> None:
    rows = table(tmp_path, "volume,text\na.nii.gz,clear\ndeep/b.nii,a mass\n")
    prepared = prepare_volumes(rows, str(volumes), slices=3, margin=0, window=[40, 400])
    assert paths(prepared) == [
        tuple(f"a.nii.gz/axial_{index:04}.png" for index in (3, 10, 16)),
        tuple(f"deep/b.nii/axial_{index:04}.png" for index in (16, 9, 3)),
    ], "from the feet up, whatever the order in the file"
    assert [sample.messages for sample in prepared.splits["train"]] == [
        (Message("assistant", "clear"),),
        (Message("assistant", "a mass"),),
    ]
    assert prepared.summary == {"volumes": 2, "slices": 6} and prepared.notes == []


def test_the_slices_come_back_to_the_bit_as_nibabel_reads_them(tmp_path: Path, volumes: Path) -> None:
    rows = table(tmp_path, "volume,text,id\na.nii.gz,clear,p1\ndeep/b.nii,a mass,p2\n")
    out = tmp_path / "out"
    call = ["--config", "prepare/volumes", f"data.rows={rows}", f"data.volumes={volumes}", f"output_dir={out}"]
    assert main([*call, "data.window=[40,400]", "data.slices=4", "data.id_column=id"]) == 0
    source = jsonl_dataset(str(out / "train.jsonl"), str(out / "images.tar"))
    for index, name in enumerate(("a.nii.gz", "deep/b.nii")):
        sample = source[index]
        assert sample.id == f"p{index + 1}" and len(sample.images) == 4
        assert source.image_sizes(sample) == [(9, 8)] * 4
        for image, path in zip(source.open_images(sample), sample.images, strict=True):
            values = units(volumes, name)[::-1, ::-1, int(path[-8:-4])].T
            expected = np.rint(np.clip((values + 160) / 400, 0, 1) * 255)
            assert np.array_equal(np.asarray(image)[..., 0], expected)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["options"]["window"] == [40, 400] and set(manifest["outputs"]) == {"images.tar", "train.jsonl"}
    before = (out / "images.tar").read_bytes()
    assert main([*call, "data.window=[40,400]", "data.slices=4", "data.id_column=id"]) == 0
    assert (out / "images.tar").read_bytes() == before


def test_questions_of_every_layout_keep_their_text_and_get_a_tag_for_each_slice(tmp_path: Path, volumes: Path) -> None:
    asked = {
        "id": "q",
        "images": ["a.nii.gz", "deep/b.nii#slices=5,2"],
        "messages": [
            {"role": "user", "content": "Before: <image> after: <image> What changed?"},
            {"role": "assistant", "content": "Nothing."},
        ],
        "meta": {"answer": "Nothing."},
    }
    untagged = row("r", "clear", ("a.nii.gz#slices=0",))
    rows = write_rows(tmp_path / "rows.jsonl", [asked, untagged])
    prepared = prepare_volumes({"test": str(rows)}, str(volumes), slices=[1, 2, 3])
    first, second = prepared.splits["test"]
    assert first.messages[0].content == "Before: <image><image><image> after: <image><image> What changed?"
    assert first.meta == {"answer": "Nothing."} and first.images == (
        "a.nii.gz/axial_0001.png",
        "a.nii.gz/axial_0002.png",
        "a.nii.gz/axial_0003.png",
        "deep/b.nii/axial_0005.png",
        "deep/b.nii/axial_0002.png",
    )
    assert second.images == ("a.nii.gz/axial_0000.png",) and second.messages[0].content == "clear"
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A mass."}]
    path = tmp_path / "chat.json"
    path.write_text(json.dumps([{"id": "a", "image": "a.nii.gz", "conversations": turns}]))
    (sample,) = prepare_volumes(str(path), str(volumes), plane="coronal", slices=2).splits["train"]
    assert sample.messages[0].content == "<image><image>\nWhat?"
    assert sample.images == ("a.nii.gz/coronal_0002.png", "a.nii.gz/coronal_0005.png")


def test_a_table_of_questions_and_several_splits(tmp_path: Path, volumes: Path) -> None:
    rows = table(tmp_path, "scan,q,a\na.nii.gz,Is there a mass?,no\n")
    prepared = prepare_volumes(
        {"train": rows, "val": rows}, str(volumes), volume_column="scan", text_column="a", question_column="q"
    )
    assert prepared.counts() == {"train": 1, "val": 1}
    assert prepared.splits["val"][0].messages == (Message("user", "Is there a mass?"), Message("assistant", "no"))
    assert prepared.splits["val"][0].id == "rows:2"


def test_a_dicom_series_and_a_nifti_file_side_by_side(tmp_path: Path, volumes: Path) -> None:
    shown, _ = series(volumes / "p1/series")
    rows = table(tmp_path, "volume,text\np1/series,x\na.nii.gz,y\n")
    prepared = prepare_volumes(rows, str(volumes), slices=[3], window=[0, 2000])
    (tmp_path / "images.tar").write_bytes(b"".join(prepared.files["images.tar"]()))
    from medtune.data.images import ImageRoot

    image = np.asarray(ImageRoot(tmp_path / "images.tar").load("p1/series/axial_0003.png", "w"))[..., 0]
    assert np.abs(image - np.clip((shown[..., 3] + 1000) / 2000, 0, 1) * 255).max() <= 0.51


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("volume,text\nA.NII.GZ,x\n", "rows.csv, line 2: the image A.NII.GZ is not in .*, but a.nii.gz is; upper"),
        ("volume,text\nnone.nii,x\n", "rows.csv, line 2: the volume none.nii is not in .*; correct the path"),
        ("volume,text\n../out.nii,x\n", "line 2: .*leaves the image root"),
        ("volume,text\nlink.nii,x\n", "line 2: the volume link.nii is a link that leaves the folder"),
        ("volume,text\nfifo.nii,x\n", "line 2: .*fifo.nii is a FIFO"),
        ("volume,text\nbad.nii,x\n", "line 2: the volume bad.nii is truncated or damaged"),
        ("volume,text\na.nii.gz#slices=20,x\n", "line 2: the volume a.nii.gz has 20 axial slices, counted from 0"),
        ("volume,text\na.nii.gz#slices=one,x\n", "must be whole numbers from 0 on, joined by commas"),
        ("volume,text\na.nii.gz,\n", "line 2: the cell of column 'text' is empty"),
        ("volume,text\ndeep,x\n", "line 2: the volume deep is a folder without DICOM images"),
    ],
)
@pytest.mark.timeout(30)
def test_rows_that_cannot_be_used(tmp_path: Path, volumes: Path, text: str, said: str) -> None:
    (tmp_path / "out.nii").write_bytes(b"x")
    (volumes / "link.nii").symlink_to(tmp_path / "out.nii")
    (volumes / "bad.nii").write_bytes(b"x" * 500)
    os.mkfifo(volumes / "fifo.nii")
    with pytest.raises(DataError, match=said):
        prepare_volumes(table(tmp_path, text), str(volumes))


def test_rows_that_cannot_be_used_are_left_out_and_listed_if_asked(tmp_path: Path, volumes: Path) -> None:
    rows = table(tmp_path, "volume,text\nnone.nii,x\na.nii.gz,y\nnone.nii,z\n")
    with pytest.raises(DataError, match="2 rows cannot be used; the first: rows.csv, line 2.*\n.*data.on_error=skip"):
        prepare_volumes(rows, str(volumes))
    prepared = prepare_volumes(rows, str(volumes), on_error="skip")
    assert prepared.counts() == {"train": 1}
    assert prepared.summary["volumes_left_out"] == {"train": ["rows:2", "rows:4"]}
    assert prepared.notes[0].startswith("2 rows were left out; the first: rows.csv, line 2")


def test_a_volume_without_an_orientation_is_noted(tmp_path: Path, volumes: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros(SHAPE, dtype=np.int16), None)
    image.header["qform_code"] = image.header["sform_code"] = 0
    nibabel.save(image, volumes / "c.nii")
    prepared = prepare_volumes(table(tmp_path, "volume,text\nc.nii,x\na.nii.gz,x\n"), str(volumes))
    assert prepared.notes == ["1 volumes (c.nii) name no orientation, so that left and right may be exchanged"]


def test_options_that_are_none(tmp_path: Path, volumes: Path) -> None:
    rows = table(tmp_path, "volume,text\na.nii.gz,x\n")
    for options, said in (
        ({"window": [40]}, "a centre and a width"),
        ({"plane": "front"}, "plane"),
        ({"on_error": "ignore"}, "on_error"),
        ({"rows": {}}, "rows: name at least one file"),
    ):
        with pytest.raises(ConfigError, match=said):
            prepare_volumes(**{"rows": rows, "volumes": str(volumes), **options})
    with pytest.raises(DataError, match="does not exist; correct 'volumes'"):
        prepare_volumes(rows, str(tmp_path / "none"))
    with pytest.raises(DataError, match="must be a .jsonl, .json or .csv file"):
        prepare_volumes(str(tmp_path / "rows.txt"), str(volumes))
