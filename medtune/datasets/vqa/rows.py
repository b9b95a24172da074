"""What the converters of free questions share: rows, samples, and the overlaps of a set's own splits."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from medtune.data.sample import Message, Sample
from medtune.data.source import decode_json
from medtune.datasets.prepared import Prepared
from medtune.errors import DataError

SPLITS = ("train", "val", "test")
YES_NO = ("yes", "no")


@dataclass(frozen=True)
class VqaRow:
    """One question about one image, with its right answer.

    Attributes:
        id: unique in its split.
        split: ``train``, ``val`` or ``test``.
        image: path below the image root.
        question: the question.
        answer: the right answer.
        answer_type: ``open`` or ``closed``.
        kind: type of the question, which scores are also given for.
        where: file and row, for messages.
        meta: further facts.
    """

    id: str
    split: str
    image: str
    question: str
    answer: str
    answer_type: Literal["open", "closed"]
    kind: str
    where: str
    meta: Mapping[str, Any] = field(default_factory=dict)


def read_array(path: Path, needed: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (file and item, item) of a JSON array of objects; texts are stripped, and numbers become texts.

    Args:
        path: the file.
        needed: keys that every item must have.

    Raises:
        DataError: if the file is absent or no such array, or an item lacks a key.
    """
    if not path.is_file():
        raise DataError(f"The data file {path} does not exist; correct its path.")
    yield from checked(decode_json(path.read_bytes(), path.name), needed, path.name)


def checked(items: Any, needed: Sequence[str], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (file and item, item) of a list of objects; see :func:`read_array`."""
    if not isinstance(items, list) or not items:
        raise DataError(f"{name}: this must be a list of questions that holds at least one.")
    for number, item in enumerate(items, start=1):
        where = f"{name}, item {number}"
        if not isinstance(item, dict):
            raise DataError(f"{where}: a question must be an object, not a {type(item).__name__}.")
        plain = {key: _plain(value) for key, value in item.items()}
        for key in needed:
            if not isinstance(plain.get(key), str) or not plain[key]:
                raise DataError(f"{where}: the field {key!r} is missing or empty; correct or remove the question.")
        yield where, plain


def _plain(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return value.strip() if isinstance(value, str) else value


def answer_type_of(text: str, where: str) -> Literal["open", "closed"]:
    """Read OPEN or CLOSED in any case.

    Raises:
        DataError: for another value.
    """
    found = text.strip().lower()
    if found not in ("open", "closed"):
        raise DataError(f"{where}: 'answer_type' must be OPEN or CLOSED.")
    return "open" if found == "open" else "closed"


def prepare_rows(
    name: str,
    rows: Iterable[VqaRow],
    *,
    inputs: dict[str, Path],
    options: Mapping[str, Any],
    closed_hint: str = "",
    summary: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Prepared:
    """Convert questions to samples: a user turn, an assistant turn, and ``meta`` for the protocol ``vqa``.

    Args:
        name: name of the set.
        rows: its questions.
        inputs: see :class:`medtune.datasets.prepared.Prepared`.
        options: options for the manifest, in addition to the hint.
        closed_hint: a sentence after the question where the right answer is yes or no; empty adds nothing.
        summary: further counts for the manifest.
        notes: what the user should know.

    Raises:
        DataError: if two questions of a split have one id.
    """
    splits: dict[str, list[VqaRow]] = {}
    seen: dict[tuple[str, str], str] = {}
    for row in rows:
        first = seen.setdefault((row.split, row.id), row.where)
        if first != row.where:
            raise DataError(f"{row.where}: the id {row.id} is also that of {first}; give each question its own.")
        splits.setdefault(row.split, []).append(row)
    ordered = {split: splits[split] for split in SPLITS if split in splits}
    overlaps = known_overlaps(name, ordered)
    return Prepared(
        name=name,
        splits={split: [_sample(name, row, closed_hint) for row in of] for split, of in ordered.items()},
        inputs=inputs,
        options={**options, "closed_hint": closed_hint},
        summary={
            "questions": {
                split: dict(sorted(Counter(r.answer_type for r in of).items())) for split, of in ordered.items()
            },
            **(summary or {}),
            "known_overlaps": overlaps,
        },
        notes=[*notes, *(_note(key, found) for key, found in overlaps.items())],
    )


def known_overlaps(name: str, splits: Mapping[str, Sequence[VqaRow]]) -> dict[str, dict[str, Any]]:
    """Find what the splits of a set share.

    Args:
        name: name of the set.
        splits: split to its questions.

    Returns:
        ``<name>/<split>+<split>`` to the numbers of shared images, of questions on them in each split, and of questions
        that are asked in both with the same words on the same image; only pairs of splits that share an image.
    """
    found = {}
    for (first, one), (second, other) in combinations(splits.items(), 2):
        images = {row.image for row in one} & {row.image for row in other}
        asked = [{(row.image, row.question.casefold()) for row in rows} for rows in (one, other)]
        if images:
            found[f"{name}/{first}+{second}"] = {
                "splits": [first, second],
                "images": len(images),
                "questions": {
                    first: sum(r.image in images for r in one),
                    second: sum(r.image in images for r in other),
                },
                "same_question": len(asked[0] & asked[1]),
            }
    return found


def _note(name: str, found: Mapping[str, Any]) -> str:
    first, second = found["splits"]
    return (
        f"{first} and {second} share {found['images']} images ({found['questions'][second]:,} questions of {second}); "
        f"the manifest names this overlap {name}"
    )


def _sample(name: str, row: VqaRow, hint: str) -> Sample:
    asked = f"{row.question} {hint}" if hint and row.answer.casefold() in YES_NO else row.question
    meta = {"attribute": row.kind, "answer": row.answer, "answer_type": row.answer_type, **row.meta}
    turns = (Message("user", asked), Message("assistant", row.answer))
    return Sample(f"{name}/{row.split}/{row.id}", (row.image,), turns, meta)
