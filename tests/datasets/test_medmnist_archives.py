"""MedMNIST's files that are damaged, made up, encrypted, or of MedMNIST 3D."""

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from medtune.datasets.medmnist import FACTS, find_files, prepare_medmnist
from medtune.datasets.medmnist.npz import MedMnistFile
from medtune.errors import ConfigError, DataError
from tests.datasets.medmnist_files import medmnist_arrays, write_medmnist


def with_members(path: Path, members: dict[str, bytes]) -> Path:
    """A whole file in which some arrays are replaced by bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in medmnist_arrays("blood").items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            archive.writestr(f"{name}.npy", members.get(name, buffer.getvalue()))
    return path


def header(shape: str, descr: str = "'|u1'") -> bytes:
    """An array whose header is written by hand."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (63 - (len(text) + 10) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


@pytest.mark.parametrize("name", ["train_images", "train_labels"])
@pytest.mark.parametrize(
    "shape",
    [f"({2**43}, 1)", f"({2**43}, 28, 28)", "(9, 1073741824, 8192)", f"({2**70}, {2**70})", "(-9, 1)", "(9, -28, -28)"],
)
def test_a_header_that_names_terabytes_or_less_than_nothing(tmp_path: Path, name: str, shape: str) -> None:
    path = with_members(tmp_path / "bloodmnist.npz", {name: header(shape) + bytes(100)})
    with pytest.raises(DataError, match=f"{name} cannot be read .*(more values than it holds|negative length)"):
        MedMnistFile(path, FACTS["blood"])


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("train_labels", b""),
        ("train_labels", b"\x93NUMPY\x03\x00\x00\x00"),
        ("train_labels", header("(9, 1)", "'|O'")),
        ("train_labels", header("(9, 1)", "'not a type'")),
        ("train_labels", header("(9, 1)", "[('a', '<u8')]") + bytes(72)),
        ("train_images", header("'nine'")),
        ("train_images", header("(9, 28, 28)", "{}")),
        ("val_images", b"\x93NUMPY\x01\x00\xff\xff{"),
    ],
)
def test_a_header_that_is_none(tmp_path: Path, name: str, data: bytes) -> None:
    with pytest.raises(DataError, match=f"{name} "):
        MedMnistFile(with_members(tmp_path / "bloodmnist.npz", {name: data}), FACTS["blood"])


def patched(path: Path, **fields: tuple[int, bytes]) -> Path:
    """Write into the local and the central header of every member: name -> (offset from the flags on, bytes)."""
    data = bytearray(path.read_bytes())
    for mark, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = data.find(mark)
        while at >= 0:
            for offset, value in fields.values():
                data[at + flags + offset : at + flags + offset + len(value)] = value
            at = data.find(mark, at + 4)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("field", "said"),
    [((0, b"\1\0"), "encrypted"), ((2, b"\x0c\0"), "data stream"), ((2, b"\x63\0"), "not supported")],
    ids=["encrypted", "bzip2", "unknown compression"],
)
def test_an_archive_that_is_encrypted_or_compressed_otherwise(
    tmp_path: Path, field: tuple[int, bytes], said: str
) -> None:
    path = patched(write_medmnist(tmp_path, "blood"), field=field)
    with pytest.raises(DataError, match=f"bloodmnist.npz: train_images cannot be read .*{said}.*get a whole copy"):
        MedMnistFile(path, FACTS["blood"])


def test_resource_files_in_the_archive_do_not_matter(tmp_path: Path) -> None:
    path = write_medmnist(tmp_path, "blood")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("__MACOSX/._train_images.npy", b"\0\5\x16\7")
        archive.writestr(".DS_Store", b"x")
    assert prepare_medmnist(str(path)).counts()["train"] == 9
    write_medmnist(tmp_path / "hidden", "blood", "._bloodmnist.npz")
    with pytest.raises(DataError, match="no .npz file of a set"):
        find_files(str(tmp_path / "hidden"))


@pytest.mark.parametrize(
    "file", ["organmnist3d.npz", "nodulemnist3d_64.npz", "VesselMNIST3D.npz", "synapsemnist3d-28.npz"]
)
def test_files_of_medmnist_3d_are_called_so(tmp_path: Path, file: str) -> None:
    said = "is of MedMNIST 3D, whose images are volumes; this converter reads the 12 sets of MedMNIST 2D"
    np.savez(tmp_path / file, train_images=np.zeros((2, 28, 28, 28), np.uint8))
    for files in (str(tmp_path / file), str(tmp_path)):
        with pytest.raises(DataError, match=f"{file} {said}.*prepare/volumes"):
            find_files(files)
    with pytest.raises(ConfigError, match=f"sets: organ3d {said}"):
        find_files(str(tmp_path), ["organ3d"])
    write_medmnist(tmp_path, "organs")
    assert list(find_files(str(tmp_path))) == ["organs"]


def test_other_names_are_not_called_3d(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="begins with no set of MedMNIST 2D; did you mean"):
        find_files(str(tmp_path / "bloodmnst.npz"))
