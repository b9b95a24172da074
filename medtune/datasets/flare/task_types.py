"""The seven tasks of FLARE's 2D questions, under the names that the files of 2025 and 2026 give them."""

import re

from medtune.errors import DataError

TASKS = (
    "classification",
    "multi_label_classification",
    "detection",
    "instance_detection",
    "counting",
    "regression",
    "report_generation",
)
"""The tasks by their normalised names; ``Sample.meta["task"]`` is one of them."""
_OTHER_NAMES = {
    "disease_diagnosis_classification": "classification",
    "disease_diagnosis": "classification",
    "multilabel_classification": "multi_label_classification",
    "multi_label": "multi_label_classification",
    "cell_counting": "counting",
}
_BETWEEN = re.compile(r"[\s_-]+")


def task_type(text: object, where: str = "") -> str:
    """Return the normalised name of a ``TaskType``.

    Case does not matter, and spaces, hyphens and underscores are the same: ``Multi-label Classification`` and
    ``multi_label_classification`` are one task. Of the names of 2026, ``disease_diagnosis_classification`` is
    ``classification`` and ``cell_counting`` is ``counting``.

    Args:
        text: the ``TaskType`` of a row.
        where: file and row, for the message.

    Raises:
        DataError: for anything else; the message names the known tasks, and does not quote the cell.
    """
    name = _BETWEEN.sub("_", text.strip().lower()).strip("_") if isinstance(text, str) else ""
    name = _OTHER_NAMES.get(name, name)
    if name not in TASKS:
        raise DataError(
            f"{where or 'TaskType'}: the TaskType is unknown; write one of {', '.join(TASKS)} (spaces, hyphens and "
            "capitals do not matter), or remove the row."
        )
    return name
