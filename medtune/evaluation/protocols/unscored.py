"""Protocols without a right answer: the row's own question is asked, and nothing is compared with the answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from medtune.data.sample import Sample
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.base import EvaluationProtocol, Query, Verdict, Vocabulary, query_frame, verdict_frame
from medtune.evaluation.protocols.conversation import conversation


@dataclass(frozen=True)
class Unjudged(Verdict):
    """An answer without a right one; it has no row in ``verdicts.csv``."""

    tabulated: ClassVar[bool] = False


class Unscored(EvaluationProtocol):
    """A protocol that has no score; a subclass plans its query with :meth:`query`."""

    @staticmethod
    def topic(sample: Sample) -> None:
        """Return None: no attribute or answer is known."""
        return None

    def query(self, sample: Sample, prompt: str) -> Query:
        """Return the query of a sample, with the turns before the prompt; an answer in the row is not used."""
        query_id, shown = query_frame(self.name, sample)
        asked = Sample(id=query_id, images=sample.images, messages=conversation(sample, prompt), meta={})
        return Query(query_id, self.name, asked, (), (), {"attribute": "", "answer": "", **shown})

    def judge(self, row: Prediction, vocabulary: Vocabulary) -> Unjudged:
        """Return a verdict that is neither right nor wrong."""
        return Unjudged(**verdict_frame(row), predicted=None, in_format=False)

    def score(
        self, verdicts: Sequence[Verdict], vocabulary: Vocabulary, *, resamples: int, seed: int
    ) -> dict[str, Any] | None:
        """Return None: there is no right answer."""
        return None
