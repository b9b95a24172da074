"""The plain request: ``What does this image show?``; it has no right answer, only a natural or an unnatural one."""

from typing import ClassVar

from medtune.data.sample import Message, Sample
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.base import Query, Verdict, Vocabulary, make_verdict, question_meta
from medtune.evaluation.wording import natural_description

PROMPT = "What does this image show?"


class Description:
    """Asked once for each image, however many questions it has, and never on swapped images."""

    name: ClassVar[str] = "description"

    def requests(self, sample: Sample) -> list[Query]:
        """Return the query of a question's images; questions on the same images give the same query."""
        if question_meta(sample).get("swapped", False):
            return []
        query_id = "+".join(sample.images) + f"/{self.name}"
        asked = Sample(id=query_id, images=sample.images, messages=(Message("user", PROMPT),), meta={})
        meta = {
            "sample_id": query_id,
            "attribute": "",
            "options": ["natural", "unnatural"],
            "answer": "natural",
            "images": list(sample.images),
            "swapped": False,
        }
        return [Query(query_id, self.name, asked, (), (), meta)]

    def judge(self, row: Prediction, vocabulary: Vocabulary) -> Verdict:
        """Judge by :func:`medtune.evaluation.wording.natural_description`."""
        natural = natural_description(row.prediction, vocabulary.terms)
        return make_verdict(row, "natural" if natural else None, natural)
