"""DICOM images as a viewer shows them; needs pydicom (``pip install 'medtune[dicom]'``)."""

import io
import logging
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image

from medtune.data.pixels import scaled
from medtune.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset

_MAGIC = slice(128, 132)
_JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
_END_OF_FRAMES = bytes.fromhex("feffdde000000000")
_INTERPRETATIONS = frozenset(
    "MONOCHROME1 MONOCHROME2 RGB YBR_FULL YBR_FULL_422 YBR_PARTIAL_420 YBR_PARTIAL_422 YBR_ICT YBR_RCT".split()
) | {"PALETTE COLOR"}
_SHOWN_BY_FRAME = ("PixelValueTransformationSequence", "FrameVOILUTSequence")
_VRS = frozenset(b"AE AS CS DA DS DT IS LO LT OB OW PN SH ST TM UI UL UN US UT".split())


@dataclass(frozen=True)
class DicomHeader:
    """What a file says before its pixels.

    Attributes:
        dataset: the elements.
        pixels_at: number of bytes before the pixels.
        rows: height in pixels.
        columns: width in pixels.
        frames: number of frames.
        samples: values of a pixel.
        bits: bits of a value.
    """

    dataset: "Dataset"
    pixels_at: int
    rows: int
    columns: int
    frames: int
    samples: int
    bits: int

    @property
    def syntax(self) -> Any:
        """The transfer syntax."""
        return self.dataset.file_meta.TransferSyntaxUID


def is_dicom(data: bytes) -> bool:
    """Return whether a file begins like DICOM: 128 bytes of any content and ``DICM``, or at once with an element.

    Old files and files of some devices have no preamble. They begin with an element of group 2 or 8.
    """
    if data[_MAGIC] == b"DICM":
        return True
    if data[4:6] in _VRS:
        return data[:2] in (b"\x02\x00", b"\x08\x00", b"\x00\x02", b"\x00\x08")
    small = int.from_bytes(data[4:8], "little") <= 64
    return len(data) > 8 and data[:2] == b"\x08\x00" and data[3:4] == b"\x00" and small  # implicit VR


def dicom_header(data: bytes) -> DicomHeader:
    """Read the header: everything before the pixels.

    Args:
        data: the file, or enough of its beginning.

    Raises:
        DataError: if pydicom is absent, or the file holds no image or says something impossible of it. All messages of
            this module are phrases that follow the image's name, and hold no values of the file.
    """
    with _reading() as pydicom:
        stream = io.BytesIO(data)
        dataset = _named_syntax(pydicom.dcmread(stream, stop_before_pixels=True, force=True), pydicom)
        rows, columns = _count(dataset, "Rows", 0), _count(dataset, "Columns", 0)
        if not rows or not columns:
            kind = str(dataset.get("Modality"))
            kind = kind if re.fullmatch("[A-Z]{2,16}", kind) else "unknown modality"
            raise DataError(f"is a DICOM file without an image ({kind}); remove the row.")
        if dataset.get("PhotometricInterpretation") not in _INTERPRETATIONS:
            raise DataError(
                "is a DICOM file whose PhotometricInterpretation is unknown; correct it, or save it as PNG."
            )
        _check_syntax(dataset, pydicom)
        frames = _count(dataset, "NumberOfFrames", 1)
        samples, bits = _count(dataset, "SamplesPerPixel", 0), _count(dataset, "BitsAllocated", 0)
        _check_values(dataset, frames, samples, bits)
        return DicomHeader(dataset, stream.tell(), rows, columns, frames, samples, bits)


def choose_frame(frames: int, frame: int | None, name: str) -> int:
    """Return the number of the frame that is read.

    Args:
        frames: number of frames in the file.
        frame: the one that the row names, from 0; None if it names none.
        name: the image's path, for the message.

    Raises:
        DataError: if the row names no frame of a file with several, or one that does not exist.
    """
    if frame is None and frames > 1:
        raise DataError(
            f"holds {frames} frames; save the one that is meant by itself, or name it behind the path, from "
            f"'{name}#frame=0' to '{name}#frame={frames - 1}'."
        )
    if frame is not None and frame >= frames:
        raise DataError(f"holds {frames} frames, counted from 0, so that there is no frame {frame}; correct the row.")
    return frame or 0


def needs_decoding(header: DicomHeader, size: int, end: bytes) -> bool:
    """Return whether only decoding shows that a file is whole: it is too short, or its size and end tell nothing.

    Args:
        header: from :func:`dicom_header`.
        size: of the file in bytes.
        end: its last bytes.
    """
    if header.syntax.is_deflated or header.syntax == _JPEG_EXTENDED:
        return True  # deflated data can have any size, and no decoder in use reads all depths of this compression
    if header.syntax.is_compressed:
        return _END_OF_FRAMES not in end
    bits = header.rows * header.columns * header.samples * header.bits * header.frames
    subsampled = header.dataset.get("PhotometricInterpretation") == "YBR_FULL_422"
    return size - header.pixels_at < bits // 8 * (2 if subsampled else 3) // 3


