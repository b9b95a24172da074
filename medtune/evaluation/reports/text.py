"""Word overlap of a generated report with its reference: ROUGE-L and BLEU, as pure functions of words.

ROUGE-L: Lin 2004, Sec. 3.2, the F1 of the longest common subsequence (beta = 1, as the package ``rouge-score``).
BLEU: Papineni et al. 2002, Eq. 1-3, of a whole set of reports, without smoothing (as ``sacrebleu`` with
``smooth_method="none"``, on the words of :func:`words`).
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ORDERS = 4
"""The longest n-gram of BLEU."""
_WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """Return the words of a text in lower case: runs of letters and digits. Punctuation counts for nothing."""
    return _WORD.findall(text.lower())


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, by bits (Hyyro 2004): one step for each word of ``second``.

    A zero bit of ``row`` marks a word of ``first`` at which the length grows.
    """
    places: dict[str, int] = {}
    for at, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << at
    every = row = (1 << len(first)) - 1
    for word in second:
        shared = row & places.get(word, 0)
        row = ((row + shared) | (row - shared)) & every
    return len(first) - row.bit_count()


def rouge_l(candidate: Sequence[str], reference: Sequence[str]) -> float:
    """Return the F1 of the longest common subsequence: ``P = L / |candidate|``, ``R = L / |reference|``, 0 to 1.

    Args:
        candidate: Words of the generated report.
        reference: Words of the right one.
    """
    length = common_subsequence(candidate, reference)
    return 2 * length / (len(candidate) + len(reference)) if length else 0.0


def overlap(candidate: Sequence[str], reference: Sequence[str]) -> tuple[list[int], list[int]]:
    """Count the n-grams of one report for BLEU.

    Args:
        candidate: Words of the generated report.
        reference: Words of the right one.

    Returns:
        For n = 1 to 4 the candidate's n-grams that the reference has, each at most as often as the reference has it,
        and all n-grams of the candidate.
    """
    matches, totals = [], []
    for order in range(1, ORDERS + 1):
        said, right = (
            Counter(zip(*(text[at:] for at in range(order)), strict=False)) for text in (candidate, reference)
        )
        matches.append((said & right).total())
        totals.append(said.total())
    return matches, totals


def bleu(
    matches: NDArray[np.float64], totals: NDArray[np.float64], lengths: NDArray[np.float64], order: int = ORDERS
) -> NDArray[np.float64]:
    """Return BLEU of sets of reports from sums of their counts, 0 to 1.

    ``BP * exp(mean over n of log(matches_n / totals_n))`` with ``BP = min(1, exp(1 - r / c))``.

    Args:
        matches: ``[..., 4]``, sums over the reports of the first counts of :func:`overlap`.
        totals: ``[..., 4]``, sums of the second.
        lengths: ``[..., 2]``, words of all candidates (c) and of all references (r).
        order: The longest n-gram.

    Returns:
        ``[...]``; 0 if an order has no match.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(matches[..., :order] / totals[..., :order]).mean(-1)
        penalty = np.minimum(0.0, 1.0 - lengths[..., 1] / lengths[..., 0])
    known = (matches[..., :order] > 0).all(-1)
    return np.where(known, np.exp(np.where(known, logs + penalty, 0.0)), 0.0)
