"""DICOM files with odd headers, and frames of files that hold several."""

import io
import logging
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import MPEG4HP41, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medtune.data.dicom import is_dicom
from medtune.data.images import ImageRoot
from medtune.errors import DataError
from tests.data.test_dicom import FILES, WHERE, changed, grey, packaged, stored

SECRET = "DOE^JANE"


def bare(name: str, implicit: bool | None = None, little: bool = True) -> bytes:
    """A file's elements alone, without preamble, meta information and transfer syntax; as stored, or encoded anew."""
    dataset = pydicom.dcmread(packaged(name))
    implicit = dataset.original_encoding[0] if implicit is None else implicit
    meta, dataset.file_meta = dataset.file_meta, pydicom.dataset.FileMetaDataset()
    dataset.preamble = None
    if not little:
        dataset.PixelData = pydicom.dcmread(packaged(name)).pixel_array.byteswap().tobytes()
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, implicit_vr=implicit, little_endian=little, enforce_file_format=False)
    assert meta.TransferSyntaxUID and not is_dicom(b"x" + buffer.getvalue())
    return buffer.getvalue()


def both(path: Path) -> list[str]:
    """The messages of the check before training and of the decoding."""
    said = []
    for read in (ImageRoot(path.parent).size, ImageRoot(path.parent).load):
        with pytest.raises(DataError) as caught:
            read(path.name, WHERE)
        said.append(str(caught.value))
    return said


@pytest.mark.parametrize("syntax", ["1.2.840.113619.5.2", "1.2.3.4.5", "not a uid", MPEG4HP41])
def test_a_transfer_syntax_that_is_private_or_cannot_be_decoded(tmp_path: Path, syntax: str) -> None:
    data = packaged("CT_small.dcm").read_bytes()
    old = str(ExplicitVRLittleEndian).encode() + b"\0"
    new = str(syntax).encode()
    new += b"\0" * (len(new) % 2)
    at = data.index(old)
    (tmp_path / "a.dcm").write_bytes(data[: at - 2] + len(new).to_bytes(2, "little") + new + data[at + len(old) :])
    for message in both(tmp_path / "a.dcm"):
        assert "compressed in a way that cannot be read (" in message and "save it uncompressed, or as PNG" in message
        assert "1.2." not in message and "not a uid" not in message


