"""The open question: ``What is the {attribute}?``, answered in words."""

from typing import ClassVar

from medtune.data.sample import Sample
from medtune.evaluation.parsing import parse_value
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.base import Query, Verdict, Vocabulary, make_query, make_verdict, question_text
from medtune.evaluation.wording import is_report


class OpenQuestion:
    """The right answer names the right value; :func:`medtune.evaluation.parsing.parse_value` says how it is read."""

    name: ClassVar[str] = "open"

    def requests(self, sample: Sample) -> list[Query]:
        """Return the one query of a question."""
        question, _, answer = question_text(sample)
        return [make_query(self.name, sample, question, [answer])]

    def judge(self, row: Prediction, vocabulary: Vocabulary) -> Verdict:
        """Read the value. In format means that the answer names a value and is no recited report."""
        attribute, options = row.meta["attribute"], row.meta["options"]
        index = parse_value(row.prediction, attribute, options, vocabulary.attributes)
        predicted = None if index is None else options[index]
        answers = index is not None and not is_report(row.prediction, vocabulary.terms)
        return make_verdict(row, predicted, answers, prior=vocabulary.majority[attribute] == row.meta["answer"])
