"""Right and read boxes drawn on sample images, with the IoU of each pair. Shown only on request, as it shows patients.

A right box has a solid line and a read one a dashed line, so that a reader who sees no colours can tell them apart; the
alternative text of each picture says the same in words. Boxes of one class have one colour.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from PIL import Image
from scipy.optimize import linear_sum_assignment

from medtune.data.randomness import sample_rng
from medtune.datasets.flare.boxes import Box, as_boxes, as_instances
from medtune.errors import MedtuneError
from medtune.evaluation.flare.metrics import iou_matrix
from medtune.reporting.displays import displays
from medtune.reporting.gallery import OpenImage, data_uri, encoded
from medtune.reporting.runs import Run
from medtune.reporting.views import Picture, Section

_COLOURS = ("#ffb000", "#00b7eb", "#ff5a8a", "#7dd85a", "#c59bff", "#ffffff")
"""One colour per class, light ones: a dark edge makes each readable on light and dark images."""
_LONGEST = 460
_MOST = 40
"""Boxes of one answer that are drawn and listed; the others are counted."""
Classes = Mapping[str, Sequence[Box]]


@dataclass(frozen=True)
class Pairing:
    """Right and read boxes of one image with their IoU.

    Attributes:
        right: Class and box of each right box.
        read: Class, box and IoU of each read box; an IoU of 0 belongs to a box without a partner.
    """

    right: list[tuple[str, Box]]
    read: list[tuple[str, Box, float]]

    @property
    def words(self) -> str:
        """The same as text, for readers who do not see the picture."""
        listed = [f"{name} {iou:.2f}".strip() for name, _, iou in self.read[:_MOST]]
        more = f" and {len(self.read) - _MOST} more" if len(self.read) > _MOST else ""
        shown = f", IoU {', '.join(listed)}{more}" if listed else ""
        return f"right boxes: {len(self.right)}, read: {len(self.read)}{shown}"


def overlay_sections(runs: Sequence[Run], samples: int, open_image: OpenImage | None, seed: int = 0) -> list[Section]:
    """Return a section for each protocol whose answers are boxes, with sample images chosen by a seed.

    Args:
        runs: The runs; their verdicts hold the boxes.
        samples: Number of questions; 0 shows nothing.
        open_image: Opens an image by its path in the question file; without it nothing is drawn.
        seed: Seed of the choice, which does not depend on the answers.
    """
    sections = []
    for task, shown in displays(run.results for run in runs).items():
        if not shown.boxes or samples <= 0 or open_image is None:
            continue
        asked: dict[str, dict[str, str]] = {}
        for run in runs:
            for id, row in run.verdicts.items():
                if row["task"] == task and row["swapped"] == "0" and row["attribute"].endswith(shown.boxes):
                    asked.setdefault(id, row)
        ids = sorted(asked)
        sample_rng(seed, 0, 0, "report_boxes").shuffle(ids)
        pictures = [picture for id in ids[:samples] for picture in _pictures(runs, id, asked[id], open_image)]
        if pictures:
            help = (
                "Solid lines are right boxes, dashed ones were read from the answer, with the IoU of the pairing that "
                "has the largest sum. Boxes of one class have one colour. Chosen by a seed, not by their answers."
            )
            sections.append(
                Section(f"{shown.title}: boxes on sample images", help, pictures=pictures, across=min(3, len(runs)))
            )
    return sections


def _pictures(runs: Sequence[Run], id: str, asked: Mapping[str, str], open_image: OpenImage) -> list[Picture]:
    path = asked["images"].split("+")[0]
    try:
        image = open_image(path).convert("RGB")
    except (OSError, MedtuneError) as error:
        return [Picture("", "", f"{id}: the image could not be opened ({type(error).__name__})")]
    found = []
    for run in runs:
        row = run.verdicts.get(id)
        if row is None:
            continue
        pairs = paired_boxes(read_classes(row["gold"]), read_classes(row["predicted"]) if row["read"] == "1" else {})
        said = pairs.words if row["read"] == "1" else f"right boxes: {len(pairs.right)}, answer unread"
        picture = data_uri(overlay(image, pairs).encode("utf-8"), "image/svg+xml")
        found.append(Picture(picture, f"{id}, {run.name}: {said}", f"{run.name}, {row['attribute']}: {said}"))
    return found


def read_classes(text: str) -> dict[str, list[Box]]:
    """Return boxes by class from the JSON of ``verdicts.csv``; boxes without classes have the class ``""``."""
    try:
        value: Any = json.loads(text)
    except ValueError:
        return {}
    if isinstance(value, dict):
        return as_instances(value) or {}
    boxes = as_boxes(value)
    return {"": boxes} if boxes else {}


def paired_boxes(right: Classes, read: Classes) -> Pairing:
    """Pair the boxes of each class so that the sum of the IoU is largest (Kuhn 1955, by scipy).

    Args:
        right: Class to right boxes.
        read: Class to the boxes of an answer.
    """
    found: list[tuple[str, Box, float]] = []
    for name, boxes in read.items():
        shared = iou_matrix(list(boxes), list(right.get(name, ())))
        best = np.zeros(len(boxes))
        for row, column in zip(*linear_sum_assignment(-shared), strict=True):
            best[row] = shared[row, column]
        found += [(name, box, float(iou)) for box, iou in zip(boxes, best, strict=True)]
    return Pairing([(name, box) for name, boxes in right.items() for box in boxes], found)


def overlay(image: Image.Image, pairs: Pairing) -> str:
    """Draw boxes on an image that is made small.

    Args:
        image: The image, in whose pixels the boxes are given.
        pairs: The boxes.

    Returns:
        SVG text that holds the image.
    """
    scale = min(1.0, _LONGEST / max(image.size))
    small = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    width, height = small.size
    classes = sorted({name for name, _ in pairs.right} | {name for name, _, _ in pairs.read})
    ink = {name: _COLOURS[at % len(_COLOURS)] for at, name in enumerate(classes)}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        f"<title>{escape(pairs.words)}</title>",
        f'<image href="{encoded(small)}" width="{width}" height="{height}"/>',
    ]
    parts += [_drawn(box, scale, ink[name], "", name) for name, box in pairs.right[:_MOST]]
    for name, box, iou in pairs.read[:_MOST]:
        label = f"{name} {iou:.2f}".strip()
        parts.append(_drawn(box, scale, ink[name], ' stroke-dasharray="6 4"', label, below=True))
    return "".join([*parts, "</svg>"])


def _drawn(box: Box, scale: float, ink: str, dashes: str, label: str, below: bool = False) -> str:
    """Return one box with a dark edge below its coloured line, and its label; numbers are bounded to stay drawable."""
    x1, y1, x2, y2 = (float(np.clip(number * scale, -1e4, 1e4)) for number in box)
    x, y, width, height = min(x1, x2), min(y1, y2), abs(x2 - x1), abs(y2 - y1)
    frame = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="none"{dashes}'
    left, at = max(1.0, x), max(18.0, y + height if below else y + 18)
    text = (
        f'<rect x="{left:.1f}" y="{at - 18:.1f}" width="{9 * len(label) + 6}" height="18" fill="#000" opacity="0.72"/>'
        f'<text x="{left + 3:.1f}" y="{at - 4:.1f}" font-family="DejaVu Sans, Arial, sans-serif" font-size="15" '
        f'fill="{ink}">{escape(label)}</text>'
        if label
        else ""
    )
    return (
        f'<rect {frame} stroke="#000" stroke-width="4" stroke-opacity="0.6"/>'
        f'<rect {frame} stroke="{ink}" stroke-width="2"/>{text}'
    )
