"""The right answers of FLARE's questions, as they are trained on and scored, and the checks on them."""

import json
import math
from typing import Any

from medtune.datasets.flare.boxes import NOT_BOXES, Box, as_boxes, as_instances, as_value, check_order
from medtune.errors import DataError

LABELS_JOINED = "; "
"""Between the labels of one answer, if the file gives them as a list."""


def has_answer(value: Any) -> bool:
    """Return whether a row has an answer; a hidden one is absent, null or empty."""
    return value is not None and not (isinstance(value, str) and not value.strip())


def answer_task(task: str, value: Any) -> str:
    """Return the task of a row: of detection, a dictionary of boxes is an answer to instance detection.

    The files of 2026 name both ``detection``.
    """
    if task == "detection":
        value = as_value(value) if isinstance(value, str) else value
        return "instance_detection" if isinstance(value, dict) else task
    return task


def answer_text(task: str, value: Any, where: str) -> str:
    """Check a right answer and return it as the text that a model learns to write; a text stays as it is.

    Args:
        task: normalised name of the task.
        value: the ``Answer`` of the row, JSON or a text.
        where: file and row, for the message.

    Raises:
        DataError: if it is no answer of this task; the message does not quote it.
    """
    text = value.strip() if isinstance(value, str) else _written(task, value)
    if task in ("detection", "instance_detection"):
        check_order(answer_boxes(task, text, where), where)
    elif task in ("counting", "regression"):
        _check_number(task, text, where)
    elif text is None or not text:
        raise DataError(f"{where}: the Answer of {task} must be a text; correct or remove the row.")
    assert text is not None
    return text


def answer_boxes(task: str, text: str | None, where: str) -> list[Box]:
    """Return the boxes of a right answer, of all classes one after the other; [] for a task without boxes.

    Raises:
        DataError: if the answer holds something else.
    """
    if task not in ("detection", "instance_detection"):
        return []
    value = as_value(text) if text is not None else None
    if task == "detection":
        boxes = as_boxes(value)
        if boxes is None:
            raise DataError(f"{where}: the Answer of detection {NOT_BOXES}; correct or remove the row.")
        return boxes
    instances = as_instances(value)
    if instances is None:
        raise DataError(
            f"{where}: the Answer of instance_detection must be an object from a class to its boxes, such as "
            '{"1": [[x_min, y_min, x_max, y_max]]}; correct or remove the row.'
        )
    return [box for boxes in instances.values() for box in boxes]


def _written(task: str, value: Any) -> str | None:
    """Return an answer that is not a text as a text; None for a value that no task has."""
    if isinstance(value, bool) or not isinstance(value, int | float | list | dict):
        return None
    if task == "multi_label_classification" and isinstance(value, list):
        return LABELS_JOINED.join(value) if all(isinstance(item, str) for item in value) else None
    if isinstance(value, list | dict) and task not in ("detection", "instance_detection"):
        return None
    try:
        return json.dumps(value, ensure_ascii=False)
    except ValueError:  # a number of thousands of digits
        return None


def _check_number(task: str, text: str | None, where: str) -> None:
    try:
        number = float(text) if text is not None else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or (task == "counting" and (number < 0 or number != int(number))):
        kind = "a whole number, 0 or more" if task == "counting" else "a number"
        raise DataError(f"{where}: the Answer of {task} must be {kind}; correct or remove the row.")
