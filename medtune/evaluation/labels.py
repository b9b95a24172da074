"""Reads class labels from an answer: an exact match, except for case and punctuation."""

import functools
import re
import unicodedata

from medtune.data.labels import NO_FINDING

OUT_OF_VOCABULARY = "?"
"""Replaces a part of an answer that names no class if other parts do; the text itself is not saved."""

_SPECIAL = re.compile(r"<\|[^|<>]*\|>|</?s>")


def fold_label(text: str) -> str:
    """Normalise a label or an answer for comparison: Unicode NFKC, lower case, no special tokens, only words."""
    return " ".join(re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", _SPECIAL.sub(" ", text)).casefold()))


def read_labels(text: str, classes: tuple[str, ...], several: bool) -> tuple[tuple[int, ...], bool]:
    """Find the classes that an answer names.

    The answer, or each part of a multi-label answer, must be the text of a class and nothing else. A multi-label answer
    is split at semicolons and line ends, and also at commas unless a class name of the set contains a comma. ``no
    finding`` means no class; together with a class it is a contradiction and counts as a part that names no class.

    Args:
        text: The model's answer.
        classes: All classes of the set.
        several: Whether an answer may name more than one class, or none (multi-label).

    Returns:
        Sorted indices of the named classes, each once; and whether the answer holds anything else.
    """
    known = _table(classes)
    if not several:
        index = known.get(_SPECIAL.sub("", text).strip(), known.get(fold_label(text)))
        return ((), True) if index is None else ((index,), False)
    commas = any("," in name for name in classes)
    parts = [part for part in re.split(r"[;\n]+" if commas else r"[;,\n]+", _SPECIAL.sub(" ", text)) if part.strip()]
    none = fold_label(NO_FINDING)
    named = [known.get(part.strip(), known.get(fold_label(part))) for part in parts]
    nothing = [fold_label(part) == none for part in parts]
    indices = tuple(sorted({index for index in named if index is not None}))
    stray = not parts or any(index is None and not empty for index, empty in zip(named, nothing, strict=True))
    return indices, stray or (any(nothing) and bool(indices))


@functools.lru_cache(maxsize=256)
def _table(classes: tuple[str, ...]) -> dict[str, int]:
    """Map text to class index: text as written, and normalised text if unambiguous ("HER2+" and "HER2-" are not)."""
    folded: dict[str, list[int]] = {}
    for index, name in enumerate(classes):
        folded.setdefault(fold_label(name), []).append(index)
    table = {text: indices[0] for text, indices in folded.items() if len(indices) == 1 and text}
    return table | {name: index for index, name in enumerate(classes)}