def dicom_image(file: BinaryIO, frame: int = 0) -> Image.Image:
    """Decode a frame of a DICOM file to 8-bit RGB.

    * Grey values go through the modality LUT or rescaling, then through the VOI LUT or the first window that the file
      names (PS3.3 C.11.1, C.11.2), for this frame if they differ between frames (C.7.6.16). Without one, values of
      more than 8 bits are scaled from the frame's smallest value to its largest; padding is not counted. 8-bit values
      stay as they are.
    * MONOCHROME1 (small values are bright) is inverted last.
    * Palettes and YBR colours become RGB; 16-bit colours are scaled.
    * Rows and columns are as stored, which is how the device shows the image.

    Args:
        file: the file, from its beginning; of a file with several frames only this one is read.
        frame: number of the frame, from 0.

    Raises:
        DataError: as :func:`dicom_header`, and for damaged pixels or a compression that cannot be read.
    """
    pixels, dataset = stored_values(file, frame)
    with _reading() as pydicom:
        if pixels.ndim == 3:
            shown = scaled(pixels, 0, 2 ** _count(dataset, "BitsStored", 8) - 1)
        elif dataset.PhotometricInterpretation == "PALETTE COLOR":
            coloured = pydicom.pixels.apply_color_lut(pixels, dataset)[..., :3]
            shown = scaled(coloured, 0, _largest_entry(coloured, dataset))
        else:
            shown = _grey(pixels, dataset, pydicom.pixels.apply_modality_lut(pixels, dataset))
    return Image.fromarray(shown).convert("RGB")


def stored_values(file: BinaryIO, frame: int = 0) -> tuple[np.ndarray, "Dataset"]:
    """Return the pixels of a frame as they are stored, and the elements that describe them.

    Returns:
        Pixels ``[rows, columns]``, or ``[rows, columns, samples]`` for colours; and the elements, in which those that
        may differ between frames are the frame's.

    Raises:
        DataError: as :func:`dicom_image`.
    """
    file.seek(0)
    with _reading() as pydicom:
        dataset = _named_syntax(pydicom.dcmread(file, stop_before_pixels=True, force=True), pydicom)
        rows, columns = _count(dataset, "Rows", 0), _count(dataset, "Columns", 0)
        _check_syntax(dataset, pydicom)
        several = _count(dataset, "NumberOfFrames", 1) > 1
        try:
            if several and not dataset.file_meta.TransferSyntaxUID.is_deflated:
                pixels = pydicom.pixels.pixel_array(file, index=frame)
            else:
                file.seek(0)
                pixels = _all_pixels(pydicom, file, frame)
        except (RuntimeError, NotImplementedError):
            raise DataError(_undecodable(dataset)) from None
        for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
            items = dataset.get(groups) or []
            at = frame if groups.startswith("Per") else 0
            for name in _SHOWN_BY_FRAME:
                for item in (items[at].get(name) or [])[:1] if at < len(items) else []:
                    dataset.update(item)
    if pixels.shape[:2] != (rows, columns):
        raise DataError("is truncated or damaged (its pixels do not fill it); replace it by a whole copy.")
    return pixels, dataset


def modality_values(file: BinaryIO, frame: int = 0) -> np.ndarray:
    """Return the grey values of a frame in the unit of the modality (HU for CT), ``[rows, columns]``.

    Raises:
        DataError: as :func:`dicom_image`, and for a file with colours.
    """
    pixels, dataset = stored_values(file, frame)
    if pixels.ndim != 2:
        raise DataError("holds colours; a volume has grey values.")
    with _reading() as pydicom:
        return np.asarray(pydicom.pixels.apply_modality_lut(pixels, dataset))


def _all_pixels(pydicom: Any, file: BinaryIO, frame: int) -> np.ndarray:
    """Decode a frame of a file that is read completely."""
    dataset = _named_syntax(pydicom.dcmread(file, force=True), pydicom)
    native = not dataset.file_meta.TransferSyntaxUID.is_compressed
    if native and "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
        raise DataError("holds compressed pixels, but names no compression (transfer syntax); save it again with one.")
    return np.asarray(pydicom.pixels.pixel_array(dataset, index=frame))


def _named_syntax(dataset: "Dataset", pydicom: Any) -> "Dataset":
    """Fill in the transfer syntax of a file that names none: its elements show how they are written."""
    meta = getattr(dataset, "file_meta", None)
    dataset.file_meta = meta = pydicom.dataset.FileMetaDataset() if meta is None else meta
    if not meta.get("TransferSyntaxUID"):
        implicit, little = dataset.original_encoding
        uid = pydicom.uid
        plain = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
        meta.TransferSyntaxUID = plain if little else uid.ExplicitVRBigEndian
    return dataset


def _check_syntax(dataset: "Dataset", pydicom: Any) -> None:
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        known = isinstance(syntax, pydicom.uid.UID) and syntax.is_transfer_syntax
        known = known and bool(pydicom.pixels.get_decoder(syntax).is_available)
    except NotImplementedError:
        known = False
    if not known:
        raise DataError(_undecodable(dataset))


