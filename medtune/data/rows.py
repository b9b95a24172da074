"""Rows of conversations in the layouts in circulation: medtune's, OpenAI's, Hugging Face's and LLaVA's."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from medtune.data.sample import FIELDS, IMAGE_TAG, Sample
from medtune.errors import DataError

CONVERSATIONS = ("conversations", "conversatons")
"""Keys of LLaVA's turns; the second one is how LLaVA-Med's published files spell it."""
NOTES = frozenset(
    "model source data_source dataset dataset_name domain category type task split language license pair_id "
    "question_id question_type answer_type width height length".split()
)
"""Keys of published LLaVA files that say where a row comes from; they are never shown to a model."""
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
}
_SYSTEM = ("system", "system_prompt")
_ADDRESSES = ("http://", "https://", "data:", "file:", "s3:", "gs:")


def sample_of(row: Any, where: str, default_id: str, ignored: Collection[str] = ()) -> Sample:
    """Convert a decoded row in any of the layouts to a sample.

    - ``messages`` of ``{"role", "content"}`` or ``conversations`` of ``{"from", "value"}``. A content is a text, or a
      list of parts as in OpenAI's and Hugging Face's chats: texts are joined as they are, and each image becomes an
      ``<image>`` tag at its place.
    - ``image`` is a path, ``images`` a list of paths. The image parts may name the paths instead.
    - ``system`` or ``system_prompt`` is a system message before the others.
    - A row without ``id`` gets ``default_id``.

    Args:
        row: the decoded JSON value.
        where: file and row, for messages.
        default_id: the id of a row without one.
        ignored: names of keys that are not read.

    Raises:
        DataError: if it is in none of the layouts, or has a key or part that could carry text or images and is not
            read; the message names it.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: a row must be a JSON object, this one is a {type(row).__name__}.")
    row = {key: value for key, value in row.items() if key not in ignored}
    llava = next((key for key in CONVERSATIONS if key in row), None)
    if llava and "messages" in row:
        raise DataError(f"{where}: the row has 'messages' and {llava!r}; remove one of them.")
    if llava:
        _check_llava_keys(row, where)
        turns = row[llava]
        if not isinstance(turns, list):
            raise DataError(f"{where}: an item needs a list {llava!r} of {{'from', 'value'}}.")
        messages = [_llava_turn(turn, where, ignored) for turn in turns]
    elif not isinstance(row.get("messages"), list):
        return Sample.from_dict({"id": default_id, **row}, where)  # refused there by name
    else:
        messages = [
            _openai_turn(turn, f"{where}, message {number}", ignored) for number, turn in enumerate(row["messages"], 1)
        ]
    paths: list[str | None] = []
    messages = [_joined(message, paths, f"{where}, message {number}") for number, message in enumerate(messages, 1)]
    known = {key: row[key] for key in ("meta", "weight") if key in row}
    others = {} if llava else {key: row[key] for key in row if key not in (*FIELDS, "image", *_SYSTEM)}
    return Sample.from_dict(
        {
            "id": default_id if row.get("id") is None else row["id"],
            "images": _images(row, [path for path in paths if path is not None], where),
            "messages": [*_system(row, messages, where), *messages],
            **known,
            **others,
        },
        where,
    )


def _check_llava_keys(row: Mapping[str, Any], where: str) -> None:
    """Refuse a key that is not read and whose value may be a text or an image."""
    read = {"id", "image", "images", "meta", "weight", *CONVERSATIONS, *_SYSTEM}
    for key, value in row.items():
        if key not in read and key not in NOTES and isinstance(value, str | list | dict) and value:
            raise DataError(
                f"{where}: the key {key!r} is not read, but it could hold text or images; put it into 'conversations', "
                f"'image' or 'system_prompt', or set ignore_keys: [{key}] in the dataset."
            )


def _llava_turn(turn: Any, where: str, ignored: Collection[str]) -> Any:
    speaker = turn.get("from") if isinstance(turn, Mapping) else None
    if not isinstance(speaker, str) or speaker not in _ROLES or "value" not in turn:
        raise DataError(f"{where}: a turn needs 'value' and a 'from' of {', '.join(_ROLES)}.")
    _check_turn_keys(turn, ("from", "value"), where, ignored)
    return {"role": _ROLES[speaker], "content": turn["value"]}


