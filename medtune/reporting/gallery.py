"""Sample images with question, right answer, and what every run said. Shown only when asked for."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from medtune.data.images import ImageRoot
from medtune.data.randomness import sample_rng
from medtune.errors import MedtuneError
from medtune.evaluation.prediction import Prediction
from medtune.reporting.plots import colour
from medtune.reporting.runs import Run
from medtune.reporting.summary import PROTOCOL_TITLES

OpenImage = Callable[[str], Image.Image]
SHOWN_TASKS = ("open", "multiple_choice", "yes_no", "description", "classification")
ASKING = ("open", "multiple_choice", "yes_no", "classification")
"""Protocols whose rows name a question with its right answer."""
_LONGEST = 220


@dataclass(frozen=True)
class Answer:
    """One answer's text and verdict: ``right``, ``wrong``, ``unread``, or empty where there is no right answer."""

    text: str
    verdict: str


@dataclass(frozen=True)
class Card:
    """One question on one image.

    Args:
        question: The open question, or the attribute.
        gold: The right answer.
        picture: Data URI of the image, empty where it was not opened.
        trouble: Why there is no picture.
        tasks: Titles of the answers' columns.
        answers: Run name, its colour, and one answer (or None) for each column.
        reason: Why the question was chosen; empty for a choice by the seed.
    """

    question: str
    gold: str
    picture: str
    trouble: str
    tasks: list[str]
    answers: list[tuple[str, str, list[Answer | None]]]
    reason: str = ""


def image_opener(image_root: str | Path) -> OpenImage:
    """Return what opens the images of a question file, from a folder or a ``.tar`` file.

    Raises:
        DataError: There is no such image root.
    """
    root = ImageRoot(image_root)
    return lambda path: root.load(path, "report")


def choose_cards(runs: Sequence[Run], samples: int, open_image: OpenImage | None, seed: int = 0) -> list[Card]:
    """Choose questions by the seed, never by the answers, in turn over the attributes, and gather all answers to them.

    Args:
        runs: Runs with their predictions read.
        samples: How many questions.
        open_image: Opens an image by its path in the question file; None shows none.
        seed: Seed of the choice.
    """
    asked = asked_questions(runs)
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
    return [make_card(runs, asked[sample_id], open_image) for sample_id in chosen[:samples]]


def asked_questions(runs: Sequence[Run]) -> dict[str, Prediction]:
    """Question id to one row that asked it on its own image, whichever run and protocol that was."""
    asked: dict[str, Prediction] = {}
    for run in runs:
        for row in run.predictions.values():
            if not row.meta.get("swapped") and row.task in ASKING:
                asked.setdefault(row.meta["sample_id"], row)
    return asked


def make_card(
    runs: Sequence[Run], asked: Prediction, open_image: OpenImage | None, tasks: Sequence[str] = SHOWN_TASKS
) -> Card:
    """Gather one question's image and every run's answers to it.

    Args:
        runs: Runs with their predictions read.
        asked: A row that asked the question (:func:`asked_questions`).
        open_image: Opens an image by its path in the question file; None shows none.
        tasks: Protocols whose answers to show, as far as they were asked.
    """
    meta = asked.meta
    picture, trouble = _picture(meta["images"][0], open_image)
    ids = {task: f"{meta['sample_id']}/{task}" for task in SHOWN_TASKS}
    ids["description"] = "+".join(meta["images"]) + "/description"
    held = [task for task in tasks if any(ids[task] in run.predictions for run in runs)]
    answers = [(run.name, colour(place), [_answer(run, ids[task]) for task in held]) for place, run in enumerate(runs)]
    titles = [
        _task_title(task, next(r.predictions[ids[task]] for r in runs if ids[task] in r.predictions)) for task in held
    ]
    question = f"Set {meta['set']}" if asked.task == "classification" else f"What is the {meta['attribute']}?"
    return Card(question, meta["answer"], picture, trouble, titles, answers)


def _task_title(task: str, row: Prediction) -> str:
    if task == "yes_no":  # each question has its own value, the other prompts are the same throughout
        return row.prompt
    return row.prompt if task == "description" else PROTOCOL_TITLES[task]


def _answer(run: Run, query_id: str) -> Answer | None:
    row, judged = run.predictions.get(query_id), run.verdicts.get(query_id)
    if row is None:
        return None
    text = " ".join(row.prediction.split())
    text = text if len(text) <= _LONGEST else text[:_LONGEST].rstrip() + " …"
    if judged is None:
        return Answer(text, "")
    if row.task == "description":
        return Answer(text, "right" if judged["in_format"] == "1" else "wrong")
    return Answer(text, "right" if judged["correct"] == "1" else "wrong" if judged["read"] == "1" else "unread")


def _picture(path: str, open_image: OpenImage | None) -> tuple[str, str]:
    if open_image is None:
        return "", "no image root was given"
    try:
        image = open_image(path).convert("RGB")
    except (OSError, MedtuneError) as error:
        return "", f"the image could not be opened ({type(error).__name__})"
    image.thumbnail((224, 224))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return data_uri(buffer.getvalue(), "image/png"), ""


def data_uri(content: bytes, kind: str) -> str:
    """Embed bytes of a media type in a page."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