def _check_values(dataset: "Dataset", frames: int, samples: int, bits: int) -> None:
    """Refuse elements with which the pixels cannot be decoded or shown."""
    floats = 0 if bits >= 32 else 2  # pixels of floats need no PixelRepresentation
    possible = {
        "NumberOfFrames": frames > 0,
        "SamplesPerPixel": samples in (1, 3),
        "BitsAllocated": bits == 1 or bits in range(8, 65, 8),
        "BitsStored": 0 < _count(dataset, "BitsStored", 0) <= bits,
        "PixelRepresentation": _count(dataset, "PixelRepresentation", floats) <= 1,
    }
    for keyword, is_possible in possible.items():
        if not is_possible:
            raise DataError(f"is a DICOM file whose {keyword} is absent or impossible; correct it, or save it as PNG.")
    for keyword in ("WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept", "PixelPaddingValue"):
        try:
            _first(dataset.get(keyword))
        except (TypeError, ValueError):
            raise DataError(f"is a DICOM file whose {keyword} is no number; correct it, or save it as PNG.") from None


def _count(dataset: "Dataset", keyword: str, absent: int) -> int:
    """Return an element that must be one whole number."""
    value = dataset.get(keyword)
    if value is None or (isinstance(value, str | bytes) and not value):
        return absent
    if isinstance(value, int) and value >= 0:
        return int(value)
    raise DataError(f"is a DICOM file whose {keyword} is not one whole number; correct it, or save it as PNG.")


@contextmanager
def _reading() -> Iterator[Any]:
    """Yield pydicom, and turn the exceptions that it raises on damaged files into a DataError.

    pydicom's own messages are not repeated, because they quote values of the file.
    """
    try:
        import pydicom
        import pydicom.pixels
    except ImportError:
        hint = "install pydicom to read it (pip install 'medtune[dicom]'), or convert it to PNG"
        raise DataError(f"is a DICOM file; {hint}.") from None
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # its log quotes values too
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns of values that break the standard but can be read
            yield pydicom
    except DataError:
        raise
    except Exception as error:  # the type depends on the damage
        kind = type(error).__name__
        raise DataError(f"is truncated or damaged ({kind}); replace it by a whole copy, or remove the row.") from None


def _undecodable(dataset: "Dataset") -> str:
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    name = getattr(syntax, "name", "")
    name = "a private or unknown compression" if not name or name == str(syntax) else name
    return f"is damaged, or compressed in a way that cannot be read ({name}); save it uncompressed, or as PNG."


def _largest_entry(coloured: np.ndarray, dataset: "Dataset") -> int:
    """Return the largest value that a palette's entries can have; some files keep 8-bit entries in 16 bits."""
    whole = int(np.iinfo(coloured.dtype).max)
    descriptor = dataset.get("RedPaletteColorLookupTableDescriptor")
    return 255 if (descriptor and descriptor[2] == 8) or coloured.max(initial=0) <= 255 else whole


def _grey(stored: np.ndarray, dataset: "Dataset", values: np.ndarray) -> np.ndarray:
    """Return modality values as 8-bit grey, as bright as a viewer shows them."""
    table = dataset.get("VOILUTSequence")
    centre, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    if table:
        shown = _looked_up(values, table[0])
    elif centre is not None and width is not None and width > 0:
        shown = _windowed(values, centre, width, str(dataset.get("VOILUTFunction") or "LINEAR"))
    elif (
        _count(dataset, "BitsStored", 8) == 8
        and dataset.get("PixelRepresentation", 0) == 0
        and np.array_equal(values, stored)
    ):
        shown = scaled(stored, 0, 255)
    else:
        padding = _first(dataset.get("PixelPaddingValue"))
        unpadded = values[stored != padding] if padding is not None else values
        unpadded = unpadded if unpadded.size else values
        shown = scaled(values, float(unpadded.min()), float(unpadded.max()))
    return 255 - shown if dataset.PhotometricInterpretation == "MONOCHROME1" else shown


def _first(value: Any) -> float | None:
    """Return the first of an element's values; a file may define several windows, and the first one is shown."""
    values = [value] if isinstance(value, int | float) else list(value or [])
    first = float(values[0]) if values else math.nan
    return first if math.isfinite(first) else None


def _windowed(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """Apply a window (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
    if function == "SIGMOID":
        return scaled(1 / (1 + np.exp(-4 * (values.astype(np.float64) - centre) / width)), 0, 1)
    if function == "LINEAR" and width >= 1:
        return scaled(values, centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2)
    return scaled(values, centre - width / 2, centre + width / 2)


def _looked_up(values: np.ndarray, table: "Dataset") -> np.ndarray:
    """Apply a VOI LUT: values beyond its ends get its first or last entry."""
    count, first, bits = table.LUTDescriptor
    data = table.LUTData
    entries = np.frombuffer(data, dtype="<u2") if isinstance(data, bytes) else np.asarray(data)
    indices = np.clip(np.rint(values).astype(np.int64) - first, 0, min(count or 65536, len(entries)) - 1)
    return scaled(entries[indices], 0, 2**bits - 1)
