"""Names of images in rows: paths below an image root, with the frame that is meant of a file of several."""

import os
import re
import unicodedata
from pathlib import Path, PurePosixPath

from medtune.errors import DataError

_FRAME = "#frame="


def split_frame(name: str, where: str) -> tuple[str, int | None]:
    """Return path and frame of an image's name: ``scan.dcm#frame=3`` is frame 3 of ``scan.dcm``.

    Frames of a DICOM file, pages of a TIFF file and images of an animation are counted from 0.

    Raises:
        DataError: if something else than a whole number is given as the frame.
    """
    path, mark, frame = name.rpartition(_FRAME)
    if not mark:
        return name, None
    if not re.fullmatch(r"[0-9]{1,9}", frame):
        raise DataError(f"{where}: the frame in the image path {name!r} must be a whole number from 0 on; correct it.")
    return path, int(frame)


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


def inside(name: str, root: Path) -> str | None:
    """Return the part of an absolute path below a root; None if the path is relative, or is not below the root."""
    if not name.isprintable() or not name.startswith("/") or ".." in PurePosixPath(name).parts:
        return None
    for folder in (Path(os.path.abspath(root)), Path(os.path.realpath(root))):
        path = PurePosixPath(name)
        if path.is_relative_to(folder) and path != PurePosixPath(folder):
            return path.relative_to(folder).as_posix()
    return None


def folded(name: str) -> str:
    """Return a name without the differences that people do not see: case, Unicode form, spaces around it."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()).strip()


def hidden_part(name: str) -> str | None:
    """Return the part of a path that an operating system or a program made for itself; None if there is none.

    These are names that begin with a dot (``.ipynb_checkpoints``, ``.DS_Store``) or with ``~$``, the resource files of
    macOS (``._x.png``, all given as ``._*``), and known folders and files without a dot (``__MACOSX``, ``Thumbs.db``).

    Args:
        name: path with ``/``, relative to the folder or archive that is read.
    """
    for part in PurePosixPath(name).parts:
        if part.startswith((".", "~$")) or part.casefold() in _RESOURCES:
            return part if not part.startswith("._") else "._*"
    return None


_RESOURCES = frozenset(
    "__macosx thumbs.db ehthumbs.db desktop.ini @eadir #recycle #snapshot $recycle.bin lost+found __pycache__ "
    "icon\r".split(" ")
) | {"system volume information"}


def said_of_similar(name: str, found: str, root: Path) -> str:
    """Return the sentence about an image that is absent, where another name is there instead.

    Args:
        name: the name in the row.
        found: the name that is there.
        root: the image root.
    """
    there = f"the image {name} is not in {root}, but {found} is"
    if name.replace("\\", "/") == found:
        return f"the image path {name!r} is written with backslashes; write {found!r}."
    if unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", found):
        forms = " and ".join(_form(text) for text in (name, found))
        return (
            f"the image {name} is not in {root}, but a file whose name looks the same is: the two names are written "
            f"in different Unicode forms ({forms}); rename the file, or write the row in the same form."
        )
    if folded(name.replace("\\", "/")) == folded(found):
        return f"{there}; upper and lower case count, so correct the path."
    if name.endswith(f"/{found}"):
        return f"{there}: the path repeats the end of the image root; remove it from the path."
    return f"{there}; correct the path, or add the file."


def _form(text: str) -> str:
    return next((form for form in ("NFC", "NFD") if unicodedata.is_normalized(form, text)), "mixed")
