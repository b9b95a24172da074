"""The images of one DICOM series as a volume."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medtune.data.dicom import dicom_header, is_dicom, modality_values
from medtune.data.image_names import hidden_part
from medtune.data.opening import open_regular
from medtune.data.volumes import Volume
from medtune.errors import DataError

_HEADER_BYTES = 1 << 18
_SAME = 1e-3
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class _Slice:
    path: Path
    series: str
    shape: tuple[int, int]
    position: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    spacing: tuple[float, float]

    @property
    def height(self) -> float:
        """Millimetres along the normal of the slices."""
        return float(np.dot(np.cross(self.rows, self.columns), self.position))


class DicomSeries(Volume):
    """The slices of a folder, ordered by their position in the patient; the array is [columns, rows, slices].

    Args:
        folder: holds the files of one series; hidden files, DICOMDIR and files that are no DICOM are passed over.

    Raises:
        DataError: if the files are of several series, differ in size or orientation, lie at the same place, or name no
            position. The message is a phrase that follows the folder's name.
    """

    def __init__(self, folder: Path) -> None:
        names = sorted(path for path in folder.iterdir() if path.is_file() and hidden_part(path.name) is None)
        found = [one for one in map(_slice, names) if one is not None]
        if not found:
            raise DataError("is a folder without DICOM images; give a NIfTI file, or the folder of a DICOM series.")
        _check_alike(found)
        self._slices = sorted(found, key=lambda one: one.height)
        first, last = self._slices[0], self._slices[-1]
        steps = np.diff([one.height for one in self._slices])
        if (steps < _SAME).any():
            raise DataError("holds several slices at one place (another phase or echo?); keep one series in a folder.")
        self.gaps = int((steps > 1.5 * np.median(steps)).sum()) if len(steps) else 0
        affine = np.eye(4)
        affine[:3, 0] = first.rows * first.spacing[1]
        affine[:3, 1] = first.columns * first.spacing[0]
        between = (last.position - first.position) / max(1, len(self._slices) - 1)
        affine[:3, 2] = between if len(self._slices) > 1 else np.cross(first.rows, first.columns)
        affine[:3, 3] = first.position
        super().__init__((first.shape[1], first.shape[0], len(self._slices)), _LPS_TO_RAS @ affine)
        self._whole: np.ndarray | None = None

    def cut(self, axis: int, index: int) -> np.ndarray:
        """Return the values of a slice; of the series' own plane only that slice is decoded."""
        if axis == 2:
            return self._read(index).astype(np.float64)
        return np.asarray(np.take(self._array(), index, axis=axis), dtype=np.float64)

    def sampled(self) -> np.ndarray:
        """Return values of some slices, and of these at regular distances."""
        step = max(1, len(self._slices) // 32)
        values = [self._read(index).ravel() for index in range(0, len(self._slices), step)]
        together = np.concatenate(values)
        return together[:: max(1, len(together) // (1 << 20))]

    def _array(self) -> np.ndarray:
        if self._whole is None:
            self._whole = np.stack([self._read(index) for index in range(len(self._slices))], axis=2)
        return self._whole

    def _read(self, index: int) -> np.ndarray:
        with open_regular(self._slices[index].path) as file:
            values = modality_values(file)
        if values.shape != self._slices[index].shape:
            raise DataError("holds a slice whose pixels do not fill it; replace it by a whole copy.")
        return values.T.astype(np.float32)


def _slice(path: Path) -> _Slice | None:
    """Read the header of a file; None if it is no DICOM image."""
    with open_regular(path) as file:
        data = file.read(_HEADER_BYTES)
        if not is_dicom(data) or path.name.upper() == "DICOMDIR":
            return None
        try:
            header = dicom_header(data)
        except DataError:
            try:
                header = dicom_header(data + file.read())
            except DataError as error:
                raise DataError(f"holds {path.name}, which {error}") from None
    if header.frames > 1 or header.samples > 1:
        raise DataError(f"holds {path.name}, which has several frames or colours; a series has one grey image a file.")
    numbers = []
    for keyword, count in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2)):
        try:
            value = np.asarray([float(number) for number in header.dataset.get(keyword)])
        except (TypeError, ValueError):
            value = np.empty(0)
        if value.shape != (count,) or not np.isfinite(value).all():
            raise DataError(f"holds {path.name}, which names no {keyword}; write the series as NIfTI.")
        numbers.append(value)
    position, directions, spacing = numbers
    return _Slice(
        path,
        str(header.dataset.get("SeriesInstanceUID")),
        (header.rows, header.columns),
        position,
        directions[:3],
        directions[3:],
        (float(spacing[0]), float(spacing[1])),
    )


def _check_alike(slices: list[_Slice]) -> None:
    first = slices[0]
    count = len({one.series for one in slices})
    if count > 1:
        raise DataError(f"holds {count} DICOM series; put each series into a folder of its own.")
    for one in slices[1:]:
        alike = one.shape == first.shape and np.allclose(one.spacing, first.spacing, atol=_SAME)
        turned = np.abs(one.rows - first.rows).max() > _SAME or np.abs(one.columns - first.columns).max() > _SAME
        if not alike or turned:
            raise DataError(
                f"holds slices of different size or orientation ({first.path.name}, {one.path.name}); remove the "
                "localizer, or what is not of the series."
            )
