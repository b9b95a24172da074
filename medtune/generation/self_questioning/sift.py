"""Which questions and answers are kept, with a count of the others by reason, and the candidates made of them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from medtune.data.sample import IMAGE_TAG
from medtune.generation.self_questioning.pictures import Picture
from medtune.generation.self_questioning.prompts import answer_id, description_id, question_id
from medtune.generation.self_questioning.settings import Settings

NO_DESCRIPTION, UNWRITTEN = "image without a description", "prompt that the model could not read"
EMPTY_QUESTION, CUT_QUESTION = "empty question", "question cut off"
SAME_QUESTION, TAGGED_QUESTION = "duplicate question", "question with an image tag"
EMPTY_ANSWER, CUT_ANSWER, SAME_ANSWERS = "empty answer", "answer cut off", "identical answers"
REASONS = (
    NO_DESCRIPTION, UNWRITTEN, EMPTY_QUESTION, CUT_QUESTION, TAGGED_QUESTION, SAME_QUESTION, EMPTY_ANSWER, CUT_ANSWER,
    SAME_ANSWERS,
)  # fmt: skip


@dataclass(frozen=True)
class Written:
    """A text of the policy.

    Attributes:
        text: Without space around it.
        stopped: Whether the policy ended it; otherwise it reached the maximum length.
    """

    text: str
    stopped: bool


Texts = Mapping[str, Written]
"""What the policy wrote, by id; an id that it could not write is absent."""


def same_text(text: str) -> str:
    """A form of a text that is equal for texts that differ in case, in space or in the final mark alone."""
    return " ".join(text.casefold().split()).rstrip(".?!:; ")


def described(picture: Picture, texts: Texts) -> str | None:
    """The description of a picture; None if there is none. One that is cut off still tells what the image shows."""
    written = texts.get(description_id(picture))
    return written.text if written is not None and written.text else None


def sift_questions(picture: Picture, texts: Texts, settings: Settings, dropped: Counter[str]) -> dict[int, str]:
    """The questions to answer, by place; of equal questions the first is kept.

    Args:
        picture: The image that was asked about.
        texts: The questions, and other texts.
        settings: How many questions were asked.
        dropped: Counts of the other questions by reason, added to.
    """
    kept: dict[int, str] = {}
    seen: set[str] = set()
    for place in range(settings.ask.count):
        written = texts.get(question_id(picture, place))
        reason = _fault(written, UNWRITTEN, EMPTY_QUESTION, CUT_QUESTION)
        if reason is None and written is not None:
            if IMAGE_TAG in written.text:
                reason = TAGGED_QUESTION
            elif same_text(written.text) in seen:
                reason = SAME_QUESTION
            else:
                seen.add(same_text(written.text))
                kept[place] = written.text
        if reason is not None:
            dropped[reason] += 1
    return kept


def _fault(written: Written | None, unwritten: str, empty: str, cut: str) -> str | None:
    if written is None:
        return unwritten
    if not same_text(written.text):
        return empty
    return None if written.stopped else cut


@dataclass
class Sifted:
    """Candidates of one or more pictures, and what was dropped.

    Attributes:
        dropped: Counts by reason; a dropped question has no answers, and dropped answers are counted as pairs.
        counts: Descriptions, questions, answered questions and candidates.
    """

    dropped: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)

    def clear(self) -> None:
        """Begin the counts anew."""
        self.dropped.clear()
        self.counts = Counter(dict.fromkeys(("descriptions", "questions", "answered_questions", "candidates"), 0))

    def candidates(self, picture: Picture, texts: Texts, settings: Settings) -> list[dict[str, Any]]:
        """The candidates of a picture, each a question with two answers that a judge can compare."""
        description = described(picture, texts)
        if description is None:
            self.dropped[NO_DESCRIPTION] += 1
            return []
        kept = sift_questions(picture, texts, settings, self.dropped)
        found = []
        for place, question in kept.items():
            answers = [texts.get(answer_id(picture, place, seed)) for seed in settings.answer.seeds]
            reason = _fault_of_pair(answers)
            if reason is None:
                pair = [answer.text for answer in answers if answer is not None]
                found.append(candidate(picture, place, question, pair, description, settings))
            else:
                self.dropped[reason] += 1
        self.counts.update(
            descriptions=1, questions=settings.ask.count, answered_questions=len(kept), candidates=len(found)
        )
        return found


def _fault_of_pair(answers: list[Written | None]) -> str | None:
    for answer in answers:
        reason = _fault(answer, UNWRITTEN, EMPTY_ANSWER, CUT_ANSWER)
        if reason is not None:
            return reason
    same = len({same_text(answer.text) for answer in answers if answer is not None}) == 1
    return SAME_ANSWERS if same else None


def candidate(
    picture: Picture, place: int, question: str, answers: list[str], description: str, settings: Settings
) -> dict[str, Any]:
    """One row of ``candidates.jsonl``: a prompt that ends in the user's turn, and its two answers."""
    sampling = settings.answer.sampling
    return {
        "id": question_id(picture, place),
        "images": list(picture.images),
        "messages": [{"role": "user", "content": question}],
        "answers": answers,
        "meta": {
            "source_id": picture.id,
            "description": description,
            "seeds": list(settings.answer.seeds),
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
        },
    }