def _openai_turn(turn: Any, where: str, ignored: Collection[str]) -> Any:
    if not isinstance(turn, Mapping) or not {"role", "content"} <= set(turn):
        return turn  # refused by name when the sample is made
    _check_turn_keys(turn, ("role", "content"), where, ignored)
    role = "system" if turn["role"] == "developer" else turn["role"]
    return {"role": role, "content": turn["content"]}


def _check_turn_keys(turn: Mapping[str, Any], read: Sequence[str], where: str, ignored: Collection[str]) -> None:
    """Refuse keys of a turn that say something: texts, tool calls, or OpenAI's ``weight`` 0 for "do not train"."""
    for key, value in turn.items():
        silent = value is None or value is False or value in ([], {}, "") or (key == "weight" and value == 1)
        if key not in read and key not in ignored and not silent:
            raise DataError(
                f"{where}: a message must have exactly {read[0]!r} and {read[1]!r}; {key!r} is not read: remove it, or "
                f"set ignore_keys: [{key}] in the dataset."
            )


def _joined(turn: Any, paths: list[str | None], where: str) -> Any:
    """Replace a list of parts by one text; ``paths`` gets the path of each image part, None if it names none."""
    if not isinstance(turn, Mapping) or not isinstance(turn.get("content"), list):
        return turn
    texts = []
    for part in turn["content"]:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if isinstance(part, str):
            texts.append(_plain(part, where))
        elif kind in ("text", "input_text", "output_text") and isinstance(part.get("text"), str):
            texts.append(_plain(part["text"], where))
        elif kind in ("image", "image_url", "input_image"):
            texts.append(IMAGE_TAG)
            if part.get("index") not in (None, len(paths)):  # as in TRL's data sets
                raise DataError(f"{where}: the 'index' of image parts must count them, from 0 in the row.")
            paths.append(_path(part, where))
        else:
            raise DataError(
                f"{where}: a part of 'content' must be {{'type': 'text', 'text': ...}} or {{'type': 'image'}} with an "
                "optional path; other parts are not read."
            )
    return {**turn, "content": "".join(texts)}


def _plain(text: str, where: str) -> str:
    if IMAGE_TAG in text:
        raise DataError(f"{where}: a text part holds {IMAGE_TAG}; write it as a part {{'type': 'image'}}.")
    return text


def _path(part: Mapping[str, Any], where: str) -> str | None:
    """Return the path that an image part names; None if the part only marks the place of an image."""
    named = [part[key] for key in ("image", "image_url", "path", "url") if part.get(key) is not None]
    if not named:
        return None
    path = named[0].get("url") if isinstance(named[0], Mapping) else named[0]
    if len(named) > 1 or not isinstance(path, str):
        raise DataError(f"{where}: an image part must name one path, as in {{'type': 'image', 'path': 'a/b.png'}}.")
    if path.lower().startswith(_ADDRESSES):
        raise DataError(
            f"{where}: an image part holds an address or the image itself; medtune downloads nothing: save the image "
            "below image_root, and give its path."
        )
    return path


def _images(row: Mapping[str, Any], paths: list[str], where: str) -> Any:
    """Return the paths of a row's images, which exactly one of ``image``, ``images`` and the parts may name."""
    given = [key for key in ("image", "images") if row.get(key) not in (None, [])]
    if len(given) + bool(paths) > 1:
        raise DataError(f"{where}: the images are named twice, by {' and '.join([*given, 'parts'][:2])}; keep one.")
    if not given:
        return paths
    named = row[given[0]]
    return [named] if isinstance(named, str) else named


def _system(row: Mapping[str, Any], messages: Sequence[Any], where: str) -> list[dict[str, Any]]:
    """Return the system message that a key of the row holds."""
    named = [key for key in _SYSTEM if row.get(key) not in (None, "")]
    if not named:
        return []
    there = any(isinstance(message, Mapping) and message.get("role") == "system" for message in messages)
    if there or len(named) > 1:
        raise DataError(f"{where}: the row has {named[0]!r} and another system message; keep one.")
    return [{"role": "system", "content": row[named[0]]}]
