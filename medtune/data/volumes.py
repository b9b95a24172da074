"""Volumes (NIfTI files, folders of a DICOM series) and slices of them as images; needs the extra ``volumes``.

World axes are nibabel's: x grows to the patient's right, y to the front, z to the head (RAS+). An affine matrix takes
indices of an array to millimetres along them.
"""

import logging
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from medtune.data.opening import refuse_special
from medtune.data.pixels import scaled
from medtune.errors import ConfigError, DataError

Plane = Literal["axial", "coronal", "sagittal"]
"""Planes of slices: across the body, from the front, from the side."""
SUFFIXES = (".nii", ".nii.gz", ".mgz", ".mgh")
_NORMAL: dict[str, int] = {"axial": 2, "coronal": 1, "sagittal": 0}
_DOWN_AND_RIGHT: dict[str, tuple[int, int]] = {"axial": (1, 0), "coronal": (2, 0), "sagittal": (2, 1)}
_MOST_VOXELS = 1 << 31
_SAMPLED = 1 << 20
_SHARES = (0.5, 99.5)
_EQUAL_SPACING = 0.01


class Volume(ABC):
    """A volume whose values are read on demand.

    Attributes:
        shape: number of voxels along each axis of the array, 3 numbers.
        affine: array indices to millimetres in RAS+, [4, 4].
        oriented: whether the file names an orientation; without one, ``affine`` is a guess of nibabel's.
        gaps: number of places where slices seem to be missing.
    """

    gaps = 0

    def __init__(self, shape: Sequence[int], affine: np.ndarray, oriented: bool = True) -> None:
        self.shape, self.affine, self.oriented = tuple(int(length) for length in shape), affine, oriented
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise DataError(f"has the shape {self.shape}; a volume has three dimensions.")
        if math.prod(self.shape) > _MOST_VOXELS:
            raise DataError(f"has more than {_MOST_VOXELS:,} voxels; crop it, or make it coarser.")
        if not np.isfinite(affine).all() or not min(self.spacing) > 0:
            raise DataError("names an orientation that is impossible (its affine matrix); write it anew.")
        self._axes = _orientation(affine)

    @abstractmethod
    def cut(self, axis: int, index: int) -> np.ndarray:
        """Return the values of a slice across an axis of the array, in the volume's unit (HU for CT)."""

    @abstractmethod
    def sampled(self) -> np.ndarray:
        """Return values at regular distances in the whole volume, at most about a million."""

    @property
    def spacing(self) -> tuple[float, ...]:
        """Millimetres between voxels along each axis of the array."""
        return tuple(float(length) for length in np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0)))

    def axis(self, plane: str) -> tuple[int, bool]:
        """Return the array's axis that is closest to the normal of a plane, and whether it grows along RAS+."""
        return next((axis, grows) for axis, (world, grows) in enumerate(self._axes) if world == _NORMAL[plane])

    def count(self, plane: str) -> int:
        """Return the number of slices of a plane."""
        return self.shape[self.axis(plane)[0]]

    def spread(self, plane: str, number: int, margin: float) -> list[int]:
        """Return indices of slices at equal distances, from the feet up, from the back or from the patient's left.

        Args:
            plane: the plane.
            number: of slices; all slices between the margins, if there are fewer.
            margin: share of the slices that is left out at each end.
        """
        axis, grows = self.axis(plane)
        total = self.shape[axis]
        first, last = margin * total, (1 - margin) * total
        places = [math.floor(first + (at + 0.5) * (last - first) / number) for at in range(number)]
        unique = sorted({min(max(place, 0), total - 1) for place in places})
        return unique if grows else [total - 1 - place for place in unique]

    def limits(self, window: Sequence[float] | None) -> tuple[float, float]:
        """Return the values that are shown black and white.

        Args:
            window: centre and width; None takes the 0.5th and the 99.5th percentile of the volume.
        """
        if window is not None:
            return window[0] - window[1] / 2, window[0] + window[1] / 2
        values = self.sampled()
        values = values[np.isfinite(values)]
        if not values.size:
            return 0.0, 1.0
        lowest, highest = np.percentile(values, _SHARES)
        return float(lowest), float(highest)

    def image(self, plane: str, index: int, limits: tuple[float, float]) -> np.ndarray:
        """Return a slice as it is shown to a radiologist, ``uint8`` ``[height, width]``.

        Axial slices are seen from the feet, coronal ones from the front: the patient's right is on the left. Sagittal
        slices are seen from the patient's left: the front is on the left. The head, and in axial slices the front, is
        up. If the voxels are not square, the coarser side is resized (bilinear), so that the image's pixels are.

        Args:
            plane: the plane.
            index: of the slice, along :meth:`axis` of the array as it is in the file.
            limits: from :meth:`limits`.
        """
        axis, _ = self.axis(plane)
        values = self.cut(axis, index)
        rest = [number for number in range(3) if number != axis]
        down, right = _DOWN_AND_RIGHT[plane]
        if self._axes[rest[0]][0] != down:
            rest, values = rest[::-1], values.T
        for at, number in enumerate(rest):
            if self._axes[number][1]:  # RAS+ is up and left in all three planes
                values = np.flip(values, axis=at)
        lowest, highest = limits
        shown = scaled(np.nan_to_num(values, nan=lowest, posinf=highest, neginf=lowest), lowest, highest)
        tall, wide = (self.spacing[number] for number in rest)
        if abs(tall / wide - 1) <= _EQUAL_SPACING:
            return shown
        finest = min(tall, wide)
        size = (max(1, round(shown.shape[1] * wide / finest)), max(1, round(shown.shape[0] * tall / finest)))
        if math.prod(size) > _MOST_VOXELS // 16:
            raise DataError("has voxels of so different lengths that a slice cannot be shown; resample it.")
        return np.asarray(Image.fromarray(np.ascontiguousarray(shown)).resize(size, Image.Resampling.BILINEAR))


