"""How much a judge's choice depends on the place at which an answer is shown."""

from collections.abc import Iterable
from typing import Any

from medtune.evaluation.metrics import proportion
from medtune.judges.base import Judgement

_BOTH = (
    "share of the candidates whose two replies, with the answers in either order, prefer the same place and so "
    "different answers; candidates with a tie in a reply are left out"
)
_ONE = "share of the replies that prefer the answer shown first, where no other order was asked; ties are left out"


def position_bias(judgements: Iterable[Judgement]) -> dict[str, Any] | None:
    """Return the rate of choices that follow the place, with Wilson's 95% interval.

    Returns:
        ``rate`` (a :class:`~medtune.evaluation.result.Metric` as plain values) and the counts ``first`` and ``second``
        (choices of this place), ``consistent`` and ``tied``. None if no answers were shown in an order.
    """
    follows, places = [], {"first": 0, "second": 0, "consistent": 0, "tied": 0}
    double = False
    for judgement in judgements:
        shown = [scores for scores in judgement.shown if scores is not None]
        if not shown or len(shown) < len(judgement.shown):
            continue
        double = double or len(shown) == 2
        if any(first == second for first, second in shown):
            places["tied"] += 1
            continue
        chosen = {first > second for first, second in shown}
        same_place = len(chosen) == 1
        if same_place:
            places["first" if chosen.pop() else "second"] += 1
        else:
            places["consistent"] += 1
        follows.append(same_place)
    if not follows and not places["tied"]:
        return None
    if double:
        rate = proportion(follows, _BOTH, higher_is_better=False)
    else:
        first = [True] * places["first"] + [False] * places["second"]
        rate = proportion(first, _ONE, higher_is_better=None)
    return {"rate": rate.to_dict(), **places}
