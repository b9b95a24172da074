"""A protocol of one's own: a number is asked for, no options, and the error is what counts (the lower, the better)."""

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from medtune.data.sample import Message, Sample
from medtune.evaluation.display import Column, Display, Examples
from medtune.evaluation.measures import Measure, compare_measures, score_measures
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.base import (
    EvaluationProtocol,
    Pair,
    Query,
    Topic,
    Verdict,
    Vocabulary,
    query_frame,
    verdict_frame,
)
from medtune.evaluation.protocols.conversation import conversation, user_turn
from medtune.evaluation.result import Metric


def root_mean_square(verdicts: Sequence[Verdict]) -> float | None:
    squares = [one.measures["absolute_error"] ** 2 for one in verdicts if "absolute_error" in one.measures]
    return math.sqrt(sum(squares) / len(squares)) if squares else None


ERROR = Measure("absolute_error", "cells", False, "mean absolute error of the answers that hold a number")
EXACT = Measure("exact", "fraction", True, "share of answers with the right number")
RMSE = Measure("rmse", "cells", False, "root mean square error of the answers that hold a number", root_mean_square)


class Counting(EvaluationProtocol):
    name = "counting"
    display = Display(
        "Counting",
        help="the first number of the answer counts",
        headline=(
            Column("absolute_error_macro", "Counting, mean error in cells"),
            Column("exact_macro", "Counting, exact"),
        ),
        columns=(
            Column("absolute_error_macro", "Mean error in cells, over kinds"),
            Column("absolute_error_micro", "Mean error in cells, over questions"),
            Column("rmse_macro", "Root mean square error in cells"),
            Column("unread", "Unread"),
        ),
        attribute=Column("absolute_error", "mean error"),
        notes=(Column("exact", "exact"),),
        paired="measure:absolute_error",
        examples=Examples("{prompt}", measure="absolute_error"),
        followed_of_sets=("absolute_error",),
        sets=(Column("absolute_error", "error"),),
    )

    @staticmethod
    def topic(sample: Sample) -> Topic | None:
        return None

    def plan(self, sample: Sample) -> list[Query]:
        if "number" not in sample.meta:
            return []
        query_id, shown = query_frame(self.name, sample)
        meta = {"attribute": sample.meta["kind"], "answer": str(sample.meta["number"]), **shown}
        asked = Sample(query_id, sample.images, conversation(sample, user_turn(sample)), {})
        return [Query(query_id, self.name, asked, (), (meta["answer"],), meta)]

    def judge(self, row: Prediction, vocabulary: Vocabulary) -> Verdict:
        found = re.search(r"\d+", row.prediction)
        error = None if found is None else abs(int(found[0]) - int(row.meta["answer"]))
        measures = {"exact": float(error == 0)} | ({} if error is None else {"absolute_error": float(error)})
        predicted = None if found is None else found[0]
        return Verdict(**verdict_frame(row), predicted=predicted, in_format=predicted is not None, measures=measures)

    def score(
        self, verdicts: Sequence[Verdict], vocabulary: Vocabulary, *, resamples: int, seed: int
    ) -> dict[str, Any] | None:
        return score_measures(verdicts, (ERROR, EXACT, RMSE), resamples=resamples, seed=seed)


class Swapped(Counting):
    """Each question on the next image."""

    @staticmethod
    def other_images(samples: Sequence[Sample], seed: int) -> list[Sample]:
        turned = [*samples[2:], *samples[:2]]
        found = []
        for one, other in zip(samples, turned, strict=True):
            shown = {"swapped": True, "swapped_with": other.id, "shown_answer": str(other.meta["number"])}
            found.append(replace(one, images=other.images, meta={**one.meta, **shown}))
        return found


class Registered(Counting):
    """Entered in the registry by a test; it compares a number of the whole set too."""

    name = "registered"

    def compare(
        self,
        pairs: Mapping[int, Sequence[Pair]],
        vocabulary: Mapping[str, Any],
        base: str,
        *,
        resamples: int,
        seed: int,
    ) -> dict[str, Metric]:
        return compare_measures(pairs, (ERROR, RMSE), base, resamples=resamples, seed=seed)


PATH = f"{__name__}.Counting"


def pictures() -> list[Sample]:
    """Two questions on each of six images; what is counted is not told beforehand."""
    rng = random.Random(5)
    return [
        Sample(
            f"{kind}{place}",
            (f"{place}.png",),
            (Message("user", f"How many {kind} are there?"),),
            {"kind": kind, "number": rng.randrange(3, 20)},
        )
        for place in range(6)
        for kind in ("lymphocytes", "platelets")
    ]


def off_by(query: Query, error: int) -> Prediction:
    """An answer that is ``error`` too high; a negative one holds no number."""
    text = f"There are {int(query.meta['answer']) + error}." if error >= 0 else "Several."
    return Prediction(query.id, query.task, query.prompt, text, query.references, dict(query.meta))
