"""Balanced sampling: reports with rare words are shown more often."""

import re
from array import array
from collections.abc import Iterable

import numpy as np

_WORD = re.compile(r"[^\W\d_](?:[^\W_]|[-'](?=[^\W_]))*")


def balanced_weights(reports: Iterable[str]) -> np.ndarray:
    """Weigh each report by the rarity of its words (the baseline "Bal" of InstFree, Kang et al. 2026, section 5.3.1).

    The paper counts each word and shows samples with rare words more often. It does not say how much more often. Here a
    word's frequency is the number of times it occurs in all reports. A report's weight is the mean of 1 / frequency
    over its distinct words. The mean keeps long reports from being favoured for their length.

    Words are compared in lower case. A word begins with a letter, so that measurements (each of them is rare) do not
    count. A hyphen or an apostrophe inside a word belongs to it.

    Args:
        reports: the texts; read once. Four bytes are kept per distinct word of each report.

    Returns:
        One weight per report, with mean 1. A report without words gets the smallest weight of the reports with words.
    """
    numbers: dict[str, int] = {}
    counts, words, lengths = array("q"), array("i"), array("q")
    for report in reports:
        occurrences = [numbers.setdefault(word, len(numbers)) for word in _WORD.findall(report.lower())]
        counts.extend([0] * (len(numbers) - len(counts)))
        for number in occurrences:
            counts[number] += 1
        different = set(occurrences)
        words.extend(sorted(different))
        lengths.append(len(different))
    size = np.asarray(lengths, dtype=np.int64)
    if not size.any():
        return np.ones(len(size))
    rarity = 1.0 / np.asarray(counts, dtype=np.float64)[np.asarray(words, dtype=np.int64)]
    owners = np.repeat(np.arange(len(size)), size)
    weights = np.bincount(owners, weights=rarity, minlength=len(size)) / np.maximum(size, 1)
    weights[size == 0] = weights[size > 0].min()
    result: np.ndarray = weights / weights.mean()
    return result
