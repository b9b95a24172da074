"""DICOM pictures: the real files that pydicom ships, and the same ones with a table or a mark changed."""

import io
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from medtune.data import images
from medtune.data.dicom import dicom_image
from medtune.data.images import ImageRoot
from medtune.errors import DataError

WHERE = "cases.csv, line 3 (id 'p1')"
FILES = Path(pydicom.__file__).parent / "data/test_files"
RADIOGRAPH = "dicomdirtests/77654033/CR1/6154"


def packaged(name: str) -> Path:
    """A file of pydicom's own folder; a download is never tried."""
    assert (FILES / name).is_file(), f"pydicom no longer ships {name}"
    return FILES / name


def changed(name: str, target: Path, **elements: object) -> Path:
    dataset = pydicom.dcmread(packaged(name))
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.save_as(target)
    return target


def grey(path: Path) -> np.ndarray:
    """The picture as medtune sees it; it must be grey, and as large as its header says."""
    root = ImageRoot(path.parent)
    image = root.load(path.name, WHERE)
    assert image.mode == "RGB" and image.size == root.size(path.name, WHERE)
    red, green, blue = np.moveaxis(np.asarray(image), -1, 0)
    assert np.array_equal(red, green) and np.array_equal(red, blue)
    return red.astype(int)


def stored(name: str) -> np.ndarray:
    return pydicom.dcmread(packaged(name)).pixel_array.astype(float)


def test_the_window_of_a_scan() -> None:
    """PS3.3 C.11.2.1.2 written out for centre 600, width 1600, on the real MR picture."""
    values = stored("MR_small.dcm")
    expected = np.clip(((values - 599.5) / 1599 + 0.5) * 255, 0, 255)
    assert np.abs(grey(packaged("MR_small.dcm")) - expected).max() <= 0.5
    assert expected.max() == 255 and values.max() > 1400


def test_rescaling_comes_before_the_window() -> None:
    name = "dicomdirtests/98892001/CT2N/6293"
    expected = np.clip(((stored(name) - 1024 - 49.5) / 499 + 0.5) * 255, 0, 255)
    assert np.abs(grey(packaged(name)) - expected).max() <= 0.5


def test_small_values_of_monochrome1_are_bright() -> None:
    values = 0.684 * stored(RADIOGRAPH) + 200
    expected = 255 - np.clip(((values - 1599.5) / 2799 + 0.5) * 255, 0, 255)
    assert np.abs(grey(packaged(RADIOGRAPH)) - expected).max() <= 0.51


@pytest.mark.parametrize(
    ("function", "shown"),
    [
        ("LINEAR_EXACT", lambda x: (x - 600) / 1600 + 0.5),
        ("SIGMOID", lambda x: 1 / (1 + np.exp(-4 * (x - 600) / 1600))),
    ],
)
def test_other_window_functions(tmp_path: Path, function: str, shown) -> None:
    path = changed("MR_small.dcm", tmp_path / "a.dcm", VOILUTFunction=function)
    expected = np.clip(255 * shown(stored("MR_small.dcm")), 0, 255)
    assert np.abs(grey(path) - expected).max() <= 0.5


def test_of_several_windows_the_first_is_shown(tmp_path: Path) -> None:
    expected = np.clip(((stored("examples_overlay.dcm") - 449.5) / 789 + 0.5) * 255, 0, 255)
    assert np.abs(grey(packaged("examples_overlay.dcm")) - expected).max() <= 0.5


def test_a_lookup_table_goes_before_the_window(tmp_path: Path) -> None:
    table = Dataset()
    table.LUTDescriptor = [1000, 200, 12]
    table.LUTData = np.minimum(4095, 5 * np.arange(1000)).astype("<u2").tobytes()
    path = changed("MR_small.dcm", tmp_path / "a.dcm", VOILUTSequence=[table])
    expected = np.minimum(4095, 5 * (np.clip(stored("MR_small.dcm"), 200, 1199) - 200)) * 255 / 4095
    assert np.abs(grey(path) - expected).max() <= 0.5


def test_a_lookup_table_is_shown_against_its_bits_not_its_largest_entry(tmp_path: Path) -> None:
    """A table of 12 bits from 500 to 3000: neither end is stretched to black or white."""
    table = Dataset()
    table.LUTDescriptor = [251, 200, 12]
    table.LUTData = (500 + 10 * np.arange(251)).astype("<u2").tobytes()
    picture = grey(changed("MR_small.dcm", tmp_path / "a.dcm", VOILUTSequence=[table]))
    expected = (500 + 10 * (np.clip(stored("MR_small.dcm"), 200, 450) - 200)) * 255 / 4095
    assert np.abs(picture - expected).max() <= 0.5
    assert (picture.min(), picture.max()) == (31, 187)


def test_without_a_window_the_pictures_own_range_is_shown(tmp_path: Path) -> None:
    values = stored("CT_small.dcm")
    assert (values.min(), values.max()) == (128, 2191)
    picture = grey(packaged("CT_small.dcm"))
    assert np.abs(picture - (values - 128) / 2063 * 255).max() <= 0.5
    padded = pydicom.dcmread(packaged("CT_small.dcm"))
    pixels = padded.pixel_array.copy()
    pixels[:4] = -2000  # its PixelPaddingValue
    padded.PixelData = pixels.tobytes()
    padded.save_as(tmp_path / "a.dcm")
    assert padded.PixelPaddingValue == -2000
    assert np.array_equal(grey(tmp_path / "a.dcm")[4:], picture[4:]) and not grey(tmp_path / "a.dcm")[:4].any()


