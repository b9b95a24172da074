"""The file that a judge reads: JSON Lines of questions with two answers each."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from medtune.data.images import ImageRoot
from medtune.data.sample import IMAGE_TAG, Sample
from medtune.data.source import JsonlSource, decode_json
from medtune.errors import DataError


@dataclass(frozen=True)
class Candidate(Sample):
    """A question with two answers; its messages end with the user's turn.

    Attributes:
        answers: The two answers.
        context: Further texts that a prompt may show, by the name of their placeholder: ``reference``, ``caption``,
            ``mentions``. A text that is absent is empty.
    """

    answers: tuple[str, ...] = ()
    context: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any], where: str) -> "Candidate":
        """Check a decoded row.

        Args:
            row: ``{"id", "images", "messages", "answers": [first, second], "meta"}``.
            where: File and row, for errors.

        Raises:
            DataError: Naming ``where`` and the wrong field.
        """
        if not isinstance(row, Mapping):
            raise DataError(f"{where}: a row must be a JSON object, this one is a {type(row).__name__}.")
        answers = row.get("answers")
        if not (isinstance(answers, list) and len(answers) == 2 and all(isinstance(text, str) for text in answers)):
            raise DataError(f"{where}: 'answers' must be a list of two texts, the answers that are compared.")
        sample = Sample.from_dict({name: value for name, value in row.items() if name != "answers"}, where)
        if sample.messages[-1].role != "user":
            raise DataError(f"{where} (id {sample.id!r}): the messages must end with the user's turn, the question.")
        known = {one.name: getattr(sample, one.name) for one in dataclasses.fields(sample)}
        return cls(**known, answers=tuple(answers))

    @property
    def question(self) -> str:
        """The last user turn, or the whole conversation if there are several turns; without tags for images."""
        turns = [(message.role, message.content.replace(IMAGE_TAG, "").strip()) for message in self.messages]
        if len(turns) == 1:
            return turns[0][1]
        return "\n".join(f"{role.capitalize()}: {text}" for role, text in turns if text)

    @property
    def unusable(self) -> str:
        """Why there is nothing to choose: ``empty_answer`` or ``identical_answers``; empty if there is."""
        first, second = (" ".join(answer.split()) for answer in self.answers)
        if not first or not second:
            return "empty_answer"
        return "identical_answers" if first == second else ""

    def pair(self, chosen: int, scores: tuple[float, float], source: Mapping[str, Any]) -> dict[str, Any]:
        """Return the row of a preference file.

        Args:
            chosen: Which answer is better, 0 or 1.
            scores: Of the two answers, in their order here; the row has the chosen answer's score first.
            source: Who judged, and how.
        """
        row = self.to_dict()
        return {
            "id": row["id"],
            "images": row["images"],
            "messages": row["messages"],
            "chosen": self.answers[chosen],
            "rejected": self.answers[1 - chosen],
            "scores": [scores[chosen], scores[1 - chosen]],
            "source": dict(source),
        }


class CandidateSource(JsonlSource):
    """Candidates of a JSON Lines file, read a row at a time.

    Args:
        path: The file.
        image_root: Folder or ``.tar`` of the images; None if no judge looks at them.
    """

    def __init__(self, path: str | Path, image_root: str | Path | None = None) -> None:
        super().__init__(path, image_root)

    def parse(self, raw: bytes, number: int, where: str) -> Candidate:
        """Convert a line to a candidate."""
        row = decode_json(raw, where)
        return Candidate.from_dict(self._with_id(row, number), where)

    def _with_id(self, row: Any, number: int) -> Any:
        return {"id": self._default_id(number), **row} if isinstance(row, dict) else row

    def __getitem__(self, index: int) -> Candidate:
        """Read one candidate; see :class:`~medtune.data.source.RecordSource`."""
        found = super().__getitem__(index)
        assert isinstance(found, Candidate)
        return found


class HeldCandidates:
    """Candidates in memory that share an image root; a subclass gives their rows and their fingerprint.

    Args:
        name: Names the source, for manifests.
        where: Names the file, for errors.
        image_root: Folder or ``.tar`` of the images; None if they are not opened.
    """

    def __init__(self, name: str, where: str, image_root: str | Path | None) -> None:
        self.name, self._where = name, where
        self._images = None if image_root is None else ImageRoot(image_root)

    def open_images(self, sample: Sample) -> list[Image.Image]:
        """Return a candidate's images, decoded to RGB.

        Raises:
            DataError: There is no image root, or an image cannot be opened.
        """
        where = f"{self._where} (id {sample.id!r})"
        if self._images is None and sample.images:
            raise DataError(f"{where}: the row names images, but no image_root was given; set it in the config.")
        return [] if self._images is None else [self._images.load(name, where) for name in sample.images]
