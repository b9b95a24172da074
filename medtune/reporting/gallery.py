"""Sample images with question, right answer and the answers of every run. Shown only on request."""

import base64
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from medtune.data.images import ImageRoot
from medtune.data.randomness import sample_rng
from medtune.errors import MedtuneError
from medtune.evaluation.display import Display, Examples
from medtune.evaluation.measures import MEASURE
from medtune.evaluation.prediction import Prediction
from medtune.reporting.displays import Displays, displays
from medtune.reporting.plots import colour
from medtune.reporting.runs import Run

OpenImage = Callable[[str], Image.Image]
_LONGEST = 220


@dataclass(frozen=True)
class Answer:
    """One answer's text and verdict: ``right``, ``wrong``, ``unread``, or empty if there is no right answer."""

    text: str
    verdict: str


@dataclass(frozen=True)
class Card:
    """One question on one image.

    Args:
        question: The open question, or the attribute.
        gold: The right answer.
        picture: Data URI of the image; empty if it was not opened.
        trouble: Why there is no image.
        tasks: Titles of the answer columns.
        answers: Run name, its colour, and one answer (or None) for each column.
        reason: Why the question was chosen; empty for a random choice.
    """

    question: str
    gold: str
    picture: str
    trouble: str
    tasks: list[str]
    answers: list[tuple[str, str, list[Answer | None]]]
    reason: str = ""


def image_opener(image_root: str | Path) -> OpenImage:
    """Return a function that opens the images of a question file, from a folder or a ``.tar`` file.

    Raises:
        DataError: The image root does not exist.
    """
    root = ImageRoot(image_root)
    return lambda path: root.load(path, "report")


def choose_cards(runs: Sequence[Run], samples: int, open_image: OpenImage | None, seed: int = 0) -> list[Card]:
    """Choose random questions, in turn over the attributes, and collect all answers to them.

    The choice depends on the seed and never on the answers.

    Args:
        runs: Runs whose predictions were read.
        samples: Number of questions.
        open_image: Opens an image by its path in the question file; None shows no images.
        seed: Seed of the choice.
    """
    shown = displays(run.results for run in runs)
    asked = asked_questions(runs, shown)
    by_attribute: dict[str, list[str]] = {}
    for sample_id in sorted(asked):
        by_attribute.setdefault(asked[sample_id].meta["attribute"], []).append(sample_id)
    rng = sample_rng(seed, 0, 0, "report_samples")
    piles = list(by_attribute.values())
    for pile in piles:
        rng.shuffle(pile)
    rng.shuffle(piles)
    chosen: list[str] = []
    while len(chosen) < samples and any(piles):
        chosen += [pile.pop() for pile in piles if pile]
    examples = with_examples(shown)
    return [make_card(runs, asked[sample_id], open_image, examples) for sample_id in chosen[:samples]]


def with_examples(shown: Displays) -> dict[str, Display]:
    """Return the protocols whose answers are shown on sample images."""
    return {name: display for name, display in shown.items() if display.examples is not None}


def asked_questions(runs: Sequence[Run], shown: Displays) -> dict[str, Prediction]:
    """Map question id to one row that asked it on its own image, from any run and protocol."""
    asked: dict[str, Prediction] = {}
    asking = {name for name, display in shown.items() if display.examples is not None and display.examples.asks}
    for run in runs:
        for row in run.predictions.values():
            if not row.meta.get("swapped") and not row.meta.get("probe") and row.task in asking:
                asked.setdefault(row.meta["sample_id"], row)
    return asked


def make_card(runs: Sequence[Run], asked: Prediction, open_image: OpenImage | None, shown: Displays) -> Card:
    """Collect one question's image and every run's answers to it.

    Args:
        runs: Runs whose predictions were read.
        asked: A row that asked the question (:func:`asked_questions`).
        open_image: Opens an image by its path in the question file; None shows no image.
        shown: Protocols whose answers are shown if they were asked (:func:`with_examples`).
    """
    meta = asked.meta
    picture, trouble = thumbnail(meta["images"][0], open_image)
    rows = {task: [_row(run, task, display, meta) for run in runs] for task, display in shown.items()}
    answered_tasks = [task for task in shown if any(row is not None for row in rows[task])]
    answers = [
        (run.name, colour(place), [_answer(run, rows[task][place], shown[task].examples) for task in answered_tasks])
        for place, run in enumerate(runs)
    ]
    titles = [_heading(shown[task], next(row for row in rows[task] if row is not None)) for task in answered_tasks]
    examples = shown[asked.task].examples if asked.task in shown else None
    question = _filled((examples or Examples()).question, asked)
    return Card(question, meta["answer"], picture, trouble, titles, answers)


def _row(run: Run, task: str, shown: Display, meta: Mapping[str, Any]) -> Prediction | None:
    """Return a run's answer to the question, or for a protocol that asks per image, its answer on the images."""
    per_image = shown.examples is not None and shown.examples.per_image
    asked = "+".join(meta["images"]) if per_image else meta["sample_id"]
    return run.predictions.get(f"{asked}/{task}")


def _heading(shown: Display, row: Prediction) -> str:
    examples = shown.examples
    return _filled(examples.heading, row) if examples is not None and examples.heading else shown.title


def _filled(text: str, row: Prediction) -> str:
    """Fill in the prompt and the row's ``meta``; unknown names stay unchanged."""
    known = {**row.meta, "prompt": row.prompt}
    return re.sub(r"\{(\w+)\}", lambda match: str(known.get(match[1], match[0])), text)


def _answer(run: Run, row: Prediction | None, examples: Examples | None) -> Answer | None:
    if row is None or examples is None:
        return None
    text = " ".join(row.prediction.split())
    text = text if len(text) <= _LONGEST else text[:_LONGEST].rstrip() + " …"
    verdict = run.verdicts.get(row.id)
    if verdict is None:
        return Answer(text, "")
    number = verdict.get(f"{MEASURE}{examples.measure}", "") if examples.measure else ""
    text += f" ({examples.measure.replace('_', ' ')} {float(number):g})" if number else ""
    if examples.mark == "none":
        return Answer(text, "")
    if verdict[examples.mark] == "1":
        return Answer(text, "right")
    return Answer(text, "unread" if examples.mark == "correct" and verdict["read"] != "1" else "wrong")


def thumbnail(path: str, open_image: OpenImage | None) -> tuple[str, str]:
    """Return a small image as a data URI, and why there is none; one of the two is empty.

    Args:
        path: Path of the image for ``open_image``.
        open_image: Opens an image; None if no image root was given.
    """
    if open_image is None:
        return "", "no image root was given"
    try:
        image = open_image(path).convert("RGB")
    except (OSError, MedtuneError) as error:
        return "", f"the image could not be opened ({type(error).__name__})"
    image.thumbnail((224, 224))
    return encoded(image), ""


def encoded(image: Image.Image) -> str:
    """Return an image as the data URI of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return data_uri(buffer.getvalue(), "image/png")


def data_uri(content: bytes, kind: str) -> str:
    """Return bytes as a data URI of a media type, to embed in a page."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
