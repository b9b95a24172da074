"""How far annotators agree: Cohen's kappa of two of them, Fleiss' kappa of all."""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import cohen_kappa_score

from medtune.judges.annotations import PREFERENCES


def fleiss_kappa(counts: Sequence[Sequence[int]]) -> float:
    r"""Return Fleiss' kappa (J. L. Fleiss, Measuring nominal scale agreement among many raters, 1971).

    With n_ij annotators who put question i into category j and n_i = sum_j n_ij of them:
    P_i = (sum_j n_ij^2 - n_i) / (n_i (n_i - 1)), P = mean_i P_i, p_j = sum_i n_ij / sum_i n_i, P_e = sum_j p_j^2,
    kappa = (P - P_e) / (1 - P_e). Fleiss has the same n_i for every question; here they may differ.

    Args:
        counts: One row for each question, one column for each category.

    Returns:
        NaN if no question has two annotators, or if all choices are of one category.
    """
    table = np.asarray([row for row in counts if sum(row) >= 2], dtype=float)
    if not len(table):
        return math.nan
    n = table.sum(axis=1)
    observed = float(np.mean(((table**2).sum(axis=1) - n) / (n * (n - 1))))
    expected = float(((table.sum(axis=0) / n.sum()) ** 2).sum())
    return math.nan if expected >= 1 else (observed - expected) / (1 - expected)


def cohen_kappa(one: Sequence[str], other: Sequence[str]) -> float:
    """Return Cohen's kappa of two annotators on the same questions; NaN if both always chose the same one thing."""
    if not one or set(one) | set(other) == {one[0]}:
        return math.nan
    return float(cohen_kappa_score(one, other, labels=list(PREFERENCES)))


def agreement(choices: Iterable[tuple[str, str, str]]) -> dict[str, Any]:
    """Compare annotators on the questions that several of them have.

    Args:
        choices: Item, annotator, preference.

    Returns:
        ``pairs`` has questions, share of equal choices and Cohen's kappa of each two annotators; ``questions``,
        ``observed`` (the mean share of equal pairs of choices of a question) and ``fleiss`` are of all. None is
        undefined.
    """
    items: dict[str, dict[str, str]] = defaultdict(dict)
    for item, annotator, preference in choices:
        items[item][annotator] = preference
    several = {item: chosen for item, chosen in items.items() if len(chosen) > 1}
    both: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    shares = []
    for chosen in several.values():
        names = list(itertools.combinations(sorted(chosen), 2))
        for one, other in names:
            both[one, other].append((chosen[one], chosen[other]))
        shares.append(sum(chosen[one] == chosen[other] for one, other in names) / len(names))
    return {
        "questions": len(several),
        "observed": float(np.mean(shares)) if shares else None,
        "fleiss": _number(fleiss_kappa([_row(chosen) for chosen in several.values()])),
        "pairs": [
            {
                "annotators": list(names),
                "questions": len(pairs),
                "observed": sum(one == other for one, other in pairs) / len(pairs),
                "cohen": _number(cohen_kappa(*(list(side) for side in zip(*pairs, strict=True)))),
            }
            for names, pairs in sorted(both.items())
        ],
    }


def _row(chosen: Mapping[str, str]) -> list[int]:
    counts = Counter(chosen.values())
    return [counts[preference] for preference in PREFERENCES]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def agreement_text(found: Mapping[str, Any]) -> str:
    """Return the agreement as lines for a terminal."""

    def shown(value: float | None) -> str:
        return "undefined" if value is None else f"{value:.3f}"

    lines = [
        f"{found['questions']} questions have choices of several annotators; equal choices {shown(found['observed'])}, "
        f"Fleiss' kappa {shown(found['fleiss'])}"
    ]
    for pair in found["pairs"]:
        lines.append(
            f"  {' and '.join(pair['annotators'])}: {pair['questions']} questions, equal {shown(pair['observed'])}, "
            f"Cohen's kappa {shown(pair['cohen'])}"
        )
    return "\n".join(lines)
