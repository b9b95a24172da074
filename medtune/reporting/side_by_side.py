"""Whole answers of all runs side by side, with the right answer and remarks where the protocol has them."""

from collections.abc import Sequence

from medtune.data.sample import IMAGE_TAG
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.registry import REGISTRY
from medtune.reporting.displays import displays
from medtune.reporting.gallery import OpenImage, thumbnail
from medtune.reporting.runs import Run
from medtune.reporting.views import Example, Option, Section


def side_by_side_sections(runs: Sequence[Run], samples: int, open_image: OpenImage | None) -> list[Section]:
    """Return a section for each protocol whose answers are shown side by side.

    Args:
        runs: Runs whose predictions were read.
        samples: Number of images; the first ones of the question file are shown, with every prompt about them. 0 shows
            nothing, and then the page holds nothing of a patient.
        open_image: Opens an image by its path in the question file; None shows no images.
    """
    sections = []
    for name, shown in displays(run.results for run in runs).items():
        if not shown.side_by_side or samples <= 0:
            continue
        asked: dict[str, Prediction] = {}
        for run in runs:
            rows = (row for row in run.predictions.values() if row.task == name and not row.meta.get("swapped"))
            asked = {**{row.id: row for row in rows}, **asked}
        images = list(dict.fromkeys(tuple(row.meta["images"]) for row in asked.values()))[:samples]
        examples = [
            _example(runs, name, row, open_image)
            for shown_images in images
            for row in asked.values()
            if tuple(row.meta["images"]) == shown_images
        ]
        if examples:
            sections.append(Section(shown.title, shown.side_by_side, examples=examples))
    return sections


def _example(runs: Sequence[Run], protocol: str, asked: Prediction, open_image: OpenImage | None) -> Example:
    opened = [thumbnail(path, open_image) for path in asked.meta["images"]]
    answers = [(run.name, run.predictions.get(asked.id)) for run in runs]
    said = {name: _remarks(protocol, row) for name, row in answers if row is not None}
    right = next((text for text, _ in said.values() if text), "")
    options = [
        Option(
            name,
            "(not asked)" if row is None else row.prediction or "(no words)",
            said[name][1] if name in said else "",
        )
        for name, row in answers
    ]
    return Example(
        asked.prompt.replace(IMAGE_TAG, "").strip(),
        [picture for picture, _ in opened if picture],
        [*([Option("reference answer", right, tone="good")] if right else []), *options],
        next((trouble for _, trouble in opened if trouble), ""),
    )


def _remarks(protocol: str, row: Prediction) -> tuple[str, str]:
    """Return the right answer and the remarks on an answer; none for a protocol whose code is not there."""
    return REGISTRY[protocol]().remarks(row) if protocol in REGISTRY else ("", "")