@pytest.mark.parametrize("keyword", ["Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "NumberOfFrames"])
def test_an_element_of_several_values_where_one_is_needed(tmp_path: Path, keyword: str) -> None:
    path = changed("MR_small.dcm", tmp_path / "a.dcm", **{keyword: [2, 3]})
    for message in both(path):
        assert f"is a DICOM file whose {keyword} is not one whole number; correct it" in message


def test_no_preamble_and_no_meta_information(tmp_path: Path) -> None:
    expected = grey(packaged("CT_small.dcm"))
    (tmp_path / "stripped").write_bytes(packaged("CT_small.dcm").read_bytes()[132:])
    (tmp_path / "explicit").write_bytes(bare("CT_small.dcm", implicit=False))
    (tmp_path / "implicit").write_bytes(bare("CT_small.dcm", implicit=True))
    (tmp_path / "big").write_bytes(bare("CT_small.dcm", implicit=False, little=False))
    for name in ("stripped", "explicit", "implicit", "big"):
        assert np.array_equal(grey(tmp_path / name), expected), name


@pytest.mark.parametrize("implicit", [False, True])
def test_a_preamble_without_a_transfer_syntax(tmp_path: Path, implicit: bool) -> None:
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM" + bare("CT_small.dcm", implicit))
    assert np.array_equal(grey(tmp_path / "a.dcm"), grey(packaged("CT_small.dcm")))


def test_compressed_pixels_without_a_transfer_syntax_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM" + bare("MR_small_RLE.dcm"))
    assert "holds compressed pixels, but names no compression (transfer syntax)" in both(tmp_path / "a.dcm")[1]


@pytest.mark.parametrize(
    "elements",
    [
        {"PhotometricInterpretation": SECRET},
        {"PhotometricInterpretation": None},
        {"PhotometricInterpretation": [SECRET, "RGB"]},
        {"Modality": SECRET, "Rows": None},
        {"BitsStored": 99, "PatientName": SECRET},
        {"PixelRepresentation": None, "PatientID": SECRET},
        {"WindowCenter": SECRET},
        {"RescaleSlope": SECRET, "RescaleIntercept": 0},
        {"NumberOfFrames": "1A" + SECRET},
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value:UserWarning", "ignore:The value length:UserWarning")
def test_no_message_and_no_log_holds_a_value_of_the_file(
    tmp_path: Path, elements: dict[str, object], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    dataset = pydicom.dcmread(packaged("MR_small.dcm"))
    for keyword, value in elements.items():
        tag = pydicom.datadict.tag_for_keyword(keyword)
        vr = "LO" if isinstance(value, str) else pydicom.datadict.dictionary_VR(tag)
        dataset[tag] = pydicom.DataElement(tag, vr, value)
    dataset.save_as(tmp_path / "a.dcm")
    caplog.clear()
    caplog.set_level(logging.WARNING)
    said = both(tmp_path / "a.dcm")
    for message in [*said, caplog.text, *capfd.readouterr()]:
        assert "DOE" not in message and "JANE" not in message
    assert all(message.startswith(f"{WHERE}: the image a.dcm is") for message in said)


@pytest.mark.parametrize("keyword", ["NumberOfFrames", "WindowCenter", "RescaleSlope"])
@pytest.mark.filterwarnings("ignore:Invalid value:UserWarning")
def test_a_text_in_the_place_of_a_number_is_not_logged(
    tmp_path: Path, keyword: str, caplog: pytest.LogCaptureFixture
) -> None:
    """pydicom logs an element whose value does not fit its type, with the value."""
    tag = pydicom.datadict.tag_for_keyword(keyword)
    dataset = pydicom.dcmread(packaged("MR_small.dcm"))
    dataset[tag] = pydicom.DataElement(tag, "LO", SECRET)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    head = (tag >> 16).to_bytes(2, "little") + (tag & 0xFFFF).to_bytes(2, "little")
    type_of_a_number = pydicom.datadict.dictionary_VR(tag).encode()
    (tmp_path / "a.dcm").write_bytes(buffer.getvalue().replace(head + b"LO", head + type_of_a_number))
    logging.getLogger("pydicom").setLevel(logging.NOTSET)
    caplog.clear()
    caplog.set_level(logging.DEBUG)
    for message in [*both(tmp_path / "a.dcm"), caplog.text]:
        assert "DOE" not in message


def test_the_text_of_an_exception_of_pydicom_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError(f"cannot read {SECRET}")

    path = changed("MR_small.dcm", tmp_path / "a.dcm")
    monkeypatch.setattr(pydicom, "dcmread", refuse)
    for message in both(path):
        assert "a.dcm is truncated or damaged (ValueError); replace it" in message and "DOE" not in message


def test_a_frame_of_every_encoding() -> None:
    root = ImageRoot(FILES)
    for name, frames in (("SC_rgb_rle_2frame.dcm", 2), ("examples_ybr_color.dcm", 30)):
        whole = pydicom.dcmread(packaged(name)).pixel_array
        for frame in {0, 1, frames - 1}:
            image = root.load(f"{name}#frame={frame}", WHERE)
            assert root.size(f"{name}#frame={frame}", WHERE) == image.size
            assert np.array_equal(np.asarray(image), whole[frame])
    for name in ("rtdose.dcm", "rtdose_expb.dcm", "rtdose_rle.dcm"):
        values = pydicom.dcmread(packaged(name)).pixel_array[4].astype(float)
        shown = np.asarray(root.load(f"{name}#frame=4", WHERE))[..., 0]
        assert np.abs(shown - (values - values.min()) / np.ptp(values) * 255).max() <= 0.51


def test_a_frame_beyond_the_last_and_a_cut_off_file(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(packaged("rtdose.dcm").read_bytes()[:-20])
    for read in (ImageRoot(tmp_path).size, ImageRoot(tmp_path).load):
        with pytest.raises(DataError, match="holds 15 frames, counted from 0, so that there is no frame 15"):
            read("a.dcm#frame=15", WHERE)
        with pytest.raises(DataError, match="truncated or damaged"):
            read("a.dcm#frame=14", WHERE)


def group(slope: float | None = None, centre: float | None = None, width: float = 100) -> Dataset:
    """An item of functional groups."""
    item = Dataset()
    if slope is not None:
        rescaled = Dataset()
        rescaled.RescaleSlope, rescaled.RescaleIntercept = slope, -1000
        item.PixelValueTransformationSequence = [rescaled]
    if centre is not None:
        window = Dataset()
        window.WindowCenter, window.WindowWidth, window.VOILUTFunction = centre, width, "LINEAR_EXACT"
        item.FrameVOILUTSequence = [window]
    return item


def test_window_and_rescaling_of_the_frame(tmp_path: Path) -> None:
    """An enhanced CT: the slope of all frames, and a window of each frame (PS3.3 C.7.6.16)."""
    dataset = pydicom.dcmread(packaged("CT_small.dcm"))
    one = dataset.pixel_array
    dataset.NumberOfFrames = 2
    dataset.PixelData = np.stack([one, one + 100]).tobytes()
    for keyword in ("RescaleSlope", "RescaleIntercept"):
        delattr(dataset, keyword)
    dataset.SharedFunctionalGroupsSequence = [group(slope=2)]
    dataset.PerFrameFunctionalGroupsSequence = [group(centre=500, width=1000), group(centre=-200, width=600)]
    dataset.save_as(tmp_path / "a.dcm")
    for frame, (centre, width) in enumerate([(500, 1000), (-200, 600)]):
        values = 2.0 * (one + 100 * frame) - 1000
        expected = np.clip((values - centre) / width + 0.5, 0, 1) * 255
        shown = np.asarray(ImageRoot(tmp_path).load(f"a.dcm#frame={frame}", WHERE))[..., 0]
        assert np.abs(shown - expected).max() <= 0.51 and 0 < shown.mean() < 255


def test_the_colours_of_a_palette_are_those_of_its_table(tmp_path: Path) -> None:
    dataset = pydicom.dcmread(packaged("examples_palette.dcm"))
    coloured = pydicom.pixels.apply_color_lut(dataset.pixel_array, dataset)
    shown = np.asarray(ImageRoot(FILES).load("examples_palette.dcm", WHERE))
    assert coloured.dtype == np.uint16 and np.abs(shown - coloured / 257).max() <= 0.5
    tables = [f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")]
    for name in tables:  # 8-bit entries in 16-bit words
        entries = np.frombuffer(getattr(dataset, name), dtype="<u2") >> 8
        setattr(dataset, name, entries.astype("<u2").tobytes())
    dataset.save_as(tmp_path / "a.dcm")
    again = np.asarray(ImageRoot(tmp_path).load("a.dcm", WHERE))
    assert np.abs(again.astype(int) - shown).max() <= 1


def test_pixels_are_shown_as_they_are_stored_whatever_the_patients_position(tmp_path: Path) -> None:
    expected = grey(packaged("CT_small.dcm"))
    for orientation, patient in (([-1, 0, 0, 0, -1, 0], ["R", "A"]), ([0, 1, 0, 0, 0, -1], ["P", "F"])):
        path = changed(
            "CT_small.dcm", tmp_path / "a.dcm", ImageOrientationPatient=orientation, PatientOrientation=patient
        )
        assert np.array_equal(grey(path), expected)
    assert stored("CT_small.dcm").shape == (128, 128)


def test_other_files_are_not_taken_for_dicom() -> None:
    for data in (b"", b"\x08\x00", bytes(200), b"II*\x00" + bytes(200), b"\x08\x00\x05\x00" + b"\xff" * 200):
        assert not is_dicom(data)
    for uid in (ImplicitVRLittleEndian, ExplicitVRBigEndian):
        assert uid.is_transfer_syntax
