"""What a protocol is: it turns a question into queries for the model, judges the answers, and scores them all."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

from medtune.data.labels import Target, classification_target, is_classification
from medtune.data.multiple_choice import open_question
from medtune.data.sample import IMAGE_TAG, Message, Sample
from medtune.errors import DataError
from medtune.evaluation.display import Display
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.result import Metric


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
        chance: Probability that a blind guess is right; 0 where a guess has no such probability.
        prior: Whether the training split's most frequent value is right; None where no training split is known.
        shown_differs: Whether the image shown has another right answer than the question's own (swapped images alone).
        measures: Per-sample numbers by name, for example an absolute error; one that cannot be computed is left out.

    Attributes:
        tabulated: Whether such a verdict has a row in ``verdicts.csv``.
    """

    tabulated: ClassVar[bool] = True

    id: str
    task: str
    sample_id: str
    attribute: str
    images: tuple[str, ...]
    gold: str
    predicted: str | None
    in_format: bool
    swapped: bool
    chance: float = 0.0
    prior: bool | None = None
    shown_differs: bool = False
    measures: Mapping[str, float] = field(default_factory=dict)

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
    def of(
        cls,
        samples: Sequence[Sample],
        majority: dict[str, str],
        needed: bool = True,
        topics: "Sequence[TopicOf] | None" = None,
    ) -> "Vocabulary":
        """Collect the vocabulary of a question file; a classification set is an attribute, its classes are the values.

        Args:
            samples: The questions.
            majority: Most frequent value of each attribute in the training split.
            needed: Whether each attribute must have one; classification alone does without.
            topics: What tells what a question is about; None takes :func:`topic`.

        Raises:
            DataError: An attribute has no majority value.
        """
        found = [about(sample) for about in ((topic,) if topics is None else topics) for sample in samples]
        asked = [subject for subject in found if subject is not None]
        attributes = sorted({subject.attribute for subject in asked})
        for attribute in attributes:
            if needed and attribute not in majority:
                raise DataError(
                    f"the majority values of the training split lack the attribute {attribute!r}; "
                    "prepare the data again, so that questions and majority values come from one run."
                )
        values = {str(value) for subject in asked for value in subject.values}
        return cls(dict(majority), tuple(attributes), tuple(sorted(values | set(attributes))))


class Topic(NamedTuple):
    """What a question is about: its attribute or set, the right answer as text, and the values there are."""

    attribute: str
    answer: str
    values: tuple[str, ...]


def topic(sample: Sample) -> Topic:
    """Return what a question of either kind is about.

    Raises:
        DataError: As :func:`question_meta` and :func:`medtune.data.labels.classification_target`.
    """
    if is_classification(sample):
        target = classification_target(sample)
        return Topic(target.set, target.text, target.classes)
    meta = question_meta(sample)
    return Topic(meta["attribute"], meta["answer"], tuple(meta["options"]))


TopicOf = Callable[[Sample], Topic | None]
"""Tells what a question is about; None for a question that is not of the protocol's kind."""
Pair = tuple[dict[str, str], dict[str, str]]
"""The rows of ``verdicts.csv`` of two runs for one query, the run to compare with first."""


