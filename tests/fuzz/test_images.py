"""Damaged images and volumes: each is an image, or refused by a MedtuneError; the check and the decoding agree."""

import io
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medtune.data import images, volumes
from medtune.data.images import ImageRoot
from medtune.data.volumes import open_volume
from medtune.errors import DataError, MedtuneError
from tests.fuzz.mutations import NUMBERS, bounded, damaged

pytestmark = [pytest.mark.timeout(120), pytest.mark.filterwarnings("ignore")]
DICOM = Path(pydicom.__file__).parent / "data/test_files"
RNG = np.random.default_rng(0)


def saved(mode: str, format: str, frames: int = 1, **options: object) -> bytes:
    values = RNG.integers(0, 256, (11, 13, 4), dtype=np.uint8)
    many = []
    for frame in range(frames):
        if mode == "I;16":
            many.append(Image.fromarray(values[..., 0].astype(np.uint16) * 16 + frame))
        else:
            many.append(Image.fromarray(np.roll(values, frame, axis=0), "RGBA").convert(mode))
    buffer = io.BytesIO()
    rest = {"save_all": True, "append_images": many[1:]} if frames > 1 else {}
    many[0].save(buffer, format, **rest, **options)
    return buffer.getvalue()


EXIF = Image.Exif()
EXIF[0x0112] = 6
PNG = [
    saved("RGB", "PNG"),
    saved("P", "PNG"),
    saved("I;16", "PNG", exif=EXIF),
    saved("LA", "PNG"),
    saved("L", "PNG", 3),
]
JPEG = [saved("RGB", "JPEG", exif=EXIF), saved("L", "JPEG"), saved("CMYK", "JPEG", progressive=True)]
TIFF = [
    saved("RGB", "TIFF", exif=EXIF),
    saved("I;16", "TIFF"),
    saved("P", "TIFF"),
    saved("1", "TIFF", compression="group4"),
    saved("RGB", "TIFF", 3, compression="tiff_lzw"),
    saved("L", "TIFF", compression="tiff_adobe_deflate"),
]
OTHERS = [
    saved("P", "GIF", 3),
    saved("RGB", "WEBP"),
    saved("RGBA", "WEBP", 2, lossless=True),
    saved("RGB", "BMP"),
    saved("P", "BMP"),
    saved("L", "PPM"),
    saved("RGB", "JPEG2000"),
]
FRAMES = st.sampled_from(["", "", "", "#frame=0", "#frame=1", "#frame=7"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "MAX_PIXELS", 1 << 18)  # a header that names more takes seconds
        patch.setattr(volumes, "_MOST_VOXELS", 1 << 18)
        yield tmp_path_factory.mktemp("fuzz")


def read(folder: Path, data: bytes, frame: str = "") -> str:
    """Check and decode an image: the sizes agree, or the message names file and row. Returns what came of it."""
    (folder / "x").write_bytes(data)
    found: list[object] = []
    for reading in (ImageRoot(folder).size, ImageRoot(folder).load):
        try:
            found.append(reading(f"x{frame}", "rows, line 1"))
        except DataError as error:
            assert str(error).startswith("rows, line 1: the ") and "\n" not in str(error)
            found.append(None)
    size, image = found
    if not isinstance(image, Image.Image):
        return "refused when decoded" if size else "refused"
    assert image.mode == "RGB" and size in (image.size, None)
    return "decoded"


def varied(outcomes: Counter[str], least: int = 20) -> None:
    """If every damaged file were refused, or none, a test would show nothing."""
    assert min(outcomes["decoded"], outcomes["refused"]) >= least, outcomes


def right_sums(data: bytes) -> bytes:
    """A PNG whose checksums are right again, as far as its chunks can be followed."""
    parts, at = [data[:8]], 8
    while at + 12 <= len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        size = min(size, len(data) - at - 12)
        body = data[at + 4 : at + 8 + size]
        parts.append(struct.pack(">I", size) + body + struct.pack(">I", zlib.crc32(body)))
        at += 12 + size
    return b"".join(parts)


def test_png(folder: Path) -> None:
    outcomes: Counter[str] = Counter()

    @bounded(500)
    @given(data=damaged(PNG, 400), frame=FRAMES, mended=st.sampled_from([True, True, True, False]))
    def damages(data: bytes, frame: str, mended: bool) -> None:
        outcomes[read(folder, right_sums(data) if mended else data, frame)] += 1

    damages()
    varied(outcomes, least=5)  # nearly every byte of a small PNG matters


@pytest.mark.parametrize(
    ("files", "header", "examples"),
    [(JPEG, 400, 400), (TIFF, 800, 600), (OTHERS, 80, 500)],
    ids=["jpeg", "tiff", "others"],
)
def test_other_formats(folder: Path, files: list[bytes], header: int, examples: int) -> None:
    outcomes: Counter[str] = Counter()

    @bounded(examples)
    @given(data=damaged(files, header), frame=FRAMES)
    def damages(data: bytes, frame: str) -> None:
        outcomes[read(folder, data, frame)] += 1

    damages()
    varied(outcomes)


DICOM_FILES = [
    (DICOM / name).read_bytes()
    for name in ("MR_small.dcm", "MR_small_RLE.dcm", "SC_rgb_small_odd.dcm", "rtdose.dcm", "SC_rgb_rle_2frame.dcm")
]
DICOM_FILES += [DICOM_FILES[0][132:], (DICOM / "JPEGLSNearLossless_08.dcm").read_bytes()]


def test_dicom(folder: Path) -> None:
    outcomes: Counter[str] = Counter()

    @bounded(400)
    @given(data=damaged(DICOM_FILES, 1500), frame=FRAMES)
    def damages(data: bytes, frame: str) -> None:
        outcomes[read(folder, data, frame)] += 1

    damages()
    varied(outcomes)


IMAGE_TAGS = [0x00280000 + tag for tag in (2, 4, 6, 8, 0x10, 0x11, 0x34, 0x100, 0x101, 0x102, 0x103, 0x120)]
VALUE_TAGS = [0x00280000 + tag for tag in (0x1050, 0x1051, 0x1052, 0x1053, 0x1055, 0x1056)]


def test_elements_of_a_dicom_header(folder: Path) -> None:
    outcomes: Counter[str] = Counter()

    @bounded(350)
    @given(
        tags=st.lists(st.sampled_from(IMAGE_TAGS + VALUE_TAGS), min_size=1, max_size=2),
        vr=st.sampled_from(["US", "SS", "DS", "IS", "LO", "CS", "UL", "FD", "UN"]),
        number=st.sampled_from(NUMBERS[:14]),
        count=st.integers(0, 3),
        text=st.sampled_from(["", "nan", "-1", "1E400", "MONOCHROME1", "RGB", "PALETTE COLOR", "YBR_FULL", "DOE^JANE"]),
    )
    def elements(tags: list[int], vr: str, number: int, count: int, text: str) -> None:
        outcomes[read(folder, with_elements(tags, vr, encoded(vr, number, count, text)))] += 1

    elements()

    varied(outcomes)


ELEMENTS = {
    0x00080060: ("CS", b"CT"),
    0x00280002: ("US", b"\1\0"),
    0x00280004: ("CS", b"MONOCHROME2 "),
    0x00280010: ("US", b"\4\0"),
    0x00280011: ("US", b"\3\0"),
    0x00280100: ("US", b"\x10\0"),
    0x00280101: ("US", b"\x0c\0"),
    0x00280102: ("US", b"\x0b\0"),
    0x00280103: ("US", b"\0\0"),
    0x7FE00010: ("OW", np.arange(12, dtype="<u2").tobytes()),
}


def with_elements(tags: list[int], vr: str, value: bytes) -> bytes:
    """A small image in which some elements have another type and other bytes, written by hand."""
    data = bytes(128) + b"DICM" + element(0x00020010, "UI", b"1.2.840.10008.1.2.1\0")
    for tag, (usual, content) in sorted({**ELEMENTS, **dict.fromkeys(tags, (vr, value))}.items()):
        data += element(tag, usual, content)
    return data


def element(tag: int, vr: str, value: bytes) -> bytes:
    """An element in explicit VR, little endian (PS3.5, 7.1.2)."""
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr.encode()
    size = struct.pack("<HI", 0, len(value)) if vr in ("UN", "OW") else struct.pack("<H", len(value))
    return head + size + value


def encoded(vr: str, number: int, count: int, text: str) -> bytes:
    """The bytes of an element, whatever they mean."""
    if vr in ("DS", "IS", "LO", "CS"):
        value = "\\".join([text or str(number)] * count).encode()
        return value + b" " * (len(value) % 2)
    if vr == "UN":
        return bytes([number % 256]) * 2 * count
    kind = {"US": "<H", "SS": "<h", "UL": "<I", "FD": "<d"}[vr]
    return struct.pack(kind, number % (32768 if vr == "SS" else 65536)) * count


def nifti(kind: type) -> bytes:
    data = RNG.integers(0, 200, (5, 6, 7)).astype(kind)
    image = nibabel.Nifti1Image(data, np.diag([-1, 2, 3, 1]))
    image.header.set_slope_inter(0.5, -3)
    return bytes(image.to_bytes())


NIFTI = [nifti(kind) for kind in (np.int16, np.uint8, np.float32)]


def test_nifti(folder: Path) -> None:
    outcomes: Counter[str] = Counter()

    @bounded(400)
    @given(data=damaged(NIFTI, 348), channel=st.sampled_from([None, None, 0, 1]))
    def damages(data: bytes, channel: int | None) -> None:
        (folder / "x.nii").write_bytes(data)
        try:
            volume = open_volume(folder / "x.nii", channel)
            for plane in ("axial", "sagittal"):
                image = volume.image(plane, volume.spread(plane, 1, 0.1)[0], volume.limits(None))
                assert image.dtype == np.uint8 and image.ndim == 2
            outcomes["decoded"] += 1
        except MedtuneError as error:
            assert "\n" not in str(error)
            outcomes["refused"] += 1

    damages()
    varied(outcomes)
