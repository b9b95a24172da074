"""Images: found inside their root, decoded on demand, and always returned as 8-bit RGB."""

import io
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from PIL import Image, ImageOps

from medtune.data.dicom import DicomHeader, choose_frame, dicom_header, dicom_image, is_dicom, needs_decoding
from medtune.data.image_names import inside, safe_path, said_of_similar, split_frame
from medtune.data.image_stores import Folder, Store, Tar
from medtune.data.opening import refuse_special
from medtune.data.pixels import GREY_BITS, to_rgb
from medtune.data.png import filled
from medtune.errors import ConfigError, DataError

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "JPEG2000", "PPM")
MAX_PIXELS = 80_000_000
_HEADER_BYTES = 1 << 18
_TAIL_BYTES = 1 << 12
_END_MARKS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}
_INFLATED_BYTES = 1 << 22
_ORIENTATION = 0x0112
_INTERPRETATION, _COLORMAP = 262, 320


class ImageRoot:
    """A folder or a plain tar file that image paths are relative to.

    No file is kept open and no image is decoded before it is requested, so that one object serves any number of images
    and worker processes. A tar file costs 24 bytes of memory per member.

    The path of an image may name a frame: ``scan.dcm#frame=3``, counted from 0. It is a frame of a DICOM file, a page
    of a TIFF file, or an image of an animation. A file of several frames is refused if none is named.

    Args:
        path: the folder, or the ``.tar`` file (not compressed, because its members are read in any order).
        grey_bits: depth of grey values in files of 16 bits; see :func:`medtune.data.pixels.to_rgb`.

    Raises:
        ConfigError: if ``grey_bits`` is not from 8 to 16.
        DataError: if the path is neither a folder nor a tar file.
    """

    def __init__(self, path: str | Path, grey_bits: int | None = None) -> None:
        if grey_bits is not None and grey_bits not in GREY_BITS:
            raise ConfigError(f"grey_bits is {grey_bits}; it must be the depth of the grey values, from 8 to 16 bits.")
        self.path, self.grey_bits = Path(path).expanduser(), grey_bits
        refuse_special(self.path)
        if self.path.is_dir():
            self._store: Store = Folder(self.path)
        elif self.path.is_file():
            self._store = Tar(self.path)
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
                safe.append(safe_path(split_frame(name, "")[0], ""))
        return self._store.files(safe)

    def names(self) -> Iterator[str]:
        """Yield the path of every file in the root, images or not, hidden ones too, in a fixed order."""
        return self._store.names()

    def size(self, name: str, where: str) -> tuple[int, int]:
        """Read an image's header, and decode the image where the header does not suffice.

        Of JPEG, PNG and DICOM the header is enough, if the end does not look cut off and the data of a PNG fill the
        size that its header names (checked up to 4 MB of pixels). Images of other formats are decoded.

        Args:
            name: path relative to the root, with ``/``.
            where: file and row that name the image, for messages.

        Returns:
            Width and height in pixels of the image as :meth:`load` returns it.

        Raises:
            DataError: for a path outside the root; for a file that is absent, truncated or not an image; for one of
                several frames, if none is named.
        """
        with self._opened(name, where) as found:
            head = found.read(_HEADER_BYTES)
            whole = len(head) < _HEADER_BYTES
            if is_dicom(head):
                return self._dicom_size(found, head, whole)
            try:
                image = _open(io.BytesIO(head), found)
            except DataError:
                if whole:
                    raise
                return self._decoded(found).size
            if image.format not in _END_MARKS or found.frame or _END_MARKS[image.format] not in found.tail(head):
                return self._decoded(found).size
            _choose_frame(image, found)
            if image.format == "PNG" and not _is_filled(head, found):
                return self._decoded(found).size
            return (image.height, image.width) if _lies_on_its_side(image) else image.size

    def load(self, name: str, where: str) -> Image.Image:
        """Decode an image to 8-bit RGB, upright by its orientation in EXIF or TIFF.

        Grey, palette, CMYK, 16-bit and transparent images are converted by :func:`medtune.data.pixels.to_rgb`. DICOM
        files are recognised by their content and converted by :func:`medtune.data.dicom.dicom_image`.

        Args:
            name: path relative to the root, with ``/``.
            where: file and row that name the image, for messages.

        Raises:
            DataError: as :meth:`size`, and for an image that is damaged or too large.
        """
        with self._opened(name, where) as found:
            return self._decoded(found)

    def _decoded(self, found: "_Found") -> Image.Image:
        return _decode(found, self.grey_bits)

    def _dicom_size(self, found: "_Found", head: bytes, whole: bool) -> tuple[int, int]:
        """Return the size that a DICOM header names; decode the file only if it looks cut off."""
        try:
            with found.named():
                header = _checked(dicom_header(head), found)
        except DataError:  # also if the header is longer than the part that was read
            if whole:
                raise
            return self._decoded(found).size
        with found.named():
            choose_frame(header.frames, found.frame, found.name)
        if needs_decoding(header, found.size, found.tail(head)):
            return self._decoded(found).size
        return header.columns, header.rows

    @contextmanager
    def _opened(self, name: str, where: str) -> Iterator["_Found"]:
        """Yield an image's file, with errors that name file and row."""
        path, frame = split_frame(name, where)
        below = inside(path, self.path) if isinstance(self._store, Folder) else None
        if below is not None:
            raise DataError(
                f"{where}: the image path {path!r} is absolute; it lies below the image root, so write {below!r}."
            )
        relative = safe_path(path, where)
        with ExitStack() as stack:
            try:
                file, size = stack.enter_context(self._store.open(relative))
            except (FileNotFoundError, NotADirectoryError):
                raise DataError(f"{where}: {self._absent(relative)}") from None
            except OSError as error:
                raise DataError(f"{where}: the image {path} in {self.path} cannot be read: {error.strerror}.") from None
            except DataError as error:
                raise DataError(f"{where}: {error}") from None
            yield _Found(file, size, path, frame, where)

    def _absent(self, name: PurePosixPath) -> str:
        for tried in (name, PurePosixPath(str(name).replace("\\", "/"))):
            similar = self._store.similar(tried)
            if similar is not None:
                return said_of_similar(str(name), similar, self.path)
        return f"the image {name} is not in {self.path}; correct the path or the image root, or add the file."


