"""Images: found inside their root, decoded on demand, and always returned as 8-bit RGB."""

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, Protocol

import numpy as np
from PIL import Image, ImageOps

from medtune.data.dicom import dicom_header, dicom_image, is_dicom, looks_cut_off
from medtune.data.pixels import to_rgb
from medtune.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "JPEG2000", "PPM")
MAX_PIXELS = 80_000_000
_HEADER_BYTES = 1 << 18
_TAIL_BYTES = 1 << 12
_END_MARKS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}
_ORIENTATION = 0x0112


class _Store(Protocol):
    def open(self, name: PurePosixPath) -> AbstractContextManager[tuple[BinaryIO, int, int]]:
        """Return a file, the first byte of the image in it, and the image's size in bytes."""
        ...

    def files(self, names: Sequence[PurePosixPath]) -> list[str]:
        """Return the absolute paths of the files that hold these images."""
        ...


class ImageRoot:
    """A folder or a plain tar file that image paths are relative to.

    No file is kept open and no image is decoded before it is requested, so that one object serves any number of images
    and worker processes. A tar file costs 24 bytes of memory per member.

    Args:
        path: the folder, or the ``.tar`` file (not compressed, because its members are read in any order).

    Raises:
        DataError: if the path is neither of them.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        if self.path.is_dir():
            self._store: _Store = _Folder(self.path)
        elif self.path.is_file():
            self._store = _Tar(self.path)
        else:
            raise DataError(f"The image root {self.path} does not exist; give the folder or .tar file of the images.")

    def files(self, names: Iterable[str]) -> list[str]:
        """Return the absolute paths of the files that hold images, whether or not they exist.

        Args:
            names: paths relative to the root; paths that :func:`safe_path` refuses are left out.
        """
        safe = []
        for name in names:
            with suppress(DataError):
                safe.append(safe_path(name, ""))
        return self._store.files(safe)

    def size(self, name: str, where: str) -> tuple[int, int]:
        """Read an image's header, and decode it only if its end looks cut off.

        Args:
            name: path relative to the root, with ``/``.
            where: file and row that name the image, for messages.

        Returns:
            Width and height in pixels of the image as :meth:`load` returns it.

        Raises:
            DataError: for a path outside the root, and for a file that is absent, truncated or not an image.
        """
        relative = safe_path(name, where)
        data = self._read(relative, where, limit=_HEADER_BYTES)
        whole = len(data) < _HEADER_BYTES
        if is_dicom(data):
            return self._dicom_size(relative, data, whole, where)
        try:
            image = _open(data, name, where)
        except DataError:
            if whole:
                raise
            return self.load(name, where).size
        end = data[-_TAIL_BYTES:] if whole else self._read(relative, where, tail=_TAIL_BYTES)
        if _END_MARKS.get(image.format or "", b"") not in end:
            return self.load(name, where).size
        if whole:
            _check_frames(image, name, where)
        return (image.height, image.width) if _lies_on_its_side(image) else image.size

    def load(self, name: str, where: str) -> Image.Image:
        """Decode an image to 8-bit RGB, upright by its EXIF orientation.

        Grey, palette, CMYK, 16-bit and transparent images are converted by :func:`medtune.data.pixels.to_rgb`. DICOM
        files are recognised by their content and converted by :func:`medtune.data.dicom.dicom_image`.

        Args:
            name: path relative to the root, with ``/``.
            where: file and row that name the image, for messages.

        Raises:
            DataError: as :meth:`size`, and for an image that is damaged, has several frames or is too large.
        """
        data = self._read(safe_path(name, where), where)
        if is_dicom(data):
            _check_dicom(data, name, where)
            with _named(name, where):
                return dicom_image(data)
        image = _open(data, name, where)
        _check_frames(image, name, where)
        try:
            image.load()
            with _named(name, where):
                return to_rgb(ImageOps.exif_transpose(image))
        except DataError:
            raise
        except Exception as error:  # what Pillow raises on damaged data depends on the format and on the damage
            raise DataError(
                f"{where}: the image {name} is truncated or damaged ({error}); "
                "replace it by a whole copy, or remove the row."
            ) from None

    def _dicom_size(self, name: PurePosixPath, data: bytes, whole: bool, where: str) -> tuple[int, int]:
        """Return the size that a DICOM header names; decode the file only if it looks cut off."""
        try:
            header, pixels_at = _check_dicom(data, str(name), where)
        except DataError:  # also if the header is longer than the part that was read
            if whole:
                raise
            return self.load(str(name), where).size
        with self._store.open(name) as (_, _, size):
            end = self._read(name, where, tail=_TAIL_BYTES)
        if looks_cut_off(header, pixels_at, size, end):
            return self.load(str(name), where).size
        return int(header.Columns), int(header.Rows)

    def _read(self, name: PurePosixPath, where: str, limit: int | None = None, tail: int | None = None) -> bytes:
        """Return the first ``limit`` or the last ``tail`` bytes of an image, or all of them."""
        try:
            with self._store.open(name) as (file, start, size):
                file.seek(start if tail is None else start + max(0, size - tail))
                return file.read(min(size, limit or tail or size))
        except FileNotFoundError:
            raise DataError(
                f"{where}: the image {name} is not in {self.path}; correct the path or the image root, or add the file."
            ) from None
        except OSError as error:
            raise DataError(f"{where}: the image {name} in {self.path} cannot be read: {error.strerror}.") from None
        except DataError as error:
            raise DataError(f"{where}: {error}") from None


def safe_path(name: str, where: str) -> PurePosixPath:
    """Return a path that stays inside any root that it is joined to.

    Raises:
        DataError: for an absolute path, a drive letter, a ``..``, or an empty path.
    """
    path = PurePosixPath(name)
    if not name.strip():
        raise DataError(f"{where}: the path of the image is empty; fill it in, or remove the row.")
    if not name.isprintable():
        raise DataError(f"{where}: the image path {name!r} holds characters that cannot be printed; correct it.")
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:[\\/]|\\", name):
        raise DataError(f"{where}: the image path {name!r} leaves the image root; write it relative to the root.")
    return path


def _open(data: bytes, name: str, where: str) -> Image.Image:
    """Open an image without decoding it; refuse a file that is not an image or is too large."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise DataError(_too_large(name, where)) from None
    except Exception:  # what Pillow raises on damaged data depends on the format and on the damage
        kind = "no image that can be read" if data else "empty"
        hint = f"replace it by one of {', '.join(FORMATS)} or DICOM, or remove the row"
        raise DataError(f"{where}: the file {name} is {kind}; {hint}.") from None
    if image.width * image.height > MAX_PIXELS:
        raise DataError(_too_large(name, where))
    return image


