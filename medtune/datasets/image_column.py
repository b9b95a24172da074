"""Paths of images in a table's column, which may lack the suffix of the file."""

from collections.abc import Callable
from pathlib import PurePosixPath

from medtune.data.image_names import split_frame
from medtune.errors import ConfigError, DataError

SUFFIXES = frozenset(".png .jpg .jpeg .bmp .gif .tif .tiff .webp .jp2 .ppm .pgm .dcm".split())
"""Suffixes of files that count as images."""


def check_suffix(suffix: str | None) -> None:
    """Check the key ``image_suffix``.

    Raises:
        ConfigError: for a suffix that does not begin with a dot; an empty one is for files without a suffix.
    """
    if suffix and not suffix.startswith("."):
        raise ConfigError(f"image_suffix: {suffix!r} must begin with a dot, for example .png.")


def image_path(
    cell: str, suffix: str | None, where: str, column: str, is_image: Callable[[str], bool] | None = None
) -> str:
    """Return the path of an image that a cell names.

    Args:
        cell: a path or an id, not empty.
        suffix: added to a cell without the suffix of an image; None refuses such a cell, an empty text keeps it.
        where: file and row, for messages.
        column: name of the column, for messages.
        is_image: whether there is an image of this name, asked if the cell has no suffix and none is given.

    Raises:
        DataError: for a cell that does not name an image. The message does not quote it: if the column is the wrong
            one, its cells may hold a patient's name.
    """
    path, _ = split_frame(cell, f"{where}, column {column!r}")
    if PurePosixPath(path).suffix.lower() in SUFFIXES:
        return cell
    if suffix is not None:
        return path + suffix + cell[len(path) :]
    if is_image is not None and is_image(cell):
        return cell
    raise DataError(
        f"{where}: the cell of column {column!r} is not the path of an image (no suffix such as .png, .jpg or .dcm); "
        "correct image_column, or give image_suffix: the suffix that the cells lack, '' if the files have none."
    )
