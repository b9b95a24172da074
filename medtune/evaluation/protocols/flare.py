"""FLARE's questions about 2D images: seven tasks, each with its metric, strict and as the challenge's script counts."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from medtune.data.sample import Sample
from medtune.datasets.flare.task_types import TASKS
from medtune.errors import ConfigError, DataError
from medtune.evaluation.display import Column, Display, Examples, Scatter
from medtune.evaluation.flare.answers import read_answer, right_value, written
from medtune.evaluation.flare.choices import question_options, split_labels
from medtune.evaluation.flare.estimates import difference
from medtune.evaluation.flare.metrics import box_counts, class_counts, example_f1
from medtune.evaluation.flare.report_scorers import REPORT_SCORERS
from medtune.evaluation.flare.scores import (
    MAIN,
    by_task,
    estimates_of,
    official_numbers,
    questions_of,
    short,
    unread_reasons,
)
from medtune.evaluation.flare.verdicts import FlareVerdict, attribute_of, task_of
from medtune.evaluation.measures import verdict_of
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.base import (
    EvaluationProtocol,
    Pair,
    Query,
    Topic,
    Verdict,
    Vocabulary,
    verdict_frame,
)
from medtune.evaluation.protocols.conversation import user_turn
from medtune.evaluation.protocols.own_question import own_question
from medtune.evaluation.protocols.report_generation import SCATTER
from medtune.evaluation.protocols.unscored import Unjudged
from medtune.evaluation.result import Metric

REPORTS = "report_generation"
_TITLES = {
    "accuracy_macro": "Classification, accuracy",
    "balanced_accuracy": "Classification, balanced accuracy",
    "balanced_accuracy_sets": "Classification, balanced accuracy, mean over data sets",
    "classification_official": "Classification, official",
    "multi_label_f1": "Multi-label, micro-F1",
    "multi_label_example_f1": "Multi-label, example F1",
    "multi_label_official": "Multi-label, official",
    "detection_f1_50": "Detection, F1 at 0.5",
    "detection_official": "Detection, official",
    "instance_f1_50": "Instances, F1 at 0.5",
    "instance_class_f1_50": "Instances, F1 at 0.5, mean over classes",
    "instance_official": "Instances, official",
    "counting_mae": "Counting, MAE",
    "counting_rmse": "Counting, RMSE",
    "counting_official": "Counting, official",
    "regression_mae": "Regression, MAE",
    "regression_rmse": "Regression, RMSE",
    "regression_official": "Regression, official",
    "report_rouge_l": "Reports, ROUGE-L",
    "report_bleu_4": "Reports, BLEU-4",
    "report_findings_f1": "Reports, findings F1",
    "report_green": "Reports, GREEN",
    "report_green_official": "Reports, GREEN, official",
    "report_green_unread": "Reports, GREEN, unread",
}
_HEADLINE = (
    "accuracy_macro",
    "balanced_accuracy",
    *list(MAIN.values())[1:],
    "report_findings_f1",
    "report_green",
)
_DISPLAY = Display(
    "FLARE",
    rank=85,
    help="seven tasks; an answer that cannot be read is wrong, finds nothing, or is left out of an error and counted",
    headline=tuple(Column(name, f"FLARE, {_TITLES[name]}") for name in _HEADLINE),
    columns=tuple(Column(name, title) for name, title in _TITLES.items()),
    attribute=Column("main", "main number"),
    notes=(Column("unread", "unread"),),
    notes_help="Of a FLARE data set and task the large number is the task's main one: balanced accuracy, micro-F1, F1 "
    "of boxes at an IoU of 0.5, the mean absolute error, or ROUGE-L.",
    titles=_TITLES,
    followed=_HEADLINE,
    followed_of_sets=("main",),
    paired="measure:right",
    examples=Examples("{prompt}", mark="none"),
    scatter=(
        Scatter(
            "gold",
            "predicted",
            "Predicted against right values",
            "Each point is an answer to a counting or regression question.",
            "right value",
            "value read from the answer",
            identity=True,
            by_attribute=True,
            endings=("/counting", "/regression"),
        ),
        SCATTER,
    ),
    tasks=True,
    boxes=("/detection", "/instance_detection"),
)


class Flare(EvaluationProtocol):
    """The sample's user turn is asked as it is; ``meta.task`` says how the answer is read and scored.

    Answers are read into a value or a named reason (:mod:`medtune.evaluation.flare.reading`). Numbers that end in
    ``_official`` are those of the challenge's published script (:mod:`medtune.evaluation.flare.official`); all others
    are strict. A question without ``meta.answer`` is asked and not scored.
    """

    name: ClassVar[str] = "flare"
    display = _DISPLAY
    answer_keys: ClassVar[tuple[str, ...]] = ("green",)
    compares_every_pair: ClassVar[bool] = True

    @staticmethod
    def topic(sample: Sample) -> Topic:
        """Return data set and task, the right answer, and the labels that it names where the question lists none."""
        task = _task(sample)
        answer = str(sample.meta.get("answer", ""))
        values: tuple[str, ...] = ()
        if task == "multi_label_classification":
            values = tuple(split_labels(answer))
        elif task == "classification" and answer and not question_options(user_turn(sample)):
            values = (answer,)
        return Topic(attribute_of(str(sample.meta["dataset"]), task), answer, values)

    @staticmethod
    def other_images(samples: Sequence[Sample], seed: int) -> list[Sample]:
        """Refuse to swap images.

        Raises:
            ConfigError: Always; boxes and counts of one image say nothing about another.
        """
        raise ConfigError(
            "protocol 'flare' is not asked on swapped images; leave it out of 'swapped' and 'robustness'."
        )

    def plan(self, sample: Sample) -> list[Query]:
        """Return the one query of a question.

        Raises:
            DataError: The sample is no question of FLARE's tasks, or has no image or user turn.
        """
        task = _task(sample)
        answer = sample.meta.get("answer", "")
        if not isinstance(answer, str):
            raise DataError(f"question {sample.id!r}: meta.answer must be a text; prepare the questions again.")
        about = {"task": task, "dataset": str(sample.meta["dataset"]), "modality": str(sample.meta.get("modality", ""))}
        meta = {
            "attribute": attribute_of(about["dataset"], task),
            "answer": answer,
            "flare_task": task,
            "dataset": about["dataset"],
            "modality": about["modality"],
            "choices": question_options(user_turn(sample)) if task == "classification" else {},
        }
        # A routed model may take the task from here; the right answer is not passed on.
        return [own_question(self.name, sample, (answer,) if answer else (), meta, about=about)]

    def judge(self, row: Prediction, vocabulary: Vocabulary) -> Verdict:
        """Read the answer; one to a question without a right answer is not judged."""
        meta = row.meta
        if not meta["answer"]:
            return Unjudged(**verdict_frame(row), predicted=None, in_format=False)
        task, choices, labels = meta["flare_task"], meta["choices"], vocabulary.terms
        gold = right_value(task, meta["answer"], choices, labels, f"question {meta['sample_id']!r}")
        reading = read_answer(task, row.prediction, choices, labels)
        predicted = None if reading.value is None else written(reading.value)
        frame = {**verdict_frame(row), "gold": written(gold)}
        measures = _measures(task, gold, reading.value)
        if task == REPORTS:
            for scorer in REPORT_SCORERS.values():
                measures |= scorer.measures(row)
        return FlareVerdict(
            **frame,
            predicted=predicted,
            in_format=predicted is not None,
            measures=measures,
            said=row.prediction,
            right=meta["answer"],
            key=f"{'|'.join(meta['images'])}||{row.prompt}",
            reason=reading.reason,
        )

    def score(
        self, verdicts: Sequence[Verdict], vocabulary: Vocabulary, *, resamples: int, seed: int
    ) -> dict[str, Any] | None:
        """Score every task over all data sets, and of each data set."""
        rows = [verdict for verdict in verdicts if isinstance(verdict, FlareVerdict)]
        if not rows:
            return None
        overall = _undefined()
        for task, found in by_task(rows).items():
            overall |= _task_numbers(task, found, resamples, seed)
        attributes = {}
        for attribute in sorted({row.attribute for row in rows}):
            task = task_of(attribute)
            of_set = [row for row in rows if row.attribute == attribute]
            numbers = _task_numbers(task, of_set, resamples, seed)
            numbers.pop("balanced_accuracy_sets", None)
            main = numbers.get(MAIN.get(task, ""), _none(len(of_set)))
            unread = numbers.get(f"{short(task)}_unread", _none(len(of_set)))
            attributes[attribute] = {"main": main, "unread": unread, **numbers}
        return {"overall": overall, "attributes": attributes, "swapped": None}

    def facts(self, verdicts: Sequence[Verdict]) -> dict[str, Any]:
        """Return the questions of each task, the reasons of unread answers, and what was asked and not scored."""
        rows = [verdict for verdict in verdicts if isinstance(verdict, FlareVerdict)]
        questions = dict(questions_of(rows))
        unscored = {} if REPORT_SCORERS else {task: n for task, n in questions.items() if task == REPORTS}
        without = len(verdicts) - len(rows)
        return {
            "flare": {
                "questions": questions,
                "unread": unread_reasons(rows),
                "asked_not_scored": unscored | ({"without_answer": without} if without else {}),
            }
        }

    def compare(
        self,
        pairs: Mapping[int, Sequence[Pair]],
        vocabulary: Mapping[str, Any],
        base: str,
        *,
        resamples: int,
        seed: int,
    ) -> dict[str, Metric]:
        """Return the paired differences of all strict numbers, with the answers of all training seeds pooled."""
        sides = [[verdict_of(pair[side]) for of in pairs.values() for pair in of] for side in (0, 1)]
        found: dict[str, Metric] = {}
        first, second = (by_task(rows) for rows in sides)
        for task in second:
            before, after = estimates_of(task, first.get(task, [])), estimates_of(task, second[task])
            found |= {name: difference(before[name], after[name], base, resamples, seed) for name in after}
        for scorer in REPORT_SCORERS.values():
            if scorer.compare is not None and REPORTS in second:
                found |= scorer.compare(pairs, base, resamples, seed)
        return {name: number for name, number in found.items() if name != "accuracy_macro"}


def _task(sample: Sample) -> str:
    task = sample.meta.get("task")
    if task not in TASKS or not isinstance(sample.meta.get("dataset"), str) or not sample.meta["dataset"].strip():
        raise DataError(
            f"question {sample.id!r}: 'flare' needs meta.dataset and meta.task, one of {', '.join(TASKS)}; read "
            "the questions by medtune.datasets.flare, or prepare them by prepare/flare."
        )
    return str(task)


def _measures(task: str, gold: Any, read: Any) -> dict[str, float]:
    """Return the numbers of one answer: whether it is right, the F1 of its image, or its error."""
    if task == "classification":
        return {"right": float(read == gold)}
    if task == "multi_label_classification":
        return {"image_f1": example_f1(gold, read)}
    if task in ("counting", "regression"):
        return {} if read is None else {"error": read - gold}
    if task == "detection":
        counts = [box_counts(gold, read, 0.5)]
    elif task == "instance_detection":
        counts = list(class_counts(gold, read, 0.5).values())
    else:
        return {}
    whole = sum(2 * one.tp + one.fp + one.fn for one in counts)
    return {"image_f1": sum(2 * one.tp for one in counts) / whole if whole else float(read is not None)}


def _task_numbers(task: str, rows: Sequence[FlareVerdict], resamples: int, seed: int) -> dict[str, Metric]:
    numbers = {name: estimate.metric(resamples, seed) for name, estimate in estimates_of(task, rows).items()}
    numbers |= official_numbers(task, rows, resamples, seed)
    if task == REPORTS:
        for scorer in REPORT_SCORERS.values():
            numbers |= scorer.score(rows, resamples, seed)
    return numbers


def _undefined() -> dict[str, Metric]:
    """Return the numbers of tasks that were not asked, which tables have columns for."""
    return {name: _none(0) for name in _TITLES}


def _none(n: int) -> Metric:
    return Metric(None, "fraction", True, n, None, "not asked, or not scored here")
