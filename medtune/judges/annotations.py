"""Preferences that people have chosen: JSON Lines, or an export of Label Studio's pairwise template (JSON)."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from medtune.data.source import decode_json
from medtune.errors import DataError
from medtune.judges.candidates import Candidate

PREFERENCES = ("first", "second", "both", "neither")
FIELDS = {"id": "id", "question": "prompt", "image": "image", "first": "answer1", "second": "answer2"}
"""Names under ``data`` of a Label Studio task; a project may have others."""
_WORDS = {
    **{name: name for name in PREFERENCES},
    "left": "first",
    "right": "second",
    "tie": "both",
    "equal": "both",
    "none": "neither",
}
_OWN = ("preference", "annotator", "comment")


@dataclass(frozen=True)
class Annotation:
    """One person's choice between two answers.

    Attributes:
        candidate: The question with its answers.
        preference: ``first``, ``second``, ``both`` (equally good) or ``neither``.
        annotator: Who chose.
        comment: Free text.
        where: File and row, for errors.
    """

    candidate: Candidate
    preference: str
    annotator: str
    comment: str
    where: str


def read_annotations(
    path: str | Path,
    format: Literal["auto", "jsonl", "label_studio"] = "auto",
    fields: Mapping[str, str] | None = None,
) -> list[Annotation]:
    """Read a file of preferences.

    Args:
        path: JSON Lines ``{"id", "images", "messages", "answers", "preference", "annotator", "comment"}``, or a JSON
            export of Label Studio.
        format: ``auto`` takes a file that begins with ``[`` for an export of Label Studio.
        fields: What differs from :data:`FIELDS` in the Label Studio project.

    Raises:
        DataError: Naming file and row: it is no preference, an annotator has chosen twice, or two rows with one id have
            different answers.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise DataError(f"The file of preferences {path} does not exist; correct its path.")
    with path.open("rb") as file:
        start = file.read(1024).decode("utf-8-sig", "replace").lstrip()
    exported = format == "label_studio" or (format == "auto" and start.startswith("["))
    unknown = set(fields or {}) - set(FIELDS)
    if unknown:
        raise DataError(f"fields: unknown name {min(unknown)!r}; a task has {', '.join(FIELDS)}.")
    found = list(_label_studio(path, {**FIELDS, **(fields or {})}) if exported else _json_lines(path))
    if not found:
        raise DataError(f"{path} holds no preference; annotate first, or export the finished tasks.")
    _check(found)
    return found


def _check(annotations: list[Annotation]) -> None:
    chosen: dict[tuple[str, str], Annotation] = {}
    answers: dict[str, Annotation] = {}
    for row in annotations:
        earlier = chosen.setdefault((row.candidate.id, row.annotator), row)
        if earlier is not row:
            raise DataError(
                f"{row.where} (id {row.candidate.id!r}): this annotator has chosen already, in {earlier.where}; keep "
                "one of the two rows."
            )
        first = answers.setdefault(row.candidate.id, row)
        if first.candidate.answers != row.candidate.answers:
            raise DataError(
                f"{row.where} (id {row.candidate.id!r}): its answers differ from those in {first.where}; give each "
                "question with two answers an id of its own."
            )


def _json_lines(path: Path) -> Iterator[Annotation]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            where = f"{path.name}, line {number}"
            row = decode_json(raw, where)
            if not isinstance(row, dict):
                raise DataError(f"{where}: a row must be a JSON object, this one is a {type(row).__name__}.")
            candidate = Candidate.from_dict({key: value for key, value in row.items() if key not in _OWN}, where)
            if row.get("preference") not in PREFERENCES:
                raise DataError(f"{where} (id {candidate.id!r}): 'preference' must be one of {', '.join(PREFERENCES)}.")
            annotator, comment = row.get("annotator", ""), row.get("comment") or ""
            if not isinstance(annotator, str | int) or not isinstance(comment, str):
                raise DataError(f"{where} (id {candidate.id!r}): 'annotator' and 'comment' must be texts.")
            yield Annotation(candidate, row["preference"], str(annotator), comment, where)


def label_studio_tasks(path: str | Path, fields: Mapping[str, str] | None = None) -> Iterator[tuple[str, Candidate]]:
    """Yield the place and the question of each task of a Label Studio file, annotated or not.

    Args:
        path: A JSON array of tasks.
        fields: What differs from :data:`FIELDS` in the project.

    Raises:
        DataError: Naming file and task that is no question with two answers.
    """
    path = Path(path).expanduser()
    for task, where in _tasks(path):
        yield where, _candidate(task, {**FIELDS, **(fields or {})}, where)


def _tasks(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    try:
        tasks = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise DataError(f"{path}: this is not valid JSON; export the project as JSON.") from None
    if not isinstance(tasks, list):
        raise DataError(f"{path}: an export of Label Studio is a list of tasks; export the project as JSON.")
    for number, task in enumerate(tasks, start=1):
        where = f"{path.name}, task {number}"
        if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
            raise DataError(f"{where}: a task must have 'data'; export the project as JSON (not JSON-MIN).")
        yield task, where


def _label_studio(path: Path, fields: Mapping[str, str]) -> Iterator[Annotation]:
    for task, where in _tasks(path):
        candidate = _candidate(task, fields, where)
        annotations = task.get("annotations") or []
        if not isinstance(annotations, list):
            raise DataError(f"{where}: 'annotations' must be a list; export the project as JSON (not JSON-MIN).")
        for annotation in annotations:
            if isinstance(annotation, dict) and not annotation.get("was_cancelled"):
                yield _annotation(annotation, candidate, where)


def _candidate(task: Mapping[str, Any], fields: Mapping[str, str], where: str) -> Candidate:
    data = task["data"]
    if "answers" in data and "messages" in data:  # as medtune writes tasks
        known = {name: data[name] for name in ("id", "images", "messages", "answers", "meta") if name in data}
        return Candidate.from_dict({"id": task.get("id"), **known}, where)
    for name in ("question", "first", "second"):
        if not isinstance(data.get(fields[name]), str):
            raise DataError(f"{where}: data has no text {fields[name]!r}; say under fields.{name} how it is called.")
    image = data.get(fields["image"])
    caption = data.get("caption")
    row = {
        "id": data.get(fields["id"], task.get("id")),
        "images": [] if image is None else [_relative(image, where)],
        "messages": [{"role": "user", "content": data[fields["question"]]}],
        "answers": [data[fields["first"]], data[fields["second"]]],
        "meta": {"caption": caption} if isinstance(caption, str) else {},
    }
    return Candidate.from_dict(row, where)


def _relative(image: object, where: str) -> str:
    """Return the path below the image root; Label Studio serves local files under ``/data/local-files/?d=PATH``."""
    text = image if isinstance(image, str) else ""
    address = urlsplit(text)
    local = parse_qs(address.query).get("d") if address.path.endswith("/local-files/") else None
    if local:
        return local[0]
    if not text or address.scheme or address.netloc or text.startswith("/"):
        raise DataError(
            f"{where}: the image is no path below the image root; serve images as local files "
            "(/data/local-files/?d=...)."
        )
    return text


def _annotation(annotation: Mapping[str, Any], candidate: Candidate, where: str) -> Annotation:
    where = f"{where} (id {candidate.id!r})"
    chosen, compared, comments = "", "", []
    for result in annotation.get("result") or []:
        value = result.get("value") if isinstance(result, dict) else None
        if not isinstance(value, dict):
            raise DataError(f"{where}: a result has no value; export the project as JSON.")
        if result.get("type") == "pairwise":
            compared = str(value.get("selected", ""))
        elif result.get("type") == "choices" and value.get("choices"):
            chosen = str(value["choices"][0])
        elif result.get("type") == "textarea":
            text = value.get("text", "")
            comments += text if isinstance(text, list) else [text]
    preference = _WORDS.get((chosen or compared).strip().casefold())
    if preference is None:
        raise DataError(
            f"{where}: an annotation chooses neither an answer ('left' or 'right') nor 'both' or 'neither'; finish or "
            "skip the task."
        )
    who = annotation.get("annotator", annotation.get("completed_by", ""))  # the first is medtune's own
    who = who.get("id", "") if isinstance(who, dict) else who
    return Annotation(candidate, preference, str(who), "\n".join(map(str, comments)), where)
