"""Files of several frames, orientations and palettes of TIFF, and files that lie about their size."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medtune.data import png
from medtune.data.images import ImageRoot
from medtune.data.preflight import preflight
from medtune.data.source import JsonlSource
from medtune.errors import DataError
from tests.data.test_images import UPRIGHT, noise
from tests.data.test_preflight import plain
from tests.data.tools import LetterTransform, row, write_rows

WHERE = "reports.csv, line 7 (id 'p1')"
SHADES = (10, 20, 30)


def films(folder: Path) -> list[str]:
    """Films of three frames in shades of grey, each larger than the part of a file that is read at first."""
    speckled = np.random.default_rng(0).integers(0, 8, (500, 700), dtype=np.uint8)
    frames = [Image.fromarray(speckled + shade) for shade in SHADES]
    rest = {"save_all": True, "append_images": frames[1:]}
    frames[0].save(folder / "film.gif", **rest)
    frames[0].save(folder / "film.png", **rest)
    frames[0].save(folder / "film.tif", **rest)
    frames[0].save(folder / "film.webp", lossless=True, **rest)
    names = ["film.gif", "film.png", "film.tif", "film.webp"]
    assert all((folder / name).stat().st_size > 1 << 18 for name in names)
    return names


def test_a_film_of_any_size_is_refused_before_training(tmp_path: Path) -> None:
    root = ImageRoot(tmp_path)
    for name in films(tmp_path):
        for read in (root.size, root.load):
            with pytest.raises(DataError, match=f"{name} holds 3 frames; .* from '{name}#frame=0' to '{name}#frame=2'"):
                read(name, WHERE)


def test_the_frame_that_the_row_names_is_read(tmp_path: Path) -> None:
    root = ImageRoot(tmp_path)
    for name in films(tmp_path):
        for frame, shade in enumerate(SHADES):
            image = root.load(f"{name}#frame={frame}", WHERE)
            assert image.size == root.size(f"{name}#frame={frame}", WHERE) == (700, 500)
            values = np.asarray(image)[..., 0].astype(int)
            assert shade <= values.min() and values.max() < shade + 8, f"{name} {frame}"


def test_a_frame_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    noise((3, 2)).save(tmp_path / "one.png")
    noise((3, 2)).save(tmp_path / "two.tif", save_all=True, append_images=[noise((3, 2))])
    root = ImageRoot(tmp_path)
    assert root.load("one.png#frame=0", WHERE).size == (3, 2)
    for name, said in (
        ("one.png#frame=1", "holds 1 frames, counted from 0, so that there is no frame 1"),
        ("two.tif#frame=2", "holds 2 frames"),
        ("two.tif#frame=-1", "must be a whole number from 0 on"),
        ("two.tif#frame=", "must be a whole number"),
        ("../two.tif#frame=1", "leaves the image root"),
    ):
        for read in (root.size, root.load):
            with pytest.raises(DataError, match=said):
                read(name, WHERE)


def test_pages_of_a_tiff_have_their_own_sizes_and_orientations(tmp_path: Path) -> None:
    pages = [noise((5, 3)), noise((8, 4))]
    buffers = []
    for page, orientation in zip(pages, (1, 6), strict=True):
        exif = Image.Exif()
        exif[0x0112] = orientation
        buffers.append(io.BytesIO())
        page.save(buffers[-1], "TIFF", exif=exif)
    from PIL import TiffImagePlugin

    with TiffImagePlugin.AppendingTiffWriter(str(tmp_path / "a.tif"), new=True) as writer:
        for buffer in buffers:
            writer.write(buffer.getvalue())
            writer.newFrame()
    root = ImageRoot(tmp_path)
    for name, expected in (
        ("a.tif#frame=0", np.asarray(pages[0])),
        ("a.tif#frame=1", UPRIGHT[6](np.asarray(pages[1]))),
    ):
        assert np.array_equal(np.asarray(root.load(name, WHERE)), expected)
        assert root.size(name, WHERE) == expected.shape[1::-1]


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("mode", ["RGB", "L", "I;16"])
def test_every_orientation_of_a_tiff_is_measured_and_turned(tmp_path: Path, orientation: int, mode: str) -> None:
    pixels = np.asarray(noise((7, 4)))
    pixels = pixels if mode == "RGB" else pixels[..., 0]
    stored = pixels if mode != "I;16" else pixels.astype(np.uint16) * 257
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.tif", exif=exif)
    root = ImageRoot(tmp_path)
    shown = np.asarray(root.load("a.tif", WHERE))
    assert np.array_equal(shown if mode == "RGB" else shown[..., 0], UPRIGHT[orientation](pixels))
    assert root.size("a.tif", WHERE) == shown.shape[1::-1]


def tiff(folder: Path, values: np.ndarray, tags: dict[int, tuple[int, list[int]]]) -> str:
    """Write an uncompressed TIFF by hand; a tag is (type, values)."""
    data = values.astype("<u2" if values.dtype.itemsize == 2 else "u1").tobytes()
    height, width = values.shape
    bits = 8 * values.dtype.itemsize
    entries = {256: (3, [width]), 257: (3, [height]), 258: (3, [bits]), 259: (3, [1]), 262: (3, [1])}
    entries |= {273: (4, [8]), 277: (3, [1]), 278: (3, [height]), 279: (4, [len(data)])} | tags
    at = 8 + len(data) + len(data) % 2
    extra_at, extra, directory = at + 2 + 12 * len(entries) + 4, b"", struct.pack("<H", len(entries))
    for tag, (kind, numbers) in sorted(entries.items()):
        packed = b"".join(struct.pack("<H" if kind == 3 else "<I", number) for number in numbers)
        if len(packed) > 4:
            packed, extra = struct.pack("<I", extra_at + len(extra)), extra + packed
        directory += struct.pack("<HHI", tag, kind, len(numbers)) + packed.ljust(4, b"\0")
    whole = b"II*\0" + struct.pack("<I", at) + data + bytes(len(data) % 2) + directory + bytes(4) + extra
    (folder / "a.tif").write_bytes(whole)
    return "a.tif"


def test_sixteen_bit_tiff_where_white_is_zero_is_inverted(tmp_path: Path) -> None:
    values = np.array([[0, 32768, 65535]], dtype=np.uint16)
    name = tiff(tmp_path, values, {262: (3, [0])})
    assert np.asarray(ImageRoot(tmp_path).load(name, WHERE))[0, :, 0].tolist() == [255, 127, 0]
    name = tiff(tmp_path, values, {})
    assert np.asarray(ImageRoot(tmp_path).load(name, WHERE))[0, :, 0].tolist() == [0, 128, 255]
    name = tiff(tmp_path, np.array([[0, 100, 255]], dtype=np.uint8), {262: (3, [0])})
    assert np.asarray(ImageRoot(tmp_path).load(name, WHERE))[0, :, 0].tolist() == [255, 155, 0]


@pytest.mark.parametrize("factor", [1, 256, 257])
def test_a_palette_of_a_tiff_with_colours_of_eight_and_of_sixteen_bits(tmp_path: Path, factor: int) -> None:
    colours = np.zeros((3, 256), dtype=int)
    colours[:, 7], colours[:, 8] = (200, 30, 60), (1, 2, 250)
    tags = {262: (3, [3]), 320: (3, (colours * factor).reshape(-1).tolist())}
    name = tiff(tmp_path, np.array([[7, 8, 0]], dtype=np.uint8), tags)
    assert np.asarray(ImageRoot(tmp_path).load(name, WHERE))[0].tolist() == [[200, 30, 60], [1, 2, 250], [0, 0, 0]]


def resized(data: bytes, width: int, height: int) -> bytes:
    """A PNG whose header names another size, with a right checksum."""
    header = struct.pack(">II", width, height) + data[24:29]
    return data[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + data[33:]


@pytest.mark.parametrize(("width", "height"), [(40, 60), (80, 30), (20, 30), (30000, 2600)])
def test_a_png_that_lies_about_its_size_is_found_by_the_data_check(tmp_path: Path, width: int, height: int) -> None:
    buffer = io.BytesIO()
    noise((40, 30)).save(buffer, "PNG")
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "lie.png").write_bytes(resized(buffer.getvalue(), width, height))
    noise((3, 2)).save(folder / "true.png")
    rows = [row("a", images=("lie.png",)), row("b", images=("true.png",))]
    source = JsonlSource(write_rows(tmp_path / "a.jsonl", rows), folder)
    found = preflight(source, LetterTransform(), plain, on_error="skip", progress=False)
    assert [problem.id for problem in found.problems] == ["a"]
    assert "the image lie.png is truncated or damaged" in found.problems[0].reason


def test_a_true_png_is_measured_without_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, image in (("a.png", noise()), ("b.png", noise((2, 3))), ("c.png", Image.new("1", (13, 5)))):
        image.save(tmp_path / name)
    Image.fromarray(np.arange(60, dtype=np.uint16).reshape(6, 10)).save(tmp_path / "d.png")
    monkeypatch.setattr(ImageRoot, "_decoded", lambda *_: pytest.fail("decoded"))
    sizes = [ImageRoot(tmp_path).size(f"{name}.png", WHERE) for name in "abcd"]
    assert sizes == [(600, 400), (2, 3), (13, 5), (10, 6)]


@pytest.mark.parametrize(("width", "height"), [(1, 1), (5, 3), (8, 8), (9, 17)])
@pytest.mark.parametrize(("bits", "colour"), [(1, 0), (4, 3), (8, 2), (16, 4)])
def test_the_bytes_of_an_interlaced_png_are_those_of_its_seven_passes(
    width: int, height: int, bits: int, colour: int
) -> None:
    """Counted pixel by pixel in the pattern of PNG's section 8.2."""
    pattern = "16462646 77777777 56565656 77777777 36463646 77777777 56565656 77777777".split()
    rows: dict[tuple[str, int], int] = {}
    for y in range(height):
        for x in range(width):
            key = (pattern[y % 8][x % 8], y)
            rows[key] = rows.get(key, 0) + 1
    samples = {0: 1, 3: 1, 2: 3, 4: 2}[colour]
    expected = sum(1 + -(-pixels * samples * bits // 8) for pixels in rows.values())
    assert png.raw_bytes(width, height, bits, colour, interlaced=True) == expected
    assert png.raw_bytes(width, height, bits, colour, interlaced=False) == height * (
        1 + -(-width * samples * bits // 8)
    )


@pytest.mark.parametrize("suffix", ["bmp", "gif", "tif", "webp", "jp2", "ppm"])
def test_a_file_of_any_format_that_is_cut_off_is_found_before_training(tmp_path: Path, suffix: str) -> None:
    noise().save(tmp_path / f"a.{suffix}")
    whole = (tmp_path / f"a.{suffix}").read_bytes()
    assert ImageRoot(tmp_path).size(f"a.{suffix}", WHERE) == (600, 400)
    for share in (0.3, 0.9):
        (tmp_path / f"a.{suffix}").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(DataError, match=f"a.{suffix}"):
            ImageRoot(tmp_path).size(f"a.{suffix}", WHERE)
