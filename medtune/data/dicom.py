"""DICOM images as a viewer shows them; needs pydicom (``pip install 'medtune[dicom]'``)."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from medtune.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset

_MAGIC = slice(128, 132)
_END_OF_FRAMES = bytes.fromhex("feffdde000000000")


def is_dicom(data: bytes) -> bool:
    """Return whether a file begins like DICOM: 128 bytes of any content, then ``DICM``."""
    return data[_MAGIC] == b"DICM"


def dicom_header(data: bytes) -> tuple["Dataset", int]:
    """Read the header: everything before the pixels.

    Args:
        data: the file, or enough of its beginning.

    Returns:
        The elements, and the number of bytes that they take in the file.

    Raises:
        DataError: if pydicom is absent, or the file holds no image or several frames. All messages of this module are
            phrases that follow the image's name.
    """
    with _reading() as pydicom:
        stream = io.BytesIO(data)
        header = pydicom.dcmread(stream, stop_before_pixels=True)
        rows, columns = header.get("Rows"), header.get("Columns")
        frames = int(header.get("NumberOfFrames") or 1)
    if not rows or not columns:
        kind = header.get("Modality") or "unknown modality"
        raise DataError(f"is a DICOM file without an image ({kind}); remove the row.")
    if frames > 1:
        raise DataError(f"holds {frames} frames; save the one that is meant by itself.")
    return header, stream.tell()


def looks_cut_off(header: "Dataset", pixels_at: int, size: int, end: bytes) -> bool:
    """Return whether a file is too short for its image, judged by its size and its end.

    Args:
        header: from :func:`dicom_header`.
        pixels_at: number of bytes before the pixels, from :func:`dicom_header` too.
        size: of the file in bytes.
        end: its last bytes.
    """
    syntax = header.file_meta.get("TransferSyntaxUID")
    if syntax is not None and syntax.is_deflated:
        return True  # the size of deflated data says nothing about its content
    if syntax is not None and syntax.is_compressed:
        return _END_OF_FRAMES not in end
    bits = (
        header.get("Rows") * header.get("Columns") * header.get("SamplesPerPixel", 1) * header.get("BitsAllocated", 8)
    )
    subsampled = header.get("PhotometricInterpretation") == "YBR_FULL_422"
    return size - pixels_at < bits // 8 * (2 if subsampled else 3) // 3


def dicom_image(data: bytes) -> Image.Image:
    """Decode a DICOM file to 8-bit RGB.

    * Grey values go through the modality LUT or rescaling, then through the VOI LUT or the first window that the file
      names (PS3.3 C.11.1, C.11.2). Without one, values of more than 8 bits are scaled from the image's smallest
      value to its largest; padding is not counted. 8-bit values stay as they are.
    * MONOCHROME1 (small values are bright) is inverted last.
    * Palettes and YBR colours become RGB; 16-bit colours are scaled.

    Raises:
        DataError: as :func:`dicom_header`, and for damaged pixels or a compression that cannot be read.
    """
    header, _ = dicom_header(data)
    with _reading() as pydicom:
        dataset = pydicom.dcmread(io.BytesIO(data))
        try:
            pixels = pydicom.pixels.pixel_array(dataset)
        except (RuntimeError, NotImplementedError) as error:
            raise DataError(_undecodable(dataset, error)) from None
        if pixels.ndim == 3:
            shown = _scaled(pixels, 0, 2**dataset.BitsStored - 1)
        elif dataset.PhotometricInterpretation == "PALETTE COLOR":
            coloured = pydicom.pixels.apply_color_lut(pixels, dataset)
            shown = _scaled(coloured, 0, np.iinfo(coloured.dtype).max)[..., :3]
        else:
            shown = _grey(pixels, dataset, pydicom.pixels.apply_modality_lut(pixels, dataset))
    if shown.shape[:2] != (header.Rows, header.Columns):
        raise DataError("is truncated or damaged (its pixels do not fill it); replace it by a whole copy.")
    return Image.fromarray(shown).convert("RGB")


@contextmanager
def _reading() -> Iterator[Any]:
    """Yield pydicom, and turn the exceptions that it raises on damaged files into a DataError."""
    try:
        import pydicom
        import pydicom.pixels
    except ImportError:
        hint = "install pydicom to read it (pip install 'medtune[dicom]'), or convert it to PNG"
        raise DataError(f"is a DICOM file; {hint}.") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns of values that break the standard but can be read
            yield pydicom
    except DataError:
        raise
    except Exception as error:  # the type depends on the damage
        raise DataError(f"is truncated or damaged ({error}); replace it by a whole copy, or remove the row.") from None


def _undecodable(dataset: "Dataset", error: Exception) -> str:
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    name = getattr(syntax, "name", "an unnamed compression")
    reason = str(error).splitlines()[0]
    return (
        f"is damaged, or compressed in a way that cannot be read ({name}: {reason}); save it uncompressed, or as PNG."
    )


def _grey(stored: np.ndarray, dataset: "Dataset", values: np.ndarray) -> np.ndarray:
    """Return modality values as 8-bit grey, as bright as a viewer shows them."""
    table = dataset.get("VOILUTSequence")
    centre, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    if table:
        shown = _looked_up(values, table[0])
    elif centre is not None and width is not None and width > 0:
        shown = _windowed(values, centre, width, str(dataset.get("VOILUTFunction") or "LINEAR"))
    elif dataset.BitsStored == 8 and dataset.get("PixelRepresentation", 0) == 0 and np.array_equal(values, stored):
        shown = _scaled(stored, 0, 255)
    else:
        padding = dataset.get("PixelPaddingValue")
        unpadded = values[stored != padding] if padding is not None else values
        unpadded = unpadded if unpadded.size else values
        shown = _scaled(values, float(unpadded.min()), float(unpadded.max()))
    return 255 - shown if dataset.PhotometricInterpretation == "MONOCHROME1" else shown


def _first(value: Any) -> float | None:
    """Return the first of an element's values; a file may define several windows, and the first one is shown."""
    values = [value] if isinstance(value, int | float) else list(value or [])
    return float(values[0]) if values else None


def _windowed(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """Apply a window (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
    if function == "SIGMOID":
        return _scaled(1 / (1 + np.exp(-4 * (values.astype(np.float64) - centre) / width)), 0, 1)
    if function == "LINEAR" and width >= 1:
        return _scaled(values, centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2)
    return _scaled(values, centre - width / 2, centre + width / 2)


def _looked_up(values: np.ndarray, table: "Dataset") -> np.ndarray:
    """Apply a VOI LUT: values beyond its ends get its first or last entry."""
    count, first, bits = table.LUTDescriptor
    data = table.LUTData
    entries = np.frombuffer(data, dtype="<u2") if isinstance(data, bytes) else np.asarray(data)
    indices = np.clip(np.rint(values).astype(np.int64) - first, 0, min(count or 65536, len(entries)) - 1)
    return _scaled(entries[indices], 0, 2**bits - 1)


def _scaled(values: np.ndarray, lowest: float, highest: float) -> np.ndarray:
    """Map a range of values to 0..255; values outside the range are clipped."""
    if highest <= lowest:
        return np.where(values > lowest, 255, 0).astype(np.uint8)
    if (lowest, highest, values.dtype) == (0, 255, np.uint8):
        return values
    return np.rint((np.clip(values.astype(np.float64), lowest, highest) - lowest) * (255 / (highest - lowest))).astype(
        np.uint8
    )
