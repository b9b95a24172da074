"""Plots of judges: how far apart the scores are, what became of the questions, which place won, and win rates."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from medtune.reporting.plots import COLOURS, GREY, STYLE, colour, svg_text

GOOD, BAD = "#17803d", "#b42318"
_BINS = 12


def judge_chart(judged: Mapping[str, tuple[Mapping[str, Any], Sequence[float]]]) -> str:
    """Draw three panels for each judge: differences of scores, what became of the candidates, and places.

    Args:
        judged: Name -> the judge's manifest, and the difference of the two scores of each pair, chosen minus rejected.

    Returns:
        SVG text.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11.2, 2.6 * len(judged) + 0.2))
        rows: Any = figure.subplots(len(judged), 3, squeeze=False)
        for (name, (manifest, differences)), (left, middle, right) in zip(judged.items(), rows, strict=True):
            _differences(left, differences, manifest["counts"]["ties"])
            _outcomes(middle, manifest["counts"], bool(manifest.get("scored")))
            _places(right, manifest["position_bias"], manifest["judge"].get("orders") == "given")
            left.set_ylabel(name if len(judged) > 1 else "pairs", fontsize=9)
            for panel in (left, middle, right):
                panel.spines[["top", "right"]].set_visible(False)
        figure.tight_layout()
        return svg_text(figure)


def win_rate_chart(rates: Mapping[str, Mapping[str, Any]]) -> str:
    """Draw wins, ties and losses as shares of a bar, and above it the win rate with its interval.

    Args:
        rates: Name -> ``win_rate`` of a judge's manifest, with a value.

    Returns:
        SVG text.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.2, 0.62 * len(rates) + 1.1))
        panel: Any = figure.subplots()
        for place, won in enumerate(rates.values()):
            n, left = won["rate"]["n"], 0.0
            parts = (("wins", won["wins"], GOOD), ("ties", won["ties"] + won["identical"], "#c9ced6"))
            for label, count, ink in (*parts, ("losses", won["losses"], BAD)):
                share = 100 * count / n
                panel.barh(
                    place, share, left=left, height=0.42, color=ink, alpha=0.55, label=label if not place else ""
                )
                if share > 4:
                    panel.text(left + share / 2, place, str(count), ha="center", va="center", fontsize=8)
                left += share
            height = place - 0.36
            if won["rate"]["interval"]:
                panel.plot([100 * end for end in won["rate"]["interval"]], [height] * 2, color=colour(0), linewidth=1.6)
            panel.plot([100 * won["rate"]["value"]], [height], marker="o", markersize=5, color=colour(0))
        panel.axvline(50, linestyle="--", color=GREY, linewidth=1.2)
        panel.set_yticks(range(len(rates)), list(rates))
        panel.set_ylim(len(rates) - 0.5, -0.65)
        panel.set_xlim(0, 100)
        panel.set_xlabel("% of the questions; dot: win rate with its 95% interval, dashed: neither model is better")
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.tick_params(axis="y", length=0)
        figure.legend(loc="upper right", ncols=3, frameon=False, fontsize=8, bbox_to_anchor=(1, 1.08))
        figure.tight_layout()
        return svg_text(figure)


def _differences(panel: Any, differences: Sequence[float], ties: int) -> None:
    apart = [difference for difference in differences if difference > 0]
    width = max(apart, default=1.0) / _BINS  # a tie has the bar at 0
    panel.hist(apart, bins=_BINS, range=(width / 2, _BINS * width + width / 2), color=COLOURS[2], alpha=0.7)
    panel.bar(0, ties, width=0.8 * width, color=GREY)
    panel.text(0, ties, f"{ties} tied", ha="center", va="bottom", fontsize=8)
    panel.set_title("difference of the two scores", fontsize=9.5)
    panel.grid(axis="y", color="#e5e5e5", linewidth=0.7)


def _outcomes(panel: Any, counts: Mapping[str, Any], scored: bool) -> None:
    nothing = {f"{name.replace('_', ' ')} (not asked)": n for name, n in counts["dropped"].items()}
    unread = {f"unread: {name.replace('_', ' ')}": n for name, n in counts["unread"].items()}
    apart, equal = ("different scores", "equal scores") if scored else ("pairs", "ties")
    bars = {apart: counts["pairs"], equal: counts["ties"], **unread, **nothing}
    inks = [GOOD, GREY, *["#a15c00"] * len(unread), *["#c9ced6"] * len(nothing)]
    _bars(panel, bars, inks)
    panel.set_title(f"what became of {counts['judged']} candidates", fontsize=9.5)


def _places(panel: Any, bias: Mapping[str, Any] | None, one_order: bool) -> None:
    if bias is None:
        panel.set_visible(False)
        return
    bars = {"first place": bias["first"], "second place": bias["second"], "a tie": bias["tied"]}
    inks = [BAD, BAD, GREY]
    if not one_order:
        bars, inks = {"same answer in both orders": bias["consistent"], **bars}, [GOOD, *inks]
    _bars(panel, bars, inks)
    panel.set_title("what the judge preferred", fontsize=9.5)


def _bars(panel: Any, bars: Mapping[str, int], inks: Sequence[str]) -> None:
    for place, (n, ink) in enumerate(zip(bars.values(), inks, strict=True)):
        panel.barh(place, n, height=0.6, color=ink, alpha=0.7)
        panel.text(n, place, f" {n}", va="center", fontsize=8)
    panel.set_yticks(range(len(bars)), list(bars), fontsize=8)
    panel.set_ylim(len(bars) - 0.4, -0.6)
    panel.margins(x=0.15)
    panel.tick_params(axis="y", length=0)
