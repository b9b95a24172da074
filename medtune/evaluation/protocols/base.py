"""What a protocol is: it turns a question into queries for the model, and judges the answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

from medtune.data.multiple_choice import open_question
from medtune.data.sample import IMAGE_TAG, Message, Sample
from medtune.errors import DataError
from medtune.evaluation.prediction import Prediction


class Query(NamedTuple):
    """One thing to ask the model.

    Args:
        id: Unique id; the same question gives the same id in every run.
        task: Name of the protocol.
        sample: What the model sees: images and one user turn.
        continuations: Texts whose log-probability is wanted; empty where the model answers freely.
        references: Right answers as text.
        meta: Goes into the prediction row unchanged.
    """

    id: str
    task: str
    sample: Sample
    continuations: tuple[str, ...]
    references: tuple[str, ...]
    meta: dict[str, Any]

    @property
    def prompt(self) -> str:
        """What the user's turn says."""
        return self.sample.messages[-1].content


@dataclass(frozen=True)
class Verdict:
    """One answer, read and judged.

    Args:
        id: Id of the query.
        task: Name of the protocol.
        sample_id: Id of the question that the query was made of.
        attribute: What was asked for.
        images: The image shown; answers on one image form one cluster of the bootstrap.
        gold: The right value.
        predicted: The value that was read from the answer, None where none could be read.
        in_format: Whether the answer has the form that was asked for (instruction retention).
        swapped: Whether another question's image was shown.
        chance: Probability that a blind guess is right.
        prior: Whether the training split's most frequent value is right.
        shown_differs: Whether the image shown has another right answer than the question's own (swapped images alone).
    """

    id: str
    task: str
    sample_id: str
    attribute: str
    images: tuple[str, ...]
    gold: str
    predicted: str | None
    in_format: bool
    swapped: bool
    chance: float
    prior: bool
    shown_differs: bool = False

    @property
    def correct(self) -> bool:
        """Whether the value read is the right one; an answer that cannot be read is wrong."""
        return self.predicted is not None and self.predicted == self.gold


@dataclass(frozen=True)
class Vocabulary:
    """What is known of the whole question file, needed to tell an answer from a recited report.

    Args:
        majority: Most frequent value of each attribute in the training split.
        attributes: Names of all attributes.
        terms: Every attribute name and value: the words that reports are made of.
    """

    majority: dict[str, str]
    attributes: tuple[str, ...]
    terms: tuple[str, ...]

    @classmethod
    def of(cls, samples: Sequence[Sample], majority: dict[str, str]) -> "Vocabulary":
        """Collect the vocabulary of a question file.

        Raises:
            DataError: An attribute has no majority value.
        """
        attributes = sorted({question_meta(sample)["attribute"] for sample in samples})
        for attribute in attributes:
            if attribute not in majority:
                raise DataError(
                    f"the majority values of the training split lack the attribute {attribute!r}; "
                    "prepare the data again, so that questions and majority values come from one run."
                )
        values = {str(value) for sample in samples for value in sample.meta["options"]}
        return cls(dict(majority), tuple(attributes), tuple(sorted(values | set(attributes))))


class EvaluationProtocol(Protocol):
    """One way to ask and to score."""

    name: ClassVar[str]

    def requests(self, sample: Sample) -> list[Query]:
        """Return the queries of one question (``meta`` holds ``attribute``, ``options``, ``answer``)."""

    def judge(self, row: Prediction, vocabulary: Vocabulary) -> Verdict:
        """Read and judge one answer."""


def question_meta(sample: Sample) -> dict[str, Any]:
    """Return a question's ``meta`` after a check of ``attribute``, ``options`` and ``answer``.

    Raises:
        DataError: One is missing or does not fit the others; the message names the sample.
    """
    meta = sample.meta
    where = f"question {sample.id!r}"
    if not isinstance(meta.get("attribute"), str) or not meta["attribute"].strip():
        raise DataError(f"{where}: meta needs a text 'attribute'.")
    options = meta.get("options")
    if not isinstance(options, list | tuple) or not 2 <= len(options) <= 26 or len(set(options)) != len(options):
        raise DataError(f"{where}: meta needs 'options', a list of 2 to 26 different texts.")
    if meta.get("answer") not in options:
        raise DataError(f"{where}: meta needs an 'answer' that is one of its 'options'.")
    if not sample.images:
        raise DataError(f"{where}: a question needs an image.")
    return meta


def question_text(sample: Sample) -> tuple[str, list[str], str]:
    """Return a question's wording, options and answer.

    The wording is the sample's own user turn without image tags, else ``What is the {attribute}?``.
    """
    meta = question_meta(sample)
    turns = [message.content.replace(IMAGE_TAG, "").strip() for message in sample.messages if message.role == "user"]
    question = turns[0] if turns and turns[0] else open_question(meta["attribute"])
    return question, list(meta["options"]), meta["answer"]


def make_query(
    name: str,
    sample: Sample,
    prompt: str,
    references: Sequence[str],
    *,
    continuations: Sequence[str] = (),
    **extra: Any,
) -> Query:
    """Build the query of one question with the common ``meta``; ``extra`` joins it.

    A swapped sample (see :mod:`medtune.evaluation.swapped`) gets ``/swapped`` at the end of its id.
    """
    meta = question_meta(sample)
    swapped = bool(meta.get("swapped", False))
    query_id = f"{sample.id}/{name}" + ("/swapped" if swapped else "")
    row_meta = {
        "sample_id": sample.id,
        "attribute": meta["attribute"],
        "options": list(meta["options"]),
        "answer": meta["answer"],
        "images": list(sample.images),
        "swapped": swapped,
        **({"swapped_with": meta["swapped_with"], "shown_answer": meta["shown_answer"]} if swapped else {}),
        **extra,
    }
    asked = Sample(id=query_id, images=sample.images, messages=(Message("user", prompt),), meta={})
    return Query(query_id, name, asked, tuple(continuations), tuple(references), row_meta)


def make_verdict(row: Prediction, predicted: str | None, in_format: bool, **changes: Any) -> Verdict:
    """Build a verdict from a row's ``meta``; ``changes`` replaces fields."""
    meta = row.meta
    fields: dict[str, Any] = {
        "id": row.id,
        "task": row.task,
        "sample_id": meta["sample_id"],
        "attribute": meta["attribute"],
        "images": tuple(meta["images"]),
        "gold": meta["answer"],
        "predicted": predicted,
        "in_format": in_format,
        "swapped": bool(meta["swapped"]),
        "chance": 1.0 / len(meta["options"]),
        "prior": False,
        "shown_differs": meta.get("shown_answer") is not None and meta["shown_answer"] != meta["answer"],
    }
    return Verdict(**{**fields, **changes})
