"""Names of labels as they stand in data: spellings that differ by case only, and names for "no finding"."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from medtune.data.labels import NO_FINDING
from medtune.datasets.labelled_images import Classes, LabelledImage


def fold(label: str) -> str:
    """Return a label without differences of case, of white space, and of Unicode forms of one letter."""
    return " ".join(unicodedata.normalize("NFKC", label).casefold().split())


def spellings(rows: Iterable[LabelledImage]) -> Iterator[list[str]]:
    """Yield the labels that differ by :func:`fold` only, the most frequent first, as lists of two or more."""
    counts = Counter(label for row in rows for label in row.labels)
    same: dict[str, list[str]] = {}
    for label, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        same.setdefault(fold(label), []).append(label)
    yield from (names for names in same.values() if len(names) > 1)


def spelling_note(rows: Sequence[LabelledImage]) -> list[str]:
    """Return a note that names the labels that differ by case only; none if there are none."""
    pairs = [" and ".join(map(repr, names)) for names in spellings(rows)]
    if not pairs:
        return []
    return [
        f"labels that differ by case or spaces only are different classes: {'; '.join(pairs)} (fold_case: true joins)"
    ]


def folded(rows: Sequence[LabelledImage], classes: Classes | None) -> list[LabelledImage]:
    """Give labels that differ by case one spelling: that of ``classes`` in the data, else the most frequent one."""
    one = {fold(name): names[0] for names in spellings(rows) for name in names[:1]}
    given = list(classes) if classes is not None else []
    one |= {fold(str(name)): str(name) for name in given}
    return [
        replace(row, labels=tuple(dict.fromkeys(one.get(fold(label), label) for label in row.labels))) for row in rows
    ]


def no_finding_names(names: Iterable[str]) -> set[str]:
    """Return the folded names that mean "no finding": these two words, and ``names``."""
    return {fold(NO_FINDING), *map(fold, names)}


def without_no_finding(rows: Sequence[LabelledImage], names: Iterable[str] = ()) -> tuple[list[LabelledImage], int]:
    """Remove the labels of a multi-label set that mean "no finding", whatever their case.

    Args:
        rows: the images.
        names: names that mean it, in addition to "no finding".

    Returns:
        The rows, and the number of those that have such a label beside a finding, which then counts alone.
    """
    none = no_finding_names(names)
    result, both = [], 0
    for row in rows:
        labels = tuple(label for label in row.labels if fold(label) not in none)
        both += 0 < len(labels) < len(row.labels)
        result.append(replace(row, labels=labels))
    return result, both
