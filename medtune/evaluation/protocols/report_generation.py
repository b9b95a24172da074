"""Generated reports against written ones: shared words, stated findings, and GREEN where a model has counted errors.

GREEN is shown beside ROUGE-L and the findings, never alone: it can rank an untuned model above a tuned one.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from medtune.data.sample import Sample
from medtune.errors import DataError
from medtune.evaluation.display import Column, Display, Examples, Scatter
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
from medtune.evaluation.protocols.own_question import own_question
from medtune.evaluation.protocols.vqa import free_answer
from medtune.evaluation.reports.scores import Counts, differences, finding_numbers, report_labels, score_counts
from medtune.evaluation.reports.verdicts import differences_of, measures_of, table_of
from medtune.evaluation.result import Metric
from medtune.evaluation.scoring import DIFFERS, share_of

_WITHOUT_GROUP = "all"
TITLES = {
    "rouge_l": "ROUGE-L",
    "findings_f1": "Findings, F1",
    "findings_mean_f1": "Findings, F1, mean over findings",
    "findings_exact": "Exactly the findings",
    "green": "GREEN",
    "green_official": "GREEN, official reading",
    "green_unread": "GREEN, unread",
    **{f"bleu_{order}": f"BLEU-{order}" for order in range(1, 5)},
}
"""Title of each number of a set of reports."""
SCATTER = Scatter(
    "rouge_l",
    "green",
    "GREEN beside ROUGE-L",
    "Each point is a report. GREEN's model was trained on chest X-rays, and GREEN can rank an untuned model above a "
    "tuned one; where the two disagree, read the reports.",
    "ROUGE-L",
    "GREEN",
)
_DISPLAY = Display(
    "Report generation",
    rank=85,
    help="a report is written for the images and compared with the one that was written by people",
    headline=(
        Column("rouge_l_macro", "Reports, ROUGE-L"),
        Column("findings_f1_macro", "Reports, findings F1"),
        Column("green_macro", "Reports, GREEN"),
    ),
    columns=tuple(Column(f"{name}_macro", title) for name, title in TITLES.items()),
    attribute=Column("rouge_l", "ROUGE-L"),
    notes=(Column("findings_f1", "findings F1"), Column("bleu_4", "BLEU-4"), Column("green", "GREEN")),
    notes_help="Of generated reports the large number is ROUGE-L; F1 of the stated findings, BLEU-4 and, if a model "
    "counted errors, GREEN are below it.",
    titles={f"{name}_micro": f"{title}, all reports together" for name, title in TITLES.items()},
    followed_of_sets=("rouge_l", "findings_f1"),
    paired="measure:rouge_l",
    examples=Examples("{prompt}", mark="none", measure="rouge_l"),
    scatter=(SCATTER,),
)

_NEEDS = "a report needs an image and a user turn that asks for it."


class ReportGeneration(EvaluationProtocol):
    """The sample's user turn is asked as it is, with all of its images.

    The right report is ``meta["answer"]``, or the assistant's turn where that is absent; ``meta["attribute"]`` (or
    ``meta["dataset"]``) is the group that numbers are also given for. Counts of GREEN are read from the prediction's
    ``meta["green"]``, which the green recipe writes.
    """

    name: ClassVar[str] = "report_generation"
    display = _DISPLAY
    answer_keys: ClassVar[tuple[str, ...]] = ("green",)
    compares_every_pair: ClassVar[bool] = True

    @staticmethod
    def topic(sample: Sample) -> Topic:
        """Return the group and the right report; there are no options."""
        return Topic(_group(sample), free_answer(sample), ())

    @staticmethod
    def other_images(samples: Sequence[Sample], seed: int) -> list[Sample]:
        """Return the questions on images of other questions of their group."""
        from medtune.evaluation.swapped import swap_images  # it imports the interface

        return swap_images(samples, seed, about=ReportGeneration.topic)

    def plan(self, sample: Sample) -> list[Query]:
        """Return the one query of a sample.

        Raises:
            DataError: There is no right report, no question or no image.
        """
        report = free_answer(sample)
        meta = {"attribute": _group(sample), "answer": report}
        return [own_question(self.name, sample, (report,), meta, needs=_NEEDS)]

    def judge(self, row: Prediction, vocabulary: Vocabulary) -> Verdict:
        """Count words and findings; an empty answer is unread, matches nothing and states nothing.

        Raises:
            DataError: ``meta.green`` of the row holds no counts.
        """
        return judge_report(row)

    def score(
        self, verdicts: Sequence[Verdict], vocabulary: Vocabulary, *, resamples: int, seed: int
    ) -> dict[str, Any] | None:
        """Score all reports, each group, and each finding."""
        return score_verdicts(verdicts, resamples=resamples, seed=seed)

    def compare(
        self,
        pairs: Mapping[int, Sequence[Pair]],
        vocabulary: Mapping[str, Any],
        base: str,
        *,
        resamples: int,
        seed: int,
    ) -> dict[str, Metric]:
        """Return the paired differences of BLEU, of the findings, and of GREEN where both were graded."""
        found = differences_of(pairs, base, resamples=resamples, seed=seed)
        return {f"{name}_macro": number for name, number in found.items() if name != "rouge_l"}


def judge_report(row: Prediction) -> Verdict:
    """Return the verdict on one generated report: its findings as labels, its word counts and GREEN as measures."""
    empty = not row.prediction.strip()
    return Verdict(
        **{**verdict_frame(row), "gold": report_labels(row.meta["answer"])},
        predicted=None if empty else report_labels(row.prediction),
        in_format=not empty,
        measures=measures_of(row),
    )


def score_verdicts(verdicts: Sequence[Verdict], *, resamples: int, seed: int) -> dict[str, Any]:
    """Return ``overall``, ``attributes``, ``swapped`` and ``findings`` of verdicts on generated reports."""
    true, swapped = ([verdict for verdict in verdicts if verdict.swapped is side] for side in (False, True))
    groups = sorted({verdict.attribute for verdict in true})
    found: dict[str, Any] = {
        "overall": _overall(true, resamples, seed),
        "attributes": {
            name: {
                **score_counts(
                    table_of([verdict for verdict in true if verdict.attribute == name]), resamples=resamples, seed=seed
                ),
                "unread": _unread([verdict for verdict in true if verdict.attribute == name], resamples, seed),
            }
            for name in groups
        },
        "swapped": None,
        "findings": finding_numbers(table_of(true), resamples=resamples, seed=seed) if true else {},
    }
    if swapped:
        found["swapped"] = _on_swapped(true, swapped, resamples, seed)
    return found


def _overall(rows: Sequence[Verdict], resamples: int, seed: int) -> dict[str, Metric]:
    table = table_of(rows)
    numbers = {
        f"{name}_{kind}": number
        for kind in ("macro", "micro")
        for name, number in score_counts(table, over_groups=kind == "macro", resamples=resamples, seed=seed).items()
    }
    return {**numbers, "unread": _unread(rows, resamples, seed)}


def _unread(rows: Sequence[Verdict], resamples: int, seed: int) -> Metric:
    return share_of(rows, lambda verdict: verdict.predicted is None, "share of empty answers", resamples, seed, False)


def _on_swapped(true: Sequence[Verdict], swapped: Sequence[Verdict], resamples: int, seed: int) -> dict[str, Metric]:
    """Return the numbers on swapped images, and how much ROUGE-L loses there, paired by question."""
    on_true = {verdict.sample_id: verdict for verdict in true}
    pairs = [(on_true[verdict.sample_id], verdict) for verdict in swapped if verdict.sample_id in on_true]
    before, after = (table_of([pair[side] for pair in pairs]) for side in (1, 0))
    # Both sides are clustered by the true images, as the pairs are.
    before = Counts(before.rows, after.groups, after.clusters)
    drop = differences(before, after, "swapped images", names=["rouge_l"], resamples=resamples, seed=seed)
    return {
        **_overall(swapped, resamples, seed),
        **({"drop_macro": drop["rouge_l"]} if drop else {}),
        "answer_differs": share_of(swapped, lambda verdict: verdict.shown_differs, DIFFERS, resamples, seed, None),
    }


def _group(sample: Sample) -> str:
    given = sample.meta.get("attribute", sample.meta.get("dataset", _WITHOUT_GROUP))
    if not isinstance(given, str) or not given.strip():
        raise DataError(f"question {sample.id!r}: meta.attribute, the group of the report, must be a text.")
    return given
