"""Two models' answers to the same questions as candidates of a judge, and how often the judge prefers the second's."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medtune.data.sample import Message
from medtune.errors import DataError
from medtune.evaluation.metrics import bootstrap_interval
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.result import Metric
from medtune.judges.base import Judgement
from medtune.judges.candidates import Candidate, HeldCandidates
from medtune.judges.completion import read_answers
from medtune.judges.scored_answers import fingerprint, reference_of

_LEFT_OUT = "unread judgements and empty answers are left out; interval by a bootstrap over images"
_DEFINITION = (
    "share of the questions for which the judge prefers the second model's answer; a tie counts half, and so do two "
    f"equal answers; {_LEFT_OUT}"
)
_OF_POINTS = (
    "mean over questions of the second model's points: 1 for each reply that prefers its answer, half for a tie, the "
    f"mean over both orders; two equal answers count half; {_LEFT_OUT}"
)
_GROUPED = ("attribute", "answer_type", "question_type")
"""Keys of a prediction's ``meta`` by whose values win rates are given too."""


class ComparedAnswers(HeldCandidates):
    """Answers of two models as candidates: the first model's answer to each question, and the second's.

    Questions that were asked on other images than their own are left out.

    Args:
        first: Answers (``predictions.jsonl``) of the model to compare with.
        second: Answers of the other model.
        image_root: Folder or ``.tar`` of the images; None if they are not opened.
        questions: Question file that completes answers of other programs; None takes what the answers say.

    Raises:
        DataError: A file cannot be read, or the two models were not asked the same.
    """

    def __init__(
        self,
        first: str | Path,
        second: str | Path,
        image_root: str | Path | None = None,
        questions: str | Path | None = None,
    ) -> None:
        self.paths, self._questions = (Path(first).expanduser(), Path(second).expanduser()), questions
        super().__init__(" and ".join(str(path) for path in self.paths), str(self.paths[0]), image_root)
        one, other = (_own(path, questions) for path in self.paths)
        _check_same(self.paths, one, other)
        self._rows = [(row, other[name]) for name, row in one.items()]

    def __len__(self) -> int:
        """Return the number of questions."""
        return len(self._rows)

    def __getitem__(self, index: int) -> Candidate:
        """Return a question with both answers."""
        first, second = self._rows[index]
        groups = {name: first.meta[name] for name in _GROUPED if isinstance(first.meta.get(name), str)}
        return Candidate(
            first.id,
            _images(first),
            (Message("user", first.prompt),),
            groups,
            answers=(first.prediction, second.prediction),
            context={"reference": reference_of(first)},
        )

    def fingerprint(self) -> str:
        """Return a SHA-256 of both files, and of the questions if they complete them."""
        return fingerprint(self.paths, self._questions)


def win_rate(judgements: Mapping[str, Judgement], asked: Iterable[Candidate], points: bool = False) -> dict[str, Any]:
    """Return how often the second answer wins.

    Args:
        judgements: Judgements by id of the candidate.
        asked: The candidates; those without a judgement are left out.
        points: Whether the scores are points of a win, which add up to 1; else the higher score wins.

    Returns:
        ``rate`` (a :class:`~medtune.evaluation.result.Metric` as plain values) and the counts ``wins``, ``ties``,
        ``identical`` (equal answers, which count as ties), ``losses`` and ``left_out``; and ``groups``, the same for
        the questions of each value of ``attribute``, ``answer_type`` and ``question_type``, where there are several.
    """
    judged = [(one, judgements[one.id]) for one in asked if one.id in judgements]
    found = _counted(judged, points)
    groups = {}
    for name in _GROUPED:
        values = sorted({one.meta[name] for one, _ in judged if name in one.meta})
        if len(values) > 1:
            groups[name] = {
                value: _counted([pair for pair in judged if pair[0].meta.get(name) == value], points)
                for value in values
            }
    return {**found, "groups": groups}


def _counted(judged: Sequence[tuple[Candidate, Judgement]], points: bool) -> dict[str, Any]:
    counts = dict.fromkeys(("wins", "ties", "identical", "losses", "left_out"), 0)
    values: list[float] = []
    images: list[str] = []
    for candidate, judgement in judged:
        outcome, value = _outcome(judgement)
        counts[outcome] += 1
        if value is None:
            continue
        values.append(judgement.scores[1] if points and judgement.scores else value)
        images.append("+".join(candidate.images) or candidate.id)
    return {"rate": _rate(values, images, _OF_POINTS if points else _DEFINITION).to_dict(), **counts}


def _outcome(judgement: Judgement) -> tuple[str, float | None]:
    """Return the name of the count that a judgement belongs to, and its part of a win; None if it has none."""
    if judgement.scores is None:
        return ("identical", 0.5) if judgement.reason == "identical_answers" else ("left_out", None)
    if judgement.preferred is None:
        return "ties", 0.5
    return ("wins", 1.0) if judgement.preferred else ("losses", 0.0)


def _rate(values: Sequence[float], images: Sequence[str], definition: str) -> Metric:
    if not values:
        return Metric(None, "fraction", True, 0, None, definition)
    binary = set(values) <= {0.0, 1.0}
    interval = bootstrap_interval(values, [""] * len(values), images, lambda means: means[:, 0], binary=binary)
    return Metric(float(np.mean(values)), "fraction", True, len(values), interval, definition)


def _own(path: Path, questions: str | Path | None) -> dict[str, Prediction]:
    """Return the answers to questions on their own images, by id."""
    rows = [row for row in read_answers(path, questions) if not row.meta.get("swapped") and not row.meta.get("probe")]
    if not rows:
        raise DataError(f"{path}: there are no answers to compare; run the predict recipe first.")
    return {row.id: row for row in rows}


def _check_same(paths: Sequence[Path], one: Mapping[str, Prediction], other: Mapping[str, Prediction]) -> None:
    if one.keys() != other.keys():
        shared = len(one.keys() & other.keys())
        raise DataError(
            f"{paths[0]} answers {len(one)} questions and {paths[1]} {len(other)}, {shared} of them the same; ask both "
            "models with the same questions, protocols and limit."
        )
    for name, row in one.items():
        if (row.prompt, _images(row)) != (other[name].prompt, _images(other[name])):
            raise DataError(
                f"question {name!r} has another prompt or other images in {paths[1]} than in {paths[0]}; ask both "
                "models with the same questions."
            )


def _images(row: Prediction) -> tuple[str, ...]:
    return tuple(row.meta.get("images") or ())
