"""Single questions with an answer, out of conversations and candidates: what is rated, and what the selector scores."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medtune.curation.figures import Refuse, plain, read_rows
from medtune.data.rows import CONVERSATIONS
from medtune.data.sample import IMAGE_TAG, is_identifier, printable
from medtune.datasets.figure_captions import CAPTIONS, MENTIONS, mention_texts
from medtune.errors import DataError

ASKS, ANSWERS = ("human", "user"), ("gpt", "assistant")
_TURNS = (*((name, "from", "value") for name in CONVERSATIONS), ("messages", "role", "content"))


@dataclass(frozen=True)
class Record:
    """A question with one answer.

    Attributes:
        id: ``<conversation>/turn_1``, or ``<candidate>/answer_1``.
        row: id of the conversation or candidate.
        image: path of its image below the image root; empty without one.
        question: without tags for images.
        answer: the answer.
        caption: of the image; may be empty.
        mentions: sentences that mention the image; may be empty.
    """

    id: str
    row: str
    image: str
    question: str
    answer: str
    caption: str = ""
    mentions: str = ""

    def text(self, context: bool = True, limit: int = 4000) -> str:
        """Return what the selection model reads.

        Question and answer come first, so that a long caption cannot push them out of a model's context, which cuts the
        end off. The official code has the caption first.

        Args:
            context: whether caption and mentions follow.
            limit: most characters of the text.
        """
        parts = [f"Question: {self.question} Answer: {self.answer}"]
        if context and self.caption:
            parts.append(f"Caption: {self.caption}")
        if context and self.mentions:
            parts.append(f"Mentions: {self.mentions}")
        return " ".join(parts)[:limit]


def records_of(row: Any, where: str) -> list[Record]:
    """Return the questions of one decoded row.

    Args:
        row: a conversation in LLaVA's format or in medtune's, or a candidate with two ``answers``.
        where: file and row, for errors.

    Raises:
        DataError: Naming ``where`` and what is wrong.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: a row must be a JSON object, this one is a {type(row).__name__}.")
    if not is_identifier(row.get("id")):
        raise DataError(f"{where}: the row has no 'id'; give every row one of its own.")
    name = printable(str(row["id"]))
    where = f"{where} (id {name!r})"
    own = row.get("meta")
    meta: Mapping[str, Any] = own if isinstance(own, Mapping) else {}
    image, caption, mentions = _image(row, where), _caption({**meta, **row}, where), _mentions({**meta, **row}, where)
    turns = _turns(row, where)
    if "answers" in row:
        answers = row["answers"]
        if not (isinstance(answers, list) and len(answers) == 2 and all(isinstance(one, str) for one in answers)):
            raise DataError(f"{where}: 'answers' must be a list of two texts.")
        if not turns or turns[-1][0] not in ASKS:
            raise DataError(f"{where}: the messages must end with the user's turn, the question.")
        question = _plain(turns[-1][1])
        return [
            Record(f"{name}/answer_{number}", name, image, question, plain(answer), caption, mentions)
            for number, answer in enumerate(answers, start=1)
        ]
    found = []
    said = [(who, text) for who, text in turns if who in (*ASKS, *ANSWERS)]
    for place in range(0, len(said) - 1, 2):
        (asks, question), (answers_, answer) = said[place : place + 2]
        if asks not in ASKS or answers_ not in ANSWERS:
            raise DataError(f"{where}: questions and answers must alternate, beginning with a question.")
        number = place // 2 + 1
        found.append(Record(f"{name}/turn_{number}", name, image, _plain(question), plain(answer), caption, mentions))
    if not found or len(said) % 2:
        raise DataError(f"{where}: a conversation needs questions with an answer each.")
    return found


def iterate_rows(path: str | Path) -> Iterator[tuple[str, Any]]:
    """Yield place and row of a JSON or JSON Lines file; of JSON Lines one row at a time.

    Raises:
        DataError: The file is absent, or a line is not JSON.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise DataError(f"Cannot read {path}: there is no such file; check the path.")
    with path.open("rb") as file:
        start = file.read(1024).decode("utf-8-sig", "replace").lstrip()
    if start.startswith("["):
        yield from read_rows(path)
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"{path}, line {number}", decoded(line, f"{path}, line {number}")


def decoded(line: bytes, where: str) -> Any:
    """Decode a line of JSON Lines.

    Raises:
        DataError: It is not JSON.
    """
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        raise DataError(f"{where}: this is not JSON; mend or remove the line.") from None


def read_records(path: str | Path, refuse: Refuse | None = None) -> list[Record]:
    """Read the questions of a file, each row's id once.

    Args:
        path: JSON or JSON Lines of conversations or candidates.
        refuse: Called with place and error of a row that cannot be used, which is then left out; None raises.

    Raises:
        DataError: The file cannot be read, holds nothing, or a row has no id, the id of another row, or no question
            with an answer.
    """
    found: list[Record] = []
    known: dict[str, str] = {}
    for where, row in iterate_rows(path):
        try:
            records = records_of(row, where)
            before = known.setdefault(records[0].row, where)
            if before != where:
                raise DataError(f"{where}: the id {records[0].row!r} is also that of {before}; give each row its own.")
        except DataError as error:
            if refuse is None:
                raise
            refuse(where, error)
            continue
        found += records
    if not found:
        raise DataError(f"{path} holds no question with an answer; see docs/biomed_vital.md for its layout.")
    return found


def _turns(row: Mapping[str, Any], where: str) -> list[tuple[str, str]]:
    for key, who, what in _TURNS:
        if key not in row:
            continue
        turns = row[key]
        if not isinstance(turns, list) or not all(
            isinstance(turn, Mapping) and isinstance(turn.get(who), str) and isinstance(turn.get(what), str)
            for turn in turns
        ):
            raise DataError(f"{where}: {key!r} must be a list of {{{who!r}, {what!r}}}.")
        return [(turn[who], turn[what]) for turn in turns]
    raise DataError(f"{where}: the row has no 'conversations' and no 'messages'.")


def _plain(question: str) -> str:
    return plain(question.replace(IMAGE_TAG, " "))


def _image(row: Mapping[str, Any], where: str) -> str:
    images = row.get("images", row.get("image"))
    first = images[0] if isinstance(images, list) and images else images
    if first is None or first == []:
        return ""
    if not isinstance(first, str) or not first.strip():
        raise DataError(f"{where}: 'image' must be the path of one image.")
    return first


def _caption(row: Mapping[str, Any], where: str) -> str:
    value = next((row[name] for name in CAPTIONS if name in row), "")
    if not isinstance(value, str):
        raise DataError(f"{where}: the caption must be a text.")
    return plain(value)


def _mentions(row: Mapping[str, Any], where: str) -> str:
    value = next((row[name] for name in MENTIONS if name in row), None)
    items = [] if value is None else [value] if isinstance(value, str) else value
    texts = mention_texts(items) if isinstance(items, list) else None
    if texts is None:
        raise DataError(f"{where}: the in-text mentions must be a list of sentences.")
    return " ".join(plain(text) for text in texts if text.strip())
