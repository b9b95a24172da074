"""Right answers and read answers of FLARE's tasks in one written form, which ``verdicts.csv`` holds."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from medtune.datasets.flare.boxes import as_boxes, as_instances, as_value
from medtune.errors import DataError
from medtune.evaluation.flare.box_answers import read_boxes, read_instances
from medtune.evaluation.flare.choices import plain, read_choice, read_labels, split_labels
from medtune.evaluation.flare.numbers import read_number
from medtune.evaluation.flare.reading import EMPTY, Reading, cleaned

SCORED = ("classification", "multi_label_classification", "detection", "instance_detection", "counting", "regression")
"""Tasks whose answers are read into values; reports are texts."""
REPORT = "*"
"""Written in place of a report, whose text is never in ``verdicts.csv``."""


def read_answer(task: str, answer: str, options: Mapping[str, str], labels: Sequence[str]) -> Reading:
    """Read an answer by its task.

    Args:
        task: normalised name.
        answer: the model's answer.
        options: lettered options of the question.
        labels: labels of the data set, where they are known.
    """
    if task == "classification":
        return read_choice(answer, options, labels)
    if task == "multi_label_classification":
        return read_labels(answer, labels)
    if task == "detection":
        return read_boxes(answer)
    if task == "instance_detection":
        return read_instances(answer)
    if task in ("counting", "regression"):
        return read_number(answer, count=task == "counting")
    return Reading(REPORT) if cleaned(answer) else Reading(reason=EMPTY)


def right_value(task: str, answer: str, options: Mapping[str, str], labels: Sequence[str], where: str) -> Any:
    """Return a right answer as a value of the form that :func:`read_answer` returns.

    Raises:
        DataError: if it is no answer of this task.
    """
    value: Any = None
    if task == "classification":
        folded = plain(answer)
        texts = {plain(text): letter for letter, text in options.items()}
        lone = answer.strip().upper() if len(answer.strip()) == 1 else ""
        value = lone or texts.get(folded) or folded
    elif task == "multi_label_classification":
        value = tuple(sorted({plain(label) for label in split_labels(answer, labels)} - {""}))
    elif task == "detection":
        boxes = as_boxes(as_value(answer))
        value = None if boxes is None else tuple(boxes)
    elif task == "instance_detection":
        value = as_instances(as_value(answer))
    elif task in ("counting", "regression"):
        try:
            value = float(answer)
        except ValueError:
            value = None
    else:
        value = REPORT
    if value is None:
        raise DataError(f"{where}: meta.answer is no answer to {task}; prepare the questions again.")
    return value


def written(value: Any) -> str:
    """Return a value as text: a letter as it is, a number, and JSON of everything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return repr(int(value)) if value == int(value) else repr(value)
    return json.dumps(value, ensure_ascii=False)


def value_of(task: str, text: str) -> Any:
    """Return the value that :func:`written` made a text of."""
    if task in ("counting", "regression"):
        return float(text)
    if task == "multi_label_classification":
        return tuple(json.loads(text))
    if task == "detection":
        return tuple(tuple(box) for box in json.loads(text))
    if task == "instance_detection":
        return json.loads(text)
    return text
