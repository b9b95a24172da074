"""Interface of a protocol: it makes queries from a question, judges the answers and scores them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

from medtune.data.labels import Target, classification_target, is_classification
from medtune.data.multiple_choice import open_question
from medtune.data.sample import Sample
from medtune.errors import DataError
from medtune.evaluation.display import Display
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.conversation import conversation, user_turn
from medtune.evaluation.result import Metric


class Query(NamedTuple):
    """One query to the model.

    Args:
        id: Unique id; the same question gives the same id in every run.
        task: Name of the protocol.
        sample: What the model sees: images, and the conversation up to the question, laid out as in training.
        continuations: Texts whose log-probability is computed; empty if the model answers freely.
        references: Right answers as text.
        meta: Copied unchanged to the prediction row.
    """

    id: str
    task: str
    sample: Sample
    continuations: tuple[str, ...]
    references: tuple[str, ...]
    meta: dict[str, Any]

    @property
    def prompt(self) -> str:
        """Text of the last user turn."""
        return self.sample.messages[-1].content


@dataclass(frozen=True)
class Verdict:
    """One answer, read and judged.

    Args:
        id: Id of the query.
        task: Name of the protocol.
        sample_id: Id of the question of the query.
        attribute: The requested attribute.
        images: The shown images; answers about the same images form one cluster of the bootstrap.
        gold: The right value.
        predicted: The value that was read from the answer; None if no value could be read.
        in_format: Whether the answer has the requested form (instruction retention).
        swapped: Whether another question's image was shown.
        chance: Probability that a blind guess is right; 0 if this is undefined.
        prior: Whether the training split's most frequent value is right; None without a training split.
        shown_differs: Whether the shown image has another right answer than the question (only for swapped images).
        measures: Per-sample numbers by name, for example an absolute error; undefined numbers are left out.
        probe: How the question was changed for the robustness card; empty if it was asked as it is.

    Attributes:
        tabulated: Whether such verdicts have a row in ``verdicts.csv``.
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
    probe: str = ""

    @property
    def correct(self) -> bool:
        """Whether the value that was read is right; an answer that could not be read is wrong."""
        return self.predicted is not None and self.predicted == self.gold