@contextmanager
def _named(name: str, where: str) -> Iterator[None]:
    """Prepend file, row and image to a message that is a phrase about the image."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{where}: the image {name} {error}") from None


def _check_dicom(data: bytes, name: str, where: str) -> tuple["Dataset", int]:
    with _named(name, where):
        header, pixels_at = dicom_header(data)
    if header.Rows * header.Columns > MAX_PIXELS:
        raise DataError(_too_large(name, where))
    return header, pixels_at


def _check_frames(image: Image.Image, name: str, where: str) -> None:
    try:
        frames = (
            1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        )  # phones store a preview as a second frame
    except Exception as error:
        raise DataError(f"{where}: the image {name} is truncated or damaged ({error}); replace it.") from None
    if frames > 1:
        raise DataError(f"{where}: the image {name} holds {frames} frames; save the one that is meant by itself.")


def _lies_on_its_side(image: Image.Image) -> bool:
    """Return whether EXIF rotates the image by 90 degrees; for a PNG only if that needs no decoding."""
    if image.format == "PNG" and "exif" not in image.info:
        return False
    try:
        return image.getexif().get(_ORIENTATION, 1) >= 5
    except Exception:  # damaged EXIF: load() decides
        return False


def _too_large(name: str, where: str) -> str:
    return f"{where}: the image {name} has more than {MAX_PIXELS:,} pixels; crop it or make it smaller first."


class _Folder:
    """Files below a folder; links that lead out of it are refused."""

    def __init__(self, path: Path) -> None:
        self.root = path.resolve()

    def files(self, names: Sequence[PurePosixPath]) -> list[str]:
        return [os.path.join(self.root, name) for name in names]

    @contextmanager
    def open(self, name: PurePosixPath) -> Iterator[tuple[BinaryIO, int, int]]:
        path = Path(os.path.realpath(self.root / name))  # unlike resolve(), realpath does not raise on a loop of links
        if not path.is_relative_to(self.root):
            raise DataError(
                f"the image path {name} is a link that leaves the image root; copy the image into the root."
            )
        with path.open("rb") as file:
            yield file, 0, os.fstat(file.fileno()).st_size


class _Tar:
    """Members of a tar file, found through a sorted table of (hash of the name, offset, size)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            table = np.fromiter(_members(path), dtype=np.dtype((np.uint64, 3)))
        except (tarfile.TarError, OSError, EOFError) as error:
            raise DataError(
                f"The image root {path} is not a plain tar file ({error}); give a folder or an uncompressed .tar."
            ) from None
        self.hashes, self.offsets, self.sizes = table[np.argsort(table[:, 0], kind="stable")].T.copy()

    def files(self, names: Sequence[PurePosixPath]) -> list[str]:
        return [str(self.path.resolve())] if names else []

    @contextmanager
    def open(self, name: PurePosixPath) -> Iterator[tuple[BinaryIO, int, int]]:
        key = np.uint64(_name_hash(name))
        at = (
            int(np.searchsorted(self.hashes, key, side="right")) - 1
        )  # of members with the same name, the last one counts
        if at < 0 or self.hashes[at] != key:
            raise FileNotFoundError(name)
        with self.path.open("rb") as file:
            yield file, int(self.offsets[at]), int(self.sizes[at])


def _members(path: Path) -> Iterator[tuple[int, int, int]]:
    with tarfile.open(path, "r:") as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # otherwise tarfile keeps an object per member
            if member.isreg() and not member.issparse():
                yield _name_hash(PurePosixPath(member.name)), member.offset_data, member.size


def _name_hash(name: PurePosixPath) -> int:
    return int.from_bytes(hashlib.blake2b(str(name).encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")
