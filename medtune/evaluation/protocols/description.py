"""The request ``What does this image show?``. It has no right answer; the answer is natural language or not."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from medtune.data.sample import Sample
from medtune.evaluation.display import Display, Examples
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.base import (
    EvaluationProtocol,
    Query,
    Verdict,
    Vocabulary,
    make_verdict,
    question_meta,
)
from medtune.evaluation.protocols.conversation import conversation
from medtune.evaluation.wording import natural_description

PROMPT = "What does this image show?"


class Description(EvaluationProtocol):
    """Asked once per image, also if several questions are about the image; never asked on swapped images."""

    name: ClassVar[str] = "description"
    default = True
    majority: ClassVar[Literal["required", "used", "none"]] = "required"
    retention = (
        "share of answers to 'What does this image show?' that are sentences with a finite verb and an end mark, "
        "neither a recited report nor a letter"
    )
    display = Display(
        "Description",
        rank=50,
        help="what the image shows, in the model's own words",
        examples=Examples(
            heading="{prompt}", mark="in_format", per_image=True, legend="for a description ✓ means natural language"
        ),
        retention="natural description",
    )

    def plan(self, sample: Sample) -> list[Query]:
        """Return the query of a question's images; questions on the same images give the same query."""
        if question_meta(sample).get("swapped", False):
            return []
        query_id = "+".join(sample.images) + f"/{self.name}"
        asked = Sample(id=query_id, images=sample.images, messages=conversation(sample, PROMPT, history=False), meta={})
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

    def score(
        self, verdicts: Sequence[Verdict], vocabulary: Vocabulary, *, resamples: int, seed: int
    ) -> dict[str, Any] | None:
        """Return None, because there is no right answer; the rate of natural answers is in instruction retention."""
        return None
