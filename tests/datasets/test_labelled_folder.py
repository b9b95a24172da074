"""Folders of labelled images as they come from other machines: hidden files, splits of any name, tar files."""

import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from medtune.datasets.labelled import prepare_labelled_csv, prepare_labelled_folder
from medtune.datasets.labelled_folder import find_images
from medtune.datasets.prepared import Prepared
from medtune.errors import DataError


def fill(root: Path, names: Sequence[str]) -> Path:
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2), number).save(path, "PNG")
    return root


def packed(root: Path) -> Path:
    with tarfile.open(root.with_suffix(".tar"), "w") as archive:
        archive.add(root, arcname=".")
    return root.with_suffix(".tar")


def images(prepared: Prepared) -> list[str]:
    return sorted(sample.images[0] for split in prepared.splits.values() for sample in split)


HIDDEN = (
    "benign/.ipynb_checkpoints/0-checkpoint.png",
    "benign/._0.png",
    "benign/Thumbs.db",
    "malignant/.DS_Store",
    "malignant/deep/@eaDir/2.png",
    "__MACOSX/benign/0.png",
    "__MACOSX/benign/._0.png",
    ".ipynb_checkpoints/2-checkpoint.png",
    ".Trash-1000/files/0.png",
)


@pytest.mark.parametrize("archive", [False, True])
def test_hidden_and_resource_files_are_passed_over_and_counted(tmp_path: Path, archive: bool) -> None:
    shown = ("benign/0.png", "benign/1.png", "malignant/2.png", "malignant/deep/3.png")
    root = fill(tmp_path / "skin", [*shown, *HIDDEN])
    (root / "benign/notes.txt").write_text("x")
    prepared = prepare_labelled_folder(str(packed(root) if archive else root), "skin", "dermatoscope")
    assert images(prepared) == list(shown)
    assert prepared.summary["classes"] == ["benign", "malignant"]
    assert prepared.summary["files_that_are_no_images"] == 1
    assert prepared.summary["hidden_files"] == {
        ".DS_Store": 1,
        "._*": 1,
        ".Trash-1000": 1,
        ".ipynb_checkpoints": 2,
        "@eaDir": 1,
        "Thumbs.db": 1,
        "__MACOSX": 2,
    }
    assert prepared.notes[:1] == [
        "9 hidden or resource files were passed over (.ipynb_checkpoints, __MACOSX, .DS_Store, .Trash-1000, ._*, ...)"
    ]
    assert not any("MACOSX" in sample.messages[0].content for split in prepared.splits.values() for sample in split)


@pytest.mark.parametrize("archive", [False, True])
def test_hidden_folders_beside_split_folders_do_not_make_them_classes(tmp_path: Path, archive: bool) -> None:
    names = ["Train/a/0.png", "VALID/a/1.png", "Testing/a/2.png", "__MACOSX/x/3.png", ".ipynb_checkpoints/4.png"]
    root = fill(tmp_path / "parted", names)
    rows = find_images(packed(root) if archive else root).rows
    assert [(row.image, row.split, row.labels) for row in rows] == [
        ("Testing/a/2.png", "test", ("a",)),
        ("Train/a/0.png", "train", ("a",)),
        ("VALID/a/1.png", "val", ("a",)),
    ]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("Train", "Valid", "TEST", "masks"), r"named like splits \(TEST, Train, Valid\) beside others \(masks\)"),
        (("train_images", "test_images"), r"named like splits \(test_images, train_images\); if they are splits"),
        (("Training Set", "test-2", "extra"), r"\(Training Set, test-2\) beside others \(extra\)"),
        (("test", "benign", "malignant"), r"\(test\) beside others \(benign, malignant\)"),
    ],
)
def test_split_folders_beside_others_are_refused(tmp_path: Path, names: Sequence[str], said: str) -> None:
    root = fill(tmp_path / "x", [f"{name}/a/0.png" for name in names])
    with pytest.raises(DataError, match=f"{said}.*name them train, val and test .*list them in 'classes'"):
        find_images(root)


def test_classes_that_are_called_like_splits_can_be_listed(tmp_path: Path) -> None:
    root = fill(tmp_path / "x", [f"{name}/{n}.png" for name in ("test", "control") for n in range(4)])
    prepared = prepare_labelled_folder(str(root), "x", "test", classes=["control", "test"], test_share=0, val_share=0)
    assert prepared.summary["classes"] == ["control", "test"] and len(images(prepared)) == 8


def test_splits_inside_of_classes_are_refused(tmp_path: Path) -> None:
    root = fill(tmp_path / "x", ["benign/train/0.png", "benign/test/1.png", "malignant/train/2.png"])
    with pytest.raises(DataError, match=r"benign holds folders named like splits \(test, train\); the order must be"):
        find_images(root)


def test_words_that_only_begin_like_a_split_are_classes(tmp_path: Path) -> None:
    root = fill(tmp_path / "x", ["testis/0.png", "valve/1.png", "trained eye/2.png"])
    assert [row.labels[0] for row in find_images(root).rows] == ["testis", "trained eye", "valve"]


def test_a_class_folder_that_is_a_link(tmp_path: Path) -> None:
    root = fill(tmp_path / "x", ["a/0.png"])
    fill(tmp_path / "elsewhere", ["0.png"])
    (root / "b").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="class folder .*b is a link, which is not followed"):
        find_images(root)


def test_a_root_that_is_absent(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none does not exist"):
        find_images(tmp_path / "none")


def test_the_names_of_splits_in_a_table(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,label,split\na.png,x,Training\nb.png,x,validate\nc.png,y,TESTING\n")
    prepared = prepare_labelled_csv(str(tmp_path / "t.csv"), "x", "test", split_column="split")
    assert {name: len(list(rows)) for name, rows in prepared.splits.items()} == {"train": 1, "val": 1, "test": 1}