@dataclass(frozen=True)
class Vocabulary:
    """Attributes and values of the whole question file, used to tell an answer from a recited report.

    Args:
        majority: Most frequent value of each attribute in the training split.
        attributes: Names of all attributes.
        terms: All attribute names and values, the words of which reports consist.
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
        """Collect the vocabulary of a question file; a classification set is an attribute and its classes are values.

        Args:
            samples: The questions.
            majority: Most frequent value of each attribute in the training split.
            needed: Whether each attribute must have a majority value; not needed if only classification is asked.
            topics: Functions that return what a question is about; None takes :func:`topic`.

        Raises:
            DataError: An attribute has no majority value.
        """
        subjects = [about(sample) for about in ((topic,) if topics is None else topics) for sample in samples]
        asked = [subject for subject in subjects if subject is not None]
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
    """What a question is about: its attribute or set, the right answer as text, and all possible values."""

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
"""Returns what a question is about; None for a question that the protocol does not handle."""
Pair = tuple[dict[str, str], dict[str, str]]
"""The rows of ``verdicts.csv`` of two runs for one query; the base run is first."""


class EvaluationProtocol:
    """A way to ask questions, judge the answers and score them. A new protocol is one subclass.

    The key ``protocols`` of ``predict`` and ``evaluate`` takes names of packaged protocols and dotted paths of classes.
    A subclass sets ``name`` and ``display`` and implements ``plan``, ``judge`` and ``score``; the rest has defaults.

    Args:
        seed: Seed of predict and evaluate.

    Attributes:
        name: Name in configs, files and results.
        display: How its numbers and answers are shown.
        default: Whether it is asked by default.
        majority: Whether the training split's most frequent values are ``required`` for every attribute, ``used`` if
            they are known, or not used (``none``).
        retention: Definition of the share of answers in the requested form; such a protocol is a component of
            instruction retention. Empty for none.
        answer_keys: Keys of a prediction's ``meta`` that come from the prediction file; all other keys come from the
            question file.
        swap_required: Whether it must also be asked on other images.
        compares_every_pair: Whether ``compare`` also gets the pairs of answers without the number of
            ``display.paired``, because different questions have different numbers.
        probes: The probes of the robustness card that it can ask (:mod:`medtune.evaluation.robustness`).
    """

    name: ClassVar[str]
    display: ClassVar[Display]
    default: ClassVar[bool] = False
    majority: ClassVar[Literal["required", "used", "none"]] = "none"
    retention: ClassVar[str] = ""
    answer_keys: ClassVar[tuple[str, ...]] = ("scores", "score_tokens")
    swap_required: ClassVar[bool] = False
    compares_every_pair: ClassVar[bool] = False
    probes: ClassVar[tuple[str, ...]] = ()

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    @staticmethod
    def topic(sample: Sample) -> Topic | None:
        """Return what a question is about; the default needs ``attribute``, ``options`` and ``answer``."""
        return topic(sample)

    @staticmethod
    def other_images(samples: Sequence[Sample], seed: int) -> list[Sample]:
        """Return the questions with other images; the default is :func:`~medtune.evaluation.swapped.swap_images`."""
        from medtune.evaluation.swapped import swap_images  # it imports this module

        return swap_images(samples, seed)

    def plan(self, sample: Sample) -> list[Query]:
        """Return the queries of one question; an empty list for a question that the protocol does not handle.

        ``meta`` of each holds ``sample_id``, ``images`` and ``swapped`` (:func:`query_frame`), ``attribute`` (the
        group that numbers are averaged over) and ``answer``.
        """
        raise NotImplementedError

    def judge(self, row: Prediction, vocabulary: Vocabulary) -> Verdict:
        """Read and judge one answer; if there is no answer, ``row.meta["missing"]`` is set."""
        raise NotImplementedError

    def score(
        self, verdicts: Sequence[Verdict], vocabulary: Vocabulary, *, resamples: int, seed: int
    ) -> dict[str, Any] | None:
        """Score one model's verdicts.

        Args:
            verdicts: Verdicts on the true and on swapped images.
            vocabulary: Attributes and values of the whole question file.
            resamples: Number of bootstrap resamples.
            seed: Seed of the resampling.

        Returns:
            ``{"overall": numbers, "attributes": {attribute: numbers}, "swapped": numbers or None}``, optionally with
            further keys; None if the answers have no score. :func:`medtune.evaluation.scoring.score_protocol` computes
            it for right and wrong answers, :func:`medtune.evaluation.measures.score_measures` for other numbers.
        """
        raise NotImplementedError

    def remarks(self, row: Prediction) -> tuple[str, str]:
        """Return what a report shows beside whole answers (``display.side_by_side``).

        Args:
            row: An answer of the prediction file, with its own ``meta``.

        Returns:
            The right answer to its question, and a line below the answer; either may be empty.
        """
        return "", ""

    def facts(self, verdicts: Sequence[Verdict]) -> dict[str, Any]:
        """Return facts about the questions that readers of the results need; they are added to ``vocabulary``."""
        return {}

    def mismatch(self, first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
        """Return why two runs cannot be compared, from the ``vocabulary`` of their results; empty if they can."""
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
        """Return paired differences other than that of ``display.paired``, by the names of overall numbers.

        Args:
            pairs: Training seed to its pairs, on true images.
            vocabulary: The vocabulary in the results of the compared run.
            base: Name of the run that is subtracted.
            resamples: Number of bootstrap resamples.
            seed: Seed of the resampling.
        """
        return {}


def question_meta(sample: Sample) -> dict[str, Any]:
    """Check ``attribute``, ``options`` and ``answer`` in a question's ``meta`` and return it.

    A classification question with one right class can also be asked by the other protocols: its set is used as the
    attribute and its classes as the options.

    Raises:
        DataError: A key is missing or does not match the others; the message names the sample.
    """
    meta = sample.meta
    where = f"question {sample.id!r}"
    if is_classification(sample):
        meta = {**meta, **_options_of(classification_target(sample), where)}
    if not isinstance(meta.get("attribute"), str) or not meta["attribute"].strip():
        raise DataError(f"{where}: meta needs a text 'attribute'.")
    options = meta.get("options")
    if not isinstance(options, list | tuple) or not 2 <= len(options) <= 26 or len(set(options)) != len(options):
        raise DataError(
            f"{where}: meta needs 'options', a list of 2 to 26 different texts; a question without options is asked by "
            "the protocol 'vqa'."
        )
    if meta.get("answer") not in options:
        raise DataError(f"{where}: meta needs an 'answer' that is one of its 'options'.")
    if not sample.images and meta.get("probe") != "no_image":
        raise DataError(f"{where}: a question needs an image.")
    return {**meta, "options": meta["option_order"]} if "option_order" in meta else meta


def _options_of(target: Target, where: str) -> dict[str, Any]:
    if target.task == "multi_label":
        raise DataError(f"{where}: a multi-label question has no single answer; ask it by 'classification' alone.")
    return {"attribute": target.set, "options": list(target.classes), "answer": target.text}


def question_text(sample: Sample) -> tuple[str, list[str], str]:
    """Return a question's wording, options and answer.

    The wording is the sample's last user turn (:func:`user_turn`), or ``What is the {attribute}?`` if it has no words.
    """
    meta = question_meta(sample)
    return user_turn(sample, open_question(meta["attribute"])), list(meta["options"]), meta["answer"]


def query_frame(name: str, sample: Sample) -> tuple[str, dict[str, Any]]:
    """Return a query's id, and the part of its ``meta`` about the sample and the shown images.

    The id of a swapped sample (see :mod:`medtune.evaluation.swapped`) ends in ``/swapped``, that of a probe of the
    robustness card in its name.
    """
    swapped, probe = bool(sample.meta.get("swapped", False)), str(sample.meta.get("probe", ""))
    shown = {"sample_id": sample.id, "images": list(sample.images), "swapped": swapped}
    if swapped:
        shown |= {key: sample.meta[key] for key in ("swapped_with", "shown_answer")}
    if probe:
        shown["probe"] = probe
    return "/".join([sample.id, name, *(["swapped"] if swapped else []), *([probe] if probe else [])]), shown


def make_query(
    name: str,
    sample: Sample,
    prompt: str,
    references: Sequence[str],
    *,
    continuations: Sequence[str] = (),
    history: bool = True,
    **extra: Any,
) -> Query:
    """Build the query of one question with the common ``meta``; ``extra`` is added to it.

    ``prompt`` and ``history`` are those of :func:`conversation`.
    """
    meta = question_meta(sample)
    query_id, shown = query_frame(name, sample)
    row_meta = {
        "attribute": meta["attribute"],
        "options": list(meta["options"]),
        "answer": meta["answer"],
        **shown,
        **extra,
    }
    asked = Sample(id=query_id, images=sample.images, messages=conversation(sample, prompt, history), meta={})
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
        "probe": meta.get("probe", ""),
    }
