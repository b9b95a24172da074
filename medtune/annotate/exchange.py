"""Choices to and from files: medtune's preferences in JSON Lines, and Label Studio's JSON."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from medtune.annotate.records import Choice
from medtune.annotate.store import Store
from medtune.data.writing import replaced
from medtune.errors import DataError
from medtune.judges.annotations import FIELDS, read_annotations
from medtune.judges.candidates import Candidate

Format = Literal["jsonl", "label_studio"]
_SIDES = {"first": "left", "second": "right"}


def write_preferences(store: Store, path: str | Path, format: Format = "jsonl") -> int:
    """Write every choice to a file that :func:`medtune.judges.annotations.read_annotations` reads.

    Args:
        store: Where the choices are.
        path: The file; replaced if it exists.
        format: ``jsonl`` for one line per choice, ``label_studio`` for every question as a task with its annotations.

    Returns:
        The number of choices.

    Raises:
        DataError: If there is no choice, or the file cannot be written.
    """
    path, choices = Path(path).expanduser(), store.choices()
    if not choices and format == "jsonl":
        raise DataError(f"{store.path} has no choice yet; annotate first.")
    try:
        with replaced(path) as aside, aside.open("w", encoding="utf-8") as file:
            if format == "jsonl":
                for row, annotator, choice in choices:
                    file.write(json.dumps(_line(row, annotator, choice), ensure_ascii=False) + "\n")
            else:
                json.dump(list(_tasks(store)), file, ensure_ascii=False, indent=1)
    except OSError as error:
        raise DataError(f"Cannot write {path}: {error.strerror}; choose another file.") from error
    return len(choices)


def _line(row: Candidate, annotator: str, choice: Choice) -> dict[str, Any]:
    made = {"preference": choice.preference, "annotator": annotator, "comment": choice.comment}
    return {**row.to_dict(), "answers": list(row.answers), **made}


def _tasks(store: Store) -> Iterator[dict[str, Any]]:
    made: dict[str, list[tuple[str, Choice]]] = defaultdict(list)
    rows: dict[str, Candidate] = {item.row.id: item.row for item in store.items()}
    for row, annotator, choice in store.choices():
        rows.setdefault(row.id, row)
        made[row.id].append((annotator, choice))
    for number, row in enumerate(rows.values(), start=1):
        yield {
            "id": number,
            "data": _data(row),
            "annotations": [_annotation(annotator, choice) for annotator, choice in made[row.id]],
        }


def _data(row: Candidate) -> dict[str, Any]:
    """Return a question under the names of the pairwise template, and whole, so that nothing is lost on import."""
    kept = {**row.to_dict(), "answers": list(row.answers)}
    shown: dict[str, Any] = {
        FIELDS["question"]: row.question,
        FIELDS["first"]: row.answers[0],
        FIELDS["second"]: row.answers[1],
        "caption": str(row.meta.get("caption", "")),
    }
    if row.images:
        shown[FIELDS["image"]] = "/data/local-files/?d=" + quote(row.images[0])
    return {**kept, **shown}


def _annotation(annotator: str, choice: Choice) -> dict[str, Any]:
    result: dict[str, Any]
    if choice.preference in _SIDES:
        result = {"from_name": "pairwise", "type": "pairwise", "value": {"selected": _SIDES[choice.preference]}}
    else:
        result = {"from_name": "equal", "type": "choices", "value": {"choices": [choice.preference]}}
    results = [{**result, "to_name": "answer1,answer2" if result["type"] == "pairwise" else "answer1"}]
    if choice.comment:
        comment = {
            "from_name": "comment",
            "to_name": "answer1",
            "type": "textarea",
            "value": {"text": [choice.comment]},
        }
        results.append(comment)
    lead = {} if choice.seconds is None else {"lead_time": choice.seconds}
    return {"annotator": annotator, "was_cancelled": False, "result": results, **lead}


def take_preferences(store: Store, path: str | Path, fields: Mapping[str, str] | None = None) -> int:
    """Bring the choices of a file into the store, all or none.

    Args:
        store: It has the questions already.
        path: JSON Lines of preferences, or a JSON export of Label Studio.
        fields: How a Label Studio project calls its fields, where it differs from the default.

    Returns:
        The number of choices of the file; those that the store had already are counted and not changed.

    Raises:
        DataError: Naming the row: unknown question, other answers, or an annotator who has chosen otherwise.
    """
    found = read_annotations(path, fields=fields)
    answers = {item.row.id: item.row.answers for item in store.items()}
    for one in found:
        if one.candidate.id in answers and answers[one.candidate.id] != one.candidate.answers:
            raise DataError(
                f"{one.where} (id {one.candidate.id!r}): its answers differ from those that are asked here."
            )
        if not one.annotator.strip():
            raise DataError(f"{one.where} (id {one.candidate.id!r}): the choice names no annotator; add the name.")
    return store.take(
        (one.candidate.id, one.annotator, Choice(one.preference, one.comment), one.where) for one in found
    )
