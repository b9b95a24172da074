"""One model's answers to open questions as candidates of a judge: each beside its reference answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medtune.data.sample import Message
from medtune.data.writing import file_sha256, sha256
from medtune.errors import DataError
from medtune.evaluation.chat_grades import ChatGrade
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.chat import TASK
from medtune.judges.base import Judgement
from medtune.judges.candidates import Candidate, HeldCandidates
from medtune.judges.completion import read_answers


@dataclass(frozen=True)
class AnswerBesideReference(Candidate):
    """A reference answer and a model's answer; an empty answer is scored too, and so is one that equals the other."""

    @property
    def unusable(self) -> str:
        """Empty: every answer is scored."""
        return ""


class ScoredAnswers(HeldCandidates):
    """Answers of the protocol ``chat`` as candidates: the reference answer first, the model's answer second.

    An answer that was given on another question's image is judged with its own question's image.

    Args:
        path: Answers (``predictions.jsonl``) of a model; those of other protocols are passed on as they are.
        image_root: Folder or ``.tar`` of the images; None if they are not opened.
        questions: Question file that completes answers of other programs; None takes what the answers say.

    Raises:
        DataError: A file cannot be read, or holds no answer of this protocol.
    """

    def __init__(
        self, path: str | Path, image_root: str | Path | None = None, questions: str | Path | None = None
    ) -> None:
        self.path, self._questions = Path(path).expanduser(), questions
        super().__init__(str(self.path), str(self.path), image_root)
        self.rows = read_answers(self.path, questions)
        self._asked = [row for row in self.rows if row.task == TASK and not row.meta.get("probe")]
        if not self._asked:
            raise DataError(f"{self.path} holds no answers to questions of a chat; ask them with protocols=[chat].")
        self._own = {row.meta.get("sample_id"): row for row in self._asked if not row.meta.get("swapped")}

    def __len__(self) -> int:
        """Return the number of answers."""
        return len(self._asked)

    def __getitem__(self, index: int) -> Candidate:
        """Return a reference answer and an answer."""
        row = self._asked[index]
        own = self._own.get(row.meta.get("sample_id"), row)
        texts, mentions = row.meta.get("caption", ""), row.meta.get("mentions", [])
        if not isinstance(texts, str) or not isinstance(mentions, list):
            raise DataError(f"{self.path}: prediction {row.id!r} has no caption and mentions that a judge could read.")
        history = [Message(str(role), str(text)) for role, text in row.meta.get("history", [])]
        return AnswerBesideReference(
            row.id,
            tuple(own.meta.get("images") or ()),
            (*history, Message("user", row.prompt)),
            {},
            answers=(reference_of(row), row.prediction),
            context={"caption": texts, "mentions": "\n".join(map(str, mentions))},
        )

    def fingerprint(self) -> str:
        """Return a SHA-256 of the file, and of the questions if they complete it."""
        return fingerprint([self.path], self._questions)

    def graded(self, done: Mapping[str, Judgement], judge: str) -> list[Prediction]:
        """Return all predictions of the file, those that were judged with the judge's scores in ``meta["chat"]``.

        Args:
            done: Judgements by id of the prediction.
            judge: Who judged and how, in a few words.
        """
        return [self._graded(row, done.get(row.id), judge) for row in self.rows]

    @staticmethod
    def _graded(row: Prediction, judgement: Judgement | None, judge: str) -> Prediction:
        if judgement is None:
            return row
        own = [
            scores if scores is None or place == 0 else (scores[1], scores[0])
            for place, scores in enumerate(judgement.shown)
        ]
        reference = judgement.reference or reference_of(row)
        grade = ChatGrade(tuple(own), judgement.reason, judgement.words, reference, bool(judgement.reference), judge)
        return replace(row, meta={**row.meta, "chat": grade.to_dict()})


def fingerprint(paths: Sequence[Path], questions: str | Path | None) -> str:
    """Return a SHA-256 of one file, or of the SHA-256 of several, a question file last."""
    digests = [file_sha256(path) for path in (*paths, *([Path(questions)] if questions else []))]
    return digests[0] if len(digests) == 1 else sha256("".join(digests).encode())


def reference_of(row: Prediction) -> str:
    """Return the right or reference answer of a prediction; empty if it has none."""
    answer: Any = next(iter(row.references), row.meta.get("answer"))
    return answer.strip() if isinstance(answer, str) else ""


def described(who: Mapping[str, Any]) -> str:
    """Return who judged and how in a few words: model, prompts, orders.

    Args:
        who: ``judge``, its identity, and ``model``, the name of the served model.
    """
    judge = who["judge"]
    parts = [who.get("model", judge["name"]), judge["prompt"], f"orders {judge['orders']}"]
    if judge["reference"] != "stored":
        parts.append(f"references {judge['reference']} by {judge['reference_prompt']}")
    if judge["temperature"]:
        parts.append(f"temperature {judge['temperature']:g}, seed {judge['seed']}")
    return ", ".join(parts)
