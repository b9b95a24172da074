"""Damaged tar, zip and npz files: what is in them is read, or a MedtuneError says why not."""

import io
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medtune.data.images import ImageRoot
from medtune.datasets.medmnist import FACTS
from medtune.datasets.medmnist.npz import MedMnistFile
from medtune.errors import DataError, MedtuneError
from tests.datasets.medmnist_files import medmnist_arrays
from tests.fuzz.mutations import bounded, damaged

pytestmark = [pytest.mark.timeout(120), pytest.mark.filterwarnings("ignore")]
NAMES = ("a.png", "deep/B.png", "d" * 70 + "/" + "e" * 60 + ".png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def packed(format: int) -> bytes:
    picture = io.BytesIO()
    Image.new("L", (3, 2)).save(picture, "PNG")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for name in NAMES:
            member = tarfile.TarInfo(name)
            member.size = len(picture.getvalue())
            archive.addfile(member, io.BytesIO(picture.getvalue()))
    return buffer.getvalue()[: 1024 * (len(NAMES) + 3)]


TARS = [packed(format) for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]


def right_sums(data: bytes) -> bytes:
    """A tar file in which every block that looks like a header has a right checksum."""
    blocks = [bytearray(data[at : at + 512]) for at in range(0, len(data), 512)]
    for block in blocks:
        if block[257:262] == b"ustar" and len(block) == 512:
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
    return b"".join(blocks)


def test_tar(folder: Path) -> None:
    outcomes: Counter[str] = Counter()

    @bounded(500)
    @given(data=damaged(TARS, 512), mended=st.booleans())
    def damages(data: bytes, mended: bool) -> None:
        path = folder / "x.tar"
        path.write_bytes(right_sums(data) if mended else data)
        try:
            root = ImageRoot(path)
        except DataError:
            outcomes["refused"] += 1
            return
        assert all(isinstance(name, str) for name in root.names())
        for name in (*NAMES, "A.png"):
            try:
                outcomes[f"read {root.size(name, 'rows, line 1') == (3, 2)}"] += 1
                root.load(name, "rows, line 1")
            except DataError as error:
                assert str(error).startswith("rows, line 1: ")
                outcomes["absent"] += 1

    damages()

    assert min(outcomes["refused"], outcomes["read True"], outcomes["absent"]) > 50, outcomes


def npz(compressed: bool) -> bytes:
    buffer = io.BytesIO()
    save = np.savez_compressed if compressed else np.savez
    save(buffer, **medmnist_arrays("blood", (3, 2, 2), 4))
    return buffer.getvalue()


def members(data: bytes) -> Iterator[bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for name in archive.namelist():
            yield archive.read(name)


NPZ = [npz(True), npz(False)]
ARRAYS = list(members(NPZ[1]))


def opened(path: Path) -> str:
    """Read all that a file holds; what came of it."""
    try:
        file = MedMnistFile(path, FACTS["blood"])
        for split, size in file.sizes.items():
            rows = [row for row, pixels in file.images(split, range(size)) if pixels.dtype == np.uint8]
            assert rows == list(range(size)) and all(file.indices(split, row) for row in rows)
        return "read"
    except MedtuneError as error:
        assert "bloodmnist.npz" in str(error)
        return "refused"


def test_npz(folder: Path) -> None:
    """Damages of the archive: its entries, its directory and the compressed data."""
    outcomes: Counter[str] = Counter()

    @bounded(450)
    @given(data=damaged(NPZ, 300), at_the_end=st.booleans())
    def damages(data: bytes, at_the_end: bool) -> None:
        if at_the_end:  # the directory of a zip file is its last part
            data = NPZ[1][:-400] + data[:400] if len(data) < 100 else NPZ[0][: -len(data[-300:])] + data[-300:]
        (folder / "bloodmnist.npz").write_bytes(data)
        outcomes[opened(folder / "bloodmnist.npz")] += 1

    damages()

    assert min(outcomes["read"], outcomes["refused"]) > 5, outcomes


def test_arrays(folder: Path) -> None:
    """Damages of the arrays in a whole archive: their headers name other shapes and types."""
    outcomes: Counter[str] = Counter()
    names = [name for name in medmnist_arrays("blood", (3, 2, 2), 4)]

    @bounded(350)
    @given(
        data=damaged(ARRAYS, 118),
        which=st.integers(0, len(names) - 1),
        shape=st.sampled_from(
            [None, "(3,)", "(-3, 4, 4)", "(99999999999, 4, 4, 3)", "((3,), 1)", "(3, 1L)", "'x'", "()"]
        ),
        kind=st.sampled_from([None, "'|O'", "'<f8'", "'<i8'", "'|S9'", "[('a','<i8')]", "'<U4'", "()"]),
    )
    def damages(data: bytes, which: int, shape: str | None, kind: str | None) -> None:
        arrays = dict(zip(names, ARRAYS, strict=True))
        if shape or kind:
            text = (
                f"{{'descr': {kind or repr('|u1')}, 'fortran_order': False, 'shape': {shape or '(3, 1)'}, }}".encode()
            )
            data = b"\x93NUMPY\x01\x00v\x00" + text.ljust(117) + b"\n" + bytes(48)
        arrays[names[which]] = data
        with zipfile.ZipFile(folder / "bloodmnist.npz", "w") as archive:
            for name, content in arrays.items():
                archive.writestr(f"{name}.npy", content)
        outcomes[opened(folder / "bloodmnist.npz")] += 1

    damages()
    assert outcomes["refused"] > 100, outcomes
