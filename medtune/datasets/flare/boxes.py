"""Boxes in FLARE's answers: ``[x_min, y_min, x_max, y_max]`` in pixels of the image as it is stored."""

import ast
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from medtune.errors import DataError

Box = tuple[float, float, float, float]
"""``x_min, y_min, x_max, y_max`` in pixels."""
NOT_BOXES = "must be boxes [x_min, y_min, x_max, y_max], one or a list of them"


def as_value(text: str) -> Any:
    """Decode a text of JSON, or of a Python literal (single quotes, tuples); None if it is neither."""
    for decode in (json.loads, ast.literal_eval):
        try:
            return decode(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
    return None


def as_box(value: Any) -> Box | None:
    """Return four finite numbers as a box; None for anything else."""
    if not isinstance(value, list | tuple) or len(value) != 4:
        return None
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in value):
        return None
    try:
        x1, y1, x2, y2 = (float(number) for number in value)
    except OverflowError:
        return None
    box = (x1, y1, x2, y2)
    return box if all(math.isfinite(number) for number in box) else None


def as_boxes(value: Any) -> list[Box] | None:
    """Return a flat box ``[x1, y1, x2, y2]`` or a list of boxes as a list of boxes; None for anything else.

    An empty list is no box.
    """
    flat = as_box(value)
    if flat is not None:
        return [flat]
    if not isinstance(value, list | tuple):
        return None
    boxes = [as_box(item) for item in value]
    return None if None in boxes else [box for box in boxes if box is not None]


def as_instances(value: Any) -> dict[str, list[Box]] | None:
    """Return ``{class: boxes}`` with flat or nested boxes; None for anything else."""
    if not isinstance(value, Mapping):
        return None
    instances: dict[str, list[Box]] = {}
    for name, of in value.items():
        boxes = as_boxes(of)
        if boxes is None:
            return None
        instances.setdefault(str(name).strip(), []).extend(boxes)
    return instances


def check_order(boxes: Sequence[Box], where: str) -> None:
    """Check that no box is turned around. A box without area, which the published sets hold, passes.

    Raises:
        DataError: naming the row and the number of the box.
    """
    for number, (x1, y1, x2, y2) in enumerate(boxes, start=1):
        if x2 < x1 or y2 < y1:
            axis = "x" if x2 < x1 else "y"
            raise DataError(
                f"{where}: box {number} of the Answer has {axis}_max < {axis}_min; write [x_min, y_min, x_max, y_max], "
                "or remove the row."
            )


def check_inside(boxes: Sequence[Box], sizes: Sequence[tuple[int, int]], where: str) -> None:
    """Check that each box lies in one of the question's images, edges included.

    Args:
        boxes: the boxes.
        sizes: width and height of each image in pixels.
        where: file and row, for the message.

    Raises:
        DataError: naming the row and the number of the box.
    """
    for number, (x1, y1, x2, y2) in enumerate(boxes, start=1):
        if not any(x1 >= 0 and y1 >= 0 and x2 <= width and y2 <= height for width, height in sizes):
            seen = ", ".join(f"{width} x {height}" for width, height in sizes)
            raise DataError(
                f"{where}: box {number} of the Answer lies outside of the image ({seen} pixels); coordinates are "
                "pixels of the image as it is stored: correct them, or remove the row."
            )