class EvaluationProtocol:
    """One way to ask, to judge and to score; a subclass in a file of its own is a whole protocol.

    ``protocols`` of ``predict`` and ``evaluate`` take the name of a packaged one, or the dotted path of a class.
    A subclass sets ``name`` and ``display`` and writes ``plan``, ``judge`` and ``score``; the rest has defaults.

    Args:
        seed: Seed that predict and evaluate were given.

    Attributes:
        name: Name in configs, files and results.
        display: How its numbers and answers are shown.
        default: Whether it is asked unless a config says otherwise.
        majority: Whether the training split's most frequent values are ``required`` for every attribute, ``used`` as
            far as they are known, or of no use (``none``).
        retention: Definition of the share of answers in the form asked for, which makes the protocol a component of
            instruction retention; empty for none.
        answer_keys: What the model's side writes into a prediction's ``meta``; everything else there comes from the
            question file.
        swap_required: Whether it must be asked on other images too.
    """

    name: ClassVar[str]
    display: ClassVar[Display]
    default: ClassVar[bool] = False
    majority: ClassVar[Literal["required", "used", "none"]] = "none"
    retention: ClassVar[str] = ""
    answer_keys: ClassVar[tuple[str, ...]] = ("scores", "score_tokens")
    swap_required: ClassVar[bool] = False

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    @staticmethod
    def topic(sample: Sample) -> Topic | None:
        """Return what a question is about; the default asks for ``attribute``, ``options`` and ``answer``."""
        return topic(sample)

    @staticmethod
    def other_images(samples: Sequence[Sample], seed: int) -> list[Sample]:
        """Return the questions on other images; the default deals the images out anew."""
        from medtune.evaluation.swapped import swap_images  # it asks this module what a question is about

        return swap_images(samples, seed)

    def plan(self, sample: Sample) -> list[Query]:
        """Return the queries of one question; none for a question that is not of the protocol's kind.

        ``meta`` of each holds ``sample_id``, ``images`` and ``swapped`` (:func:`query_frame`), ``attribute`` (the
        group that numbers are averaged over) and ``answer``.
        """
        raise NotImplementedError

    def judge(self, row: Prediction, vocabulary: Vocabulary) -> Verdict:
        """Read and judge one answer; ``row.meta["missing"]`` stands where there is none."""
        raise NotImplementedError

    def score(
        self, verdicts: Sequence[Verdict], vocabulary: Vocabulary, *, resamples: int, seed: int
    ) -> dict[str, Any] | None:
        """Score one model's verdicts.

        Args:
            verdicts: On the true and on swapped images.
            vocabulary: What is known of the whole question file.
            resamples: Bootstrap draws.
            seed: Seed of the draws.

        Returns:
            ``{"overall": numbers, "attributes": {attribute: numbers}, "swapped": numbers or None}``, and what else the
            protocol has to say; None where the answers have no score. :func:`medtune.evaluation.scoring.score_protocol`
            makes it of right and wrong answers, :func:`medtune.evaluation.measures.score_measures` of other numbers.
        """
        raise NotImplementedError

    def facts(self, verdicts: Sequence[Verdict]) -> dict[str, Any]:
        """Return what readers of the results must know of the questions; it joins ``vocabulary`` of the results."""
        return {}

    def mismatch(self, first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
        """Return why two runs cannot be compared, by the ``vocabulary`` of their results; empty where they can."""
        return ""

    def compare(
        self,
        pairs: Mapping[int, Sequence[Pair]],
        vocabulary: Mapping[str, Any],
        base: str,
        *,
        resamples: int,
        seed: int,
    ) -> dict[str, Metric]:
        """Return paired differences beside that of ``display.paired``, by the names of overall numbers.

        Args:
            pairs: Training seed to its pairs, on true images.
            vocabulary: Of the results of the run that is compared.
            base: Name of the run that is subtracted.
            resamples: Bootstrap draws.
            seed: Seed of the draws.
        """
        return {}


def question_meta(sample: Sample) -> dict[str, Any]:
    """Return a question's ``meta`` after a check of ``attribute``, ``options`` and ``answer``.

    A classification question with one right class can be asked in the other protocols' ways too: its set is taken for
    the attribute and its classes for the options.

    Raises:
        DataError: One is missing or does not fit the others; the message names the sample.
    """
    meta = sample.meta
    where = f"question {sample.id!r}"
    if is_classification(sample):
        meta = {**meta, **_options_of(classification_target(sample), where)}
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


def _options_of(target: Target, where: str) -> dict[str, Any]:
    if target.task == "multi_label":
        raise DataError(f"{where}: a multi-label question has no single answer; ask it by 'classification' alone.")
    return {"attribute": target.set, "options": list(target.classes), "answer": target.text}


def user_turn(sample: Sample) -> str:
    """Return a sample's first user turn without image tags; empty where there is none."""
    turns = [message.content.replace(IMAGE_TAG, "").strip() for message in sample.messages if message.role == "user"]
    return turns[0] if turns else ""


def question_text(sample: Sample) -> tuple[str, list[str], str]:
    """Return a question's wording, options and answer.

    The wording is the sample's own user turn without image tags, else ``What is the {attribute}?``.
    """
    meta = question_meta(sample)
    question = user_turn(sample) or open_question(meta["attribute"])
    return question, list(meta["options"]), meta["answer"]


def query_frame(name: str, sample: Sample) -> tuple[str, dict[str, Any]]:
    """Return a query's id, and the part of its ``meta`` that tells which sample and images it shows.

    A swapped sample (see :mod:`medtune.evaluation.swapped`) gets ``/swapped`` at the end of its id.
    """
    swapped = bool(sample.meta.get("swapped", False))
    shown = {"sample_id": sample.id, "images": list(sample.images), "swapped": swapped}
    if swapped:
        shown |= {key: sample.meta[key] for key in ("swapped_with", "shown_answer")}
    return f"{sample.id}/{name}" + ("/swapped" if swapped else ""), shown


def make_query(
    name: str,
    sample: Sample,
    prompt: str,
    references: Sequence[str],
    *,
    continuations: Sequence[str] = (),
    **extra: Any,
) -> Query:
    """Build the query of one question with the common ``meta``; ``extra`` joins it."""
    meta = question_meta(sample)
    query_id, shown = query_frame(name, sample)
    row_meta = {
        "attribute": meta["attribute"],
        "options": list(meta["options"]),
        "answer": meta["answer"],
        **shown,
        **extra,
    }
    asked = Sample(id=query_id, images=sample.images, messages=(Message("user", prompt),), meta={})
    return Query(query_id, name, asked, tuple(continuations), tuple(references), row_meta)


def make_verdict(row: Prediction, predicted: str | None, in_format: bool, **changes: Any) -> Verdict:
    """Build a verdict from a row's ``meta``; ``changes`` replaces fields."""
    fields: dict[str, Any] = {
        **verdict_frame(row),
        "predicted": predicted,
        "in_format": in_format,
        "chance": 1.0 / len(row.meta["options"]),
        "prior": False,
    }
    return Verdict(**{**fields, **changes})


def verdict_frame(row: Prediction) -> dict[str, Any]:
    """Return the fields of a verdict that do not depend on the answer."""
    meta = row.meta
    return {
        "id": row.id,
        "task": row.task,
        "sample_id": meta["sample_id"],
        "attribute": meta["attribute"],
        "images": tuple(meta["images"]),
        "gold": meta["answer"],
        "swapped": bool(meta["swapped"]),
        "shown_differs": meta.get("shown_answer") is not None and meta["shown_answer"] != meta["answer"],
    }
