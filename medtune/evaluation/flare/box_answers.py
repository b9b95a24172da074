"""Answers to FLARE's detection and instance detection questions."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from medtune.datasets.flare.boxes import Box, as_box, as_value
from medtune.evaluation.flare.reading import EMPTY, NO_BOXES, NO_CLASSES, Reading, cleaned
from medtune.evaluation.parsing import normalise

Named = tuple[str | None, Box]
"""A box with its class; None if the answer gives none."""
NOTHING = frozenset(
    ("[]", "{}", "[[]]", "none", "no lesion", "no lesions", "no finding", "no findings", "no lesion detected")
    + ("no lesions detected", "no box", "no boxes")
)
"""Answers that say that there is nothing to find."""
_BOX_KEYS = (
    "bbox bboxes box boxes box_2d bounding_box bounding_boxes boundingbox coordinates coords location locations".split()
)
_CLASS_KEYS = ("class", "label", "name", "category", "type", "id")
_CORNERS = (
    ("x_min", "y_min", "x_max", "y_max"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("x1", "y1", "x2", "y2"),
    ("left", "top", "right", "bottom"),
)
_SIZES = (("x", "y", "w", "h"), ("x", "y", "width", "height"), ("left", "top", "width", "height"))
_IN_WORDS = re.compile(
    r"x_?min\W{1,4}(-?\d+\.?\d*)\W+y_?min\W{1,4}(-?\d+\.?\d*)\W+x_?max\W{1,4}(-?\d+\.?\d*)\W+y_?max\W{1,4}(-?\d+\.?\d*)",
    re.IGNORECASE,
)
_PAIRS = {"[": "]", "{": "}", "(": ")"}
_DEEPEST, _MOST_STARTS = 12, 400


def read_boxes(answer: str) -> Reading:
    """Read the boxes of an answer, in any class.

    Read are JSON and Python literals, alone or between words and in code blocks: a flat box, lists of boxes of any
    depth, objects with a box under a key such as ``bbox``, objects of corners (``x_min``, ...) or of a corner with
    width and height, and two corners. The boxes of all values in the answer are joined; one that an earlier value holds
    is left out, as run-ons repeat themselves. Of an answer that was cut off the whole boxes are read. A list of four
    numbers is always taken as corners in pixels: that a model means width and height, or parts of 1,000, cannot be
    seen.

    Returns:
        A tuple of boxes; () if the answer says that there is nothing.
    """
    return _outcome(answer, lambda named: tuple(box for _, box in named))


def read_instances(answer: str) -> Reading:
    """Read boxes with their classes, ``{"1": [[x1, y1, x2, y2]]}`` or objects with a class beside each box.

    Returns:
        ``{class: boxes}``; a box without a class among others has the class ``""``. Boxes that all lack a class are not
        read.
    """
    reading = _outcome(answer, lambda named: named)
    if reading.value is None:
        return reading
    if reading.value and all(name is None for name, _ in reading.value):
        return Reading(reason=NO_CLASSES)
    found: dict[str, list[Box]] = {}
    for name, box in reading.value:
        found.setdefault(name or "", []).append(box)
    return Reading(found)


def _outcome(answer: str, shape: Any) -> Reading:
    text = cleaned(answer)
    if not text:
        return Reading(reason=EMPTY)
    named = _named_boxes(text)
    if named:
        return Reading(shape(named))
    said = normalise(text).strip(" \n.\"'")
    return Reading(shape(())) if re.sub(r"\s", "", said) in NOTHING or said in NOTHING else Reading(reason=NO_BOXES)


def _named_boxes(text: str) -> tuple[Named, ...]:
    found: list[Named] = []
    for value in _values(text):
        before = set(found)
        found += [pair for pair in _leaves(value) if pair not in before]
    if not found:
        found = [
            (None, box) for match in _IN_WORDS.finditer(text) if (box := as_box([float(n) for n in match.groups()]))
        ]
    return tuple(found)


def _values(text: str) -> Iterator[Any]:
    """Yield the JSON values and Python literals in brackets that a text holds, one that is cut off without its end."""
    at, starts = 0, 0
    while at < len(text) and starts < _MOST_STARTS:
        if text[at] not in "[{":
            at += 1
            continue
        starts += 1
        end, closed = _bracketed(text, at)
        value = as_value(closed) if closed else None
        if value is None:
            at += 1
        else:
            yield value
            at = max(end, at + 1)


def _bracketed(text: str, start: int) -> tuple[int, str]:
    """Return the end of a bracket and its text; if it is never closed, its text up to the last whole value, closed.

    Empty text if there is nothing whole in it, or if it is nested too deep.
    """
    stack: list[str] = []
    whole, closers, quote = start, "", ""
    for at in range(start, len(text)):
        mark = text[at]
        if quote:
            quote = "" if mark == quote and text[at - 1] != "\\" else quote
        elif mark == '"' or (mark == "'" and not text[at - 1].isalnum()):
            quote = mark
        elif mark in _PAIRS:
            stack.append(_PAIRS[mark])
            if len(stack) > _DEEPEST:
                return start, ""
        elif mark in _PAIRS.values():
            if not stack or mark != stack[-1]:
                break
            stack.pop()
            whole, closers = at + 1, "".join(reversed(stack))
            if not stack:
                return whole, text[start:whole]
    return whole, text[start:whole] + closers if whole > start else ""


def _leaves(value: Any, name: str | None = None, depth: int = 0) -> Iterator[Named]:
    """Yield the boxes in a decoded value."""
    if depth > _DEEPEST:
        return
    box = as_box(value) or _of_corners(value)
    if box is not None:
        yield name, box
    elif isinstance(value, Mapping):
        keys = {normalise(str(key)).replace(" ", "_"): key for key in value}
        held = [keys[key] for key in _BOX_KEYS if key in keys and isinstance(value[keys[key]], Sequence | Mapping)]
        if held:
            yield from _leaves(value[held[0]], _class_of(value, held[0]) or name, depth + 1)
        else:
            for key, inner in value.items():
                yield from _leaves(inner, name if name is not None else str(key).strip(), depth + 1)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for inner in value:
            yield from _leaves(inner, name, depth + 1)


def _of_corners(value: Any) -> Box | None:
    """Return the box that an object of coordinates or two corner points describe; None for anything else."""
    if isinstance(value, Mapping):
        keys = {normalise(str(key)).replace(" ", "_"): inner for key, inner in value.items()}
        for names in _CORNERS:
            if all(name in keys for name in names):
                return as_box([keys[name] for name in names])
        for names in _SIZES:
            corner = as_box([keys[name] for name in names]) if all(name in keys for name in names) else None
            if corner is not None:
                x, y, width, height = corner
                return as_box([x, y, x + width, y + height])
        return None
    points = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2
    if points and all(isinstance(point, list | tuple) and len(point) == 2 for point in value):
        return as_box([*value[0], *value[1]])
    return None


def _class_of(value: Mapping[Any, Any], box_key: Any) -> str | None:
    """Return the class beside a box: of a key such as ``label``, or of the only other text or number."""
    others = {str(key).lower(): inner for key, inner in value.items() if key != box_key}
    others = {
        key: inner for key, inner in others.items() if isinstance(inner, str | int) and not isinstance(inner, bool)
    }
    for wanted in _CLASS_KEYS:
        if wanted in others:
            return str(others[wanted]).strip()
    return str(next(iter(others.values()))).strip() if len(others) == 1 else None
