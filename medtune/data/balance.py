"""Balanced sampling: how often a report is shown, from how rare its words are."""

import re
from array import array
from collections.abc import Iterable

import numpy as np

_WORD = re.compile(r"[^\W\d_](?:[^\W_]|[-'](?=[^\W_]))*")


def balanced_weights(reports: Iterable[str]) -> np.ndarray:
    """Weigh each report by the rarity of its words (the baseline "Bal" of InstFree, Kang et al. 2026, section 5.3.1).

    The paper counts each word and shows samples with rare words more often; how much more it leaves open. Here a word's
    frequency is the number of times it stands in all reports, and a report's weight is the mean of one over the
    frequency, over its different words. The mean keeps long reports from being favoured for their length.

    Words are compared in lower case. A word begins with a letter, so that measurements, each of them rare, count for
    nothing; a hyphen or an apostrophe inside belongs to it.

    Args:
        reports: the texts; read once, and four bytes per different word of each are kept.

    Returns:
        One weight per report, with mean 1; a report without words weighs as much as the lightest one that has some.
    """
    numbers: dict[str, int] = {}
    counts, words, lengths = array("q"), array("i"), array("q")
    for report in reports:
        found = [numbers.setdefault(word, len(numbers)) for word in _WORD.findall(report.lower())]
        counts.extend([0] * (len(numbers) - len(counts)))
        for number in found:
            counts[number] += 1
        different = set(found)
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