def image_of_bytes(data: bytes, where: str, max_pixels: int | None = None) -> Image.Image:
    """Decode an image that came in memory, for example in a request, as :meth:`ImageRoot.load` decodes a file.

    Args:
        data: the contents of an image file.
        where: what names the image, for messages.
        max_pixels: limit of its width times its height, below :data:`MAX_PIXELS`; a larger image is not decoded.

    Raises:
        DataError: if it is damaged, too large, of several frames, or not an image.
    """
    return _decode(_Found(io.BytesIO(data), len(data), "sent", None, where, max_pixels), None)


def image_root_of(path: str | Path | None, grey_bits: int | None) -> ImageRoot | None:
    """Return the images of a data set; None without a path.

    Raises:
        ConfigError: if ``grey_bits`` is not from 8 to 16.
        DataError: if there is no such folder or tar file.
    """
    return None if path is None else ImageRoot(path, grey_bits)


@dataclass(frozen=True)
class _Found:
    """An image's open file.

    Attributes:
        file: the file.
        size: in bytes.
        name: path of the image, without its frame.
        frame: the frame that the row names.
        where: file and row.
        limit: of width times height, if it is lower than that of all images.
    """

    file: BinaryIO
    size: int
    name: str
    frame: int | None
    where: str
    limit: int | None = None

    @property
    def max_pixels(self) -> int:
        """Limit of width times height."""
        return MAX_PIXELS if self.limit is None else min(self.limit, MAX_PIXELS)

    def read(self, size: int = -1) -> bytes:
        """Read bytes of the file."""
        try:
            return self.file.read(size)
        except OSError as error:
            raise DataError(f"{self.where}: the image {self.name} cannot be read: {error.strerror}.") from None

    def tail(self, head: bytes) -> bytes:
        """Return the file's last bytes.

        Args:
            head: its first bytes, or all of them.
        """
        if len(head) < _HEADER_BYTES:
            return head[-_TAIL_BYTES:]
        self.file.seek(max(0, self.size - _TAIL_BYTES))
        return self.read(_TAIL_BYTES)

    @contextmanager
    def named(self) -> Iterator[None]:
        """Prepend file, row and image to a message that is a phrase about the image."""
        try:
            yield
        except DataError as error:
            raise DataError(f"{self.where}: the image {self.name} {error}") from None


