"""Tar files that are damaged or made up, as image roots."""

import io
import tarfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medtune.data.images import ImageRoot
from medtune.errors import DataError

pytestmark = pytest.mark.timeout(20)


def picture(width: int = 3) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width, 2)).save(buffer, "PNG")
    return buffer.getvalue()


def whole(names: tuple[str, ...] = ("a.png", "b.png"), format: int = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(picture())
            archive.addfile(member, io.BytesIO(picture()))
    return buffer.getvalue()


def with_size(data: bytes, field: bytes, kind: bytes | None = None, at: int = 0) -> bytes:
    """Write another size (and type) into the header at a byte, with a right checksum."""
    header = bytearray(data[at : at + 512])
    header[124:136] = field
    header[156:157] = kind or header[156:157]
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:at] + bytes(header) + data[at + 512 :]


NEGATIVE = b"\xff" * 11 + b"\x00"  # base 256: -256
BACK = b"\xff" * 10 + b"\xfc\x00"  # base 256: -1024
HUGE = b"\x80" + b"\x7f" * 11
SIZES = {
    "negative": NEGATIVE,
    "back": BACK,
    "huge": HUGE,
    "octal": b"77777777777\0",
    "text": b"not a size!\0",
    "minus": b"-0000000010\0",
}


@pytest.mark.parametrize("field", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("kind", [b"0", b"x", b"g", b"L", b"K", b"S", b"5"])
def test_a_member_of_impossible_size(tmp_path: Path, field: bytes, kind: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(with_size(whole(), field, kind))
    try:
        root = ImageRoot(tmp_path / "a.tar")
    except DataError as error:
        assert "is not a plain tar file" in str(error)
    else:  # a folder has no content, whatever its size says; a sparse file is passed over
        assert kind in (b"5", b"S")
        with suppress(DataError):
            assert root.size("b.png", "w") == (3, 2)


def test_a_sparse_member_that_leads_back_to_an_earlier_one(tmp_path: Path) -> None:
    """The size of its data is negative, that of the file which it stands for is not; a member takes 1024 bytes."""
    back = (-1536).to_bytes(12, "big", signed=True)  # from the data of the third member to the header of the second
    (tmp_path / "a.tar").write_bytes(with_size(whole(("a.png", "b.png", "c.png")), back, b"S", at=2048))
    with pytest.raises(DataError, match="is not a plain tar file"):
        ImageRoot(tmp_path / "a.tar")


def test_an_extended_header_that_makes_a_member_larger_than_the_file(tmp_path: Path) -> None:
    """This key changes the size alone: the next header is where it was, so reading goes on as if nothing were wrong."""
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("a.png", "b.png"):
            member = tarfile.TarInfo(name)
            member.size, member.pax_headers = len(picture()), {"GNU.sparse.realsize": "1000000"}
            archive.addfile(member, io.BytesIO(picture()))
    with pytest.raises(DataError, match="is not a plain tar file"):
        ImageRoot(tmp_path / "a.tar")


@pytest.mark.parametrize("share", [0.2, 0.5, 0.75])
def test_an_archive_that_is_cut_off_inside_of_a_member(tmp_path: Path, share: float) -> None:
    data = whole(tuple(f"{n}.png" for n in range(20)))[: 20 * 1024]
    (tmp_path / "a.tar").write_bytes(data[: int(share * len(data)) // 1024 * 1024 + 530])
    with pytest.raises(DataError, match=r"a.tar is not a plain tar file \(.*give a folder or an uncompressed .tar"):
        ImageRoot(tmp_path / "a.tar")


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_of_every_format(tmp_path: Path, format: int) -> None:
    long = "d" * 70 + "/" + "e" * 60 + "/Größe.png"
    (tmp_path / "a.tar").write_bytes(whole(("x.png", long), format))
    root = ImageRoot(tmp_path / "a.tar")
    assert list(root.names()) == sorted(["x.png", long]) and root.size(long, "w") == (3, 2)
    with pytest.raises(DataError, match=f"but {long} is; upper and lower case count"):
        root.size(long.upper(), "w")


def test_images_of_a_tar_are_read_as_those_of_a_folder(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    pages = [Image.fromarray(rng.integers(0, 256, (90, 70, 3), dtype=np.uint8)) for _ in range(3)]
    pages[0].save(folder / "a.tif", save_all=True, append_images=pages[1:], compression="tiff_lzw")
    pages[0].save(folder / "a.gif", save_all=True, append_images=pages[1:])
    pages[0].save(folder / "a.jpg")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(folder, arcname=".")
    for name in ("a.tif#frame=2", "a.gif#frame=1", "a.jpg"):
        one, other = (np.asarray(ImageRoot(path).load(name, "w")) for path in (folder, tmp_path / "a.tar"))
        assert np.array_equal(one, other)
    assert np.array_equal(np.asarray(ImageRoot(tmp_path / "a.tar").load("a.tif#frame=2", "w")), np.asarray(pages[2]))
