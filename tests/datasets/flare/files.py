"""Small folders in FLARE's official layout."""

import json
from pathlib import Path
from typing import Any

from tests.datasets.owners import write_picture

SIZE = (24, 20)
ROWS: dict[str, dict[str, Any]] = {
    "classification": {"TaskType": "classification", "Question": "Which? A: x, B: y", "Answer": "B"},
    "multi_label_classification": {
        "TaskType": "multi-label classification",
        "Question": "Which findings?",
        "Answer": "Dental Caries; Pulp Diseases",
    },
    "detection": {"TaskType": "Detection", "Question": "Where?", "Answer": "[[1, 2, 10, 12], [0, 0, 24, 20]]"},
    "instance_detection": {"TaskType": "instance detection", "Question": "Which?", "Answer": '{"1": [[1, 2, 3, 4]]}'},
    "counting": {"TaskType": "Counting", "Question": "How many?", "Answer": 7},
    "regression": {"TaskType": "Regression", "Question": "How much?", "Answer": "33.3000691475987"},
    "report_generation": {"TaskType": "Report Generation", "Question": "Describe.", "Answer": "No acute process."},
}
"""A good row of each task, without its image."""


def row(task: str, image: Any = "imagesTr/0.png", **changes: Any) -> dict[str, Any]:
    """A row in the official fields; a change to None removes the field."""
    fields = {"Modality": "Ultrasound", "ImageName": image, "Split": "train", **ROWS[task], **changes}
    return {key: value for key, value in fields.items() if value is not None}


def write_set(
    root: Path,
    *rows: dict[str, Any],
    dataset: str = "BUSI",
    folder: str = "training/Ultrasound",
    part: str = "train",
    images: int = 2,
) -> Path:
    """Write one data set of a split with its images; return the question file."""
    place = root / folder / dataset
    for number in range(images):
        write_picture(place / "imagesTr" / f"{number}.png", number, SIZE)
    place.mkdir(parents=True, exist_ok=True)
    path = place / f"{dataset}_questions_{part}.json"
    path.write_text(json.dumps(list(rows), ensure_ascii=False), encoding="utf-8")
    return path