def _decode(found: _Found, grey_bits: int | None) -> Image.Image:
    found.file.seek(0)
    head = found.read(_HEADER_BYTES)
    found.file.seek(0)
    if is_dicom(head):
        whole = head if len(head) < _HEADER_BYTES else found.read()
        with found.named():
            header = _checked(dicom_header(whole), found)
            return dicom_image(found.file, choose_frame(header.frames, found.frame, found.name))
    image = _open(found.file, found)
    _choose_frame(image, found)
    try:
        inverted = _repaired_tiff(image)
        image.load()
        with found.named():
            return to_rgb(ImageOps.exif_transpose(image), grey_bits, inverted)
    except DataError:
        raise
    except Exception as error:  # what Pillow raises on damaged data depends on the format and on the damage
        raise DataError(
            f"{found.where}: the image {found.name} is truncated or damaged ({error}); "
            "replace it by a whole copy, or remove the row."
        ) from None


def _open(file: BinaryIO, found: _Found) -> Image.Image:
    """Open an image without decoding it; refuse a file that is not an image or is too large."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of images that Pillow finds large, and of damaged EXIF
            image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:
        raise DataError(_too_large(found)) from None
    except Exception:  # what Pillow raises on damaged data depends on the format and on the damage
        kind = "no image that can be read" if found.size else "empty"
        hint = f"replace it by one of {', '.join(FORMATS)} or DICOM, or remove the row"
        if PurePosixPath(found.name).name.startswith("._"):
            kind, hint = "a resource file of macOS, no image", "remove the row"
        raise DataError(f"{found.where}: the file {found.name} is {kind}; {hint}.") from None
    if image.width * image.height > found.max_pixels:
        raise DataError(_too_large(found))
    return image


def _checked(header: DicomHeader, found: _Found) -> DicomHeader:
    if header.rows * header.columns > found.max_pixels:
        raise DataError(_large_phrase(found.max_pixels))
    return header


def _choose_frame(image: Image.Image, found: _Found) -> None:
    """Go to the frame that is meant; refuse a file of several frames if the row names none."""
    try:
        frames = getattr(image, "n_frames", 1)
        if image.format == "MPO" and found.frame is None:
            frames = 1  # phones store a preview as a second frame
        with found.named():
            frame = choose_frame(frames, found.frame, found.name)
        if frame:
            image.seek(frame)
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{found.where}: the image {found.name} is truncated or damaged ({error}); replace it."
        ) from None
    if image.width * image.height > found.max_pixels:  # a page of its own size
        raise DataError(_too_large(found))


def _is_filled(head: bytes, found: _Found) -> bool:
    """Return whether a PNG can be trusted without decoding it.

    Raises:
        DataError: if its data are of another size than its header says.
    """
    data = head
    if len(head) == _HEADER_BYTES:
        found.file.seek(0)
        data = found.read()
    extent = filled(data, _INFLATED_BYTES)
    if extent in ("less", "more"):
        raise DataError(
            f"{found.where}: the image {found.name} is truncated or damaged (its data hold {extent} than the size in "
            "its header); replace it by a whole copy, or remove the row."
        )
    return extent != "damaged"


def _repaired_tiff(image: Image.Image) -> bool:
    """Mend what Pillow reads otherwise than viewers; return whether large values of a TIFF of 16 bits are dark.

    The colours of a TIFF palette have 16 bits, of which Pillow takes the upper 8. Some programs write 8-bit colours
    there, which would all be black.
    """
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return False
    colours = tags.get(_COLORMAP)
    if image.mode == "P" and colours and max(colours) < 256:
        image.load()
        image.putpalette(bytes(colours), "RGB;L")
    return tags.get(_INTERPRETATION) == 0


def _lies_on_its_side(image: Image.Image) -> bool:
    """Return whether EXIF rotates the image by 90 degrees; for a PNG only if that needs no decoding."""
    if image.format == "PNG" and "exif" not in image.info:
        return False
    try:
        return image.getexif().get(_ORIENTATION, 1) >= 5
    except Exception:  # damaged EXIF: load() decides
        return False


def _too_large(found: _Found) -> str:
    return f"{found.where}: the image {found.name} {_large_phrase(found.max_pixels)}"


def _large_phrase(most: int) -> str:
    return f"has more than {most:,} pixels; crop it or make it smaller first."