def test_twelve_bits_and_eight_bits(tmp_path: Path) -> None:
    dataset = pydicom.dcmread(packaged(RADIOGRAPH))
    del dataset.WindowCenter, dataset.WindowWidth
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.save_as(tmp_path / "a.dcm")
    picture = grey(tmp_path / "a.dcm")
    assert (picture.min(), picture.max()) == (0, 255)
    assert np.array_equal(grey(packaged("image_dfl.dcm")), stored("image_dfl.dcm")), "8 bits stay as they are"
    dim = pydicom.dcmread(packaged("image_dfl.dcm"))
    dim.PixelData = (dim.pixel_array // 4).tobytes()
    dim.RescaleSlope, dim.RescaleIntercept, dim.WindowCenter = 1, 0, None
    dim.save_as(tmp_path / "dim.dcm")
    assert grey(tmp_path / "dim.dcm").max() == 63, "also where the file says that they are not rescaled"


@pytest.mark.parametrize("name", ["MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_jp2klossless.dcm"])
def test_every_encoding_gives_the_same_picture(name: str) -> None:
    assert np.array_equal(grey(packaged(name)), grey(packaged("MR_small.dcm")))


def test_jpeg_ls_which_gdcm_decodes() -> None:
    pytest.importorskip("gdcm")
    assert np.array_equal(grey(packaged("MR_small_jpeg_ls_lossless.dcm")), grey(packaged("MR_small.dcm")))


def test_colours_of_every_kind() -> None:
    root = ImageRoot(FILES)
    plain = np.asarray(root.load("SC_rgb_rle.dcm", WHERE)).astype(int)
    assert np.array_equal(plain, pydicom.dcmread(packaged("SC_rgb_rle.dcm")).pixel_array)
    for name in ("SC_rgb_rle_16bit.dcm", "SC_rgb_dcmtk_+eb+cy+np.dcm", "SC_ybr_full_422_uncompressed.dcm"):
        assert root.size(name, WHERE) == (100, 100)
        assert np.abs(np.asarray(root.load(name, WHERE)) - plain).mean() < 4, "lossy between two bands"
    palette = root.load("examples_palette.dcm", WHERE)
    assert palette.size == (800, 350) and len(palette.getcolors(1 << 20)) > 100


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("SC_rgb_rle_2frame.dcm", "holds 2 frames; save the one that is meant by itself"),
        ("rtdose.dcm", "holds 15 frames"),
        ("rtplan.dcm", r"is a DICOM file without an image \(RTPLAN\); remove the row"),
        ("MR_truncated.dcm", "is truncated or damaged .*replace it by a whole copy"),
        ("badVR.dcm", "is a DICOM file whose NumberOfFrames is not one whole number"),
        ("JPGExtended.dcm", "damaged, or compressed in a way that cannot be read .*save it uncompressed"),
    ],
)
def test_what_is_refused_by_name(name: str, said: str) -> None:
    root = ImageRoot(FILES)
    for read in (root.load, root.size):
        with pytest.raises(DataError, match=said) as caught:
            read(name, WHERE)
        assert str(caught.value).startswith(f"{WHERE}: the image {name} ")


def test_a_file_cut_off_anywhere_is_refused_before_training(tmp_path: Path) -> None:
    for name in ("CT_small.dcm", "MR_small_RLE.dcm", "SC_rgb_jpeg_dcmtk.dcm"):
        whole = packaged(name).read_bytes()
        for share in (0.3, 0.6, 0.9):
            (tmp_path / "cut.dcm").write_bytes(whole[: int(share * len(whole))])
            with pytest.raises(DataError, match="cut.dcm"):
                ImageRoot(tmp_path).size("cut.dcm", WHERE)


def test_a_long_header_and_a_large_picture(tmp_path: Path, monkeypatch) -> None:
    dataset = pydicom.dcmread(packaged("CT_small.dcm"))
    dataset.add_new(0x00091001, "OB", bytes(400_000))
    dataset.save_as(tmp_path / "long.dcm")
    assert ImageRoot(tmp_path).size("long.dcm", WHERE) == (128, 128)
    assert np.array_equal(grey(tmp_path / "long.dcm"), grey(packaged("CT_small.dcm")))
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    for read in (ImageRoot(tmp_path).size, ImageRoot(tmp_path).load):
        with pytest.raises(DataError, match="long.dcm has more than 100 pixels"):
            read("long.dcm", WHERE)


def test_a_real_mammogram_sized_file_is_measured_without_decoding(tmp_path: Path, monkeypatch) -> None:
    dataset = pydicom.dcmread(packaged("CT_small.dcm"))
    dataset.Rows, dataset.Columns = 3000, 1000
    dataset.PixelData = bytes(2 * 3000 * 1000)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(tmp_path / "a.dcm")
    monkeypatch.setattr(images, "dicom_image", lambda *_: pytest.fail("decoded"))
    assert ImageRoot(tmp_path).size("a.dcm", WHERE) == (1000, 3000)


def test_without_pydicom_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    for read in (ImageRoot(FILES).load, ImageRoot(FILES).size):
        with pytest.raises(DataError, match=r"CT_small.dcm is a DICOM file; install .*pip install 'medtune\[dicom\]'"):
            read("CT_small.dcm", WHERE)


def test_the_file_name_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "scan").write_bytes(packaged("MR_small.dcm").read_bytes())
    Image.new("RGB", (3, 2)).save(tmp_path / "picture.dcm", "PNG")
    root = ImageRoot(tmp_path)
    assert root.size("scan", WHERE) == (64, 64) and root.size("picture.dcm", WHERE) == (3, 2)
    assert dicom_image(io.BytesIO((tmp_path / "scan").read_bytes())).size == (64, 64)