def check_plane(plane: str) -> None:
    """Refuse an unknown plane.

    Raises:
        ConfigError: naming the planes.
    """
    if plane not in get_args(Plane):
        raise ConfigError(f"plane: {plane!r} is unknown; use {', '.join(get_args(Plane))}.")


def open_volume(path: Path, channel: int | None = None) -> Volume:
    """Read the header of a volume.

    Args:
        path: a NIfTI file (``.nii``, ``.nii.gz``), an ``.mgz`` or ``.mgh`` file, or the folder of one DICOM series.
        channel: index along the fourth dimension of a file that has one.

    Raises:
        DataError: if nibabel is absent, or the volume cannot be used. The message is a phrase that follows its name.
    """
    refuse_special(path)
    if path.is_dir():
        from medtune.data.dicom_series import DicomSeries

        return DicomSeries(path)
    if not path.name.lower().endswith(SUFFIXES):
        raise DataError(f"is no volume; give {', '.join(SUFFIXES)}, or the folder of a DICOM series.")
    return NiftiVolume(path, channel)


class NiftiVolume(Volume):
    """A file that nibabel reads. Values stay as they are stored in memory, and are scaled slice by slice."""

    def __init__(self, path: Path, channel: int | None = None) -> None:
        with reading_nibabel() as nibabel:
            self._file: Any = nibabel.load(path)
            shape, kind = tuple(self._file.shape), self._file.get_data_dtype()
            header = self._file.header
            oriented = any(int(header[code]) > 0 for code in ("sform_code", "qform_code") if code in header)
            oriented = oriented or not any(code in header for code in ("sform_code", "qform_code"))
            affine = np.asarray(self._file.affine, dtype=np.float64)
        if kind.fields is not None or kind.kind not in "iuf":
            raise DataError(f"holds values of the type {kind}; save it with one number for each voxel.")
        self._channel = _channel_of(shape, channel)
        super().__init__(shape[:3], affine, oriented)
        if math.prod(shape) * kind.itemsize > path.stat().st_size - 348 and path.suffix.lower() == ".nii":
            raise DataError("is truncated (it is shorter than its header says); replace it by a whole copy.")
        self._stored: np.ndarray | None = None

    def _array(self) -> np.ndarray:
        if self._stored is None:
            with reading_nibabel():
                stored = self._file.dataobj.get_unscaled()
                self._stored = stored if stored.ndim == 3 else stored[..., self._channel]
        return self._stored

    def _scaled(self, stored: np.ndarray) -> np.ndarray:
        data = self._file.dataobj
        return np.asarray(stored, dtype=np.float64) * float(data.slope) + float(data.inter)

    def cut(self, axis: int, index: int) -> np.ndarray:
        """Return the values of a slice, scaled by ``scl_slope`` and ``scl_inter``."""
        array = self._array()
        with reading_nibabel():  # a file that is mapped into memory is read here
            return self._scaled(np.take(array, index, axis=axis))

    def sampled(self) -> np.ndarray:
        """Return scaled values at regular distances."""
        array = self._array()
        with reading_nibabel():
            return self._scaled(array.ravel(order="K")[:: max(1, -(-array.size // _SAMPLED))])


def _channel_of(shape: tuple[int, ...], channel: int | None) -> int:
    """Return the index along the fourth dimension; 0 if there is none, or if it has one entry."""
    fourth = math.prod(shape[3:])
    if len(shape) > 4 and fourth != 1:
        raise DataError(f"has {len(shape)} dimensions; a volume has three, or four with channel.")
    if fourth == 1 and not channel:
        return 0
    if channel is None:
        raise DataError(f"holds {fourth} volumes (a fourth dimension); set channel to one from 0 to {fourth - 1}.")
    if not 0 <= channel < fourth:
        raise DataError(f"holds {fourth} volumes, counted from 0, so that there is no channel {channel}.")
    return channel


def _orientation(affine: np.ndarray) -> list[tuple[int, bool]]:
    """Return for each axis of the array the world axis that it is closest to, and whether it grows along it."""
    with reading_nibabel() as nibabel:
        found = nibabel.orientations.io_orientation(affine)
    if np.isnan(found).any():
        raise DataError("names an orientation that is impossible (its affine matrix); write it anew.")
    return [(int(world), bool(grows > 0)) for world, grows in found]


@contextmanager
def reading_nibabel() -> Iterator[Any]:
    """Yield nibabel, and turn the exceptions that it raises on damaged files into a DataError."""
    try:
        import nibabel
    except ImportError:
        raise DataError("is a volume; install nibabel to read it (pip install 'medtune[volumes]').") from None
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # it prints each oddity of a header
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield nibabel
    except DataError:
        raise
    except Exception as error:  # the type depends on the damage
        kind = type(error).__name__
        raise DataError(f"is truncated or damaged ({kind}); replace it by a whole copy, or remove the row.") from None


@dataclass(frozen=True)
class Choice:
    """Which slices are shown, and how.

    Attributes:
        plane: their plane.
        slices: their number, at equal distances; or their indices in the file.
        margin: share of the slices that is left out at each end if ``slices`` is a number.
        window: centre and width of the values shown; None takes each volume's own range.
    """

    plane: str
    slices: int | tuple[int, ...]
    margin: float = 0.0
    window: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_plane(self.plane)
        if isinstance(self.slices, int) and self.slices < 1 or self.slices == ():
            raise ConfigError(f"slices is {self.slices}; it must be a number from 1 on, or a list of indices.")
        if not 0 <= self.margin < 0.5:
            raise ConfigError(f"margin is {self.margin}; it must be at least 0 and below 0.5.")
        if self.window is not None and not self.window[1] > 0:
            raise ConfigError(
                "window must be a centre and a width above 0, for example [40, 400] for soft tissue in HU."
            )

    def indices(self, volume: Volume, own: tuple[int, ...] | None = None) -> list[int]:
        """Return the indices of a volume's slices, in the order of the images.

        Args:
            volume: the volume.
            own: indices that the row names, which come before :attr:`slices`.

        Raises:
            DataError: for an index beyond the volume; a phrase that follows its name.
        """
        chosen = own if own is not None else self.slices
        if isinstance(chosen, int):
            return volume.spread(self.plane, chosen, self.margin)
        total = volume.count(self.plane)
        beyond = [index for index in chosen if not 0 <= index < total]
        if beyond:
            raise DataError(f"has {total} {self.plane} slices, counted from 0, so that there is no slice {beyond[0]}.")
        return list(chosen)
