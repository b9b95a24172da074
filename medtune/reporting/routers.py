"""A page on evaluated task routers: accuracy, confusion, calibration, label orders, and texts that should fall back."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from medtune.reporting.plots import GREY, STYLE, colour, svg_text
from medtune.reporting.report import render_sections
from medtune.reporting.summary import MISSING
from medtune.reporting.views import Cell, Row, Section, Table

_NO_NUMBER = Cell(MISSING)


def router_page(results: Mapping[str, Mapping[str, Any]], title: str, note: str = "") -> str:
    """Write the HTML page.

    Args:
        results: the router's name -> what :func:`medtune.routing.evaluation.evaluate_router` returned.
        title: heading of the page.
        note: a sentence below it.
    """
    sections = [_overview(results), _by_task(results), _reliability(results), _thresholds(results)]
    sections += [
        section for name, found in results.items() for section in (_groups(name, found), _confusion(name, found))
    ]
    return render_sections(sections, title=title, note=note)


def number_cell(number: Mapping[str, Any] | None, percent: bool = True) -> Cell:
    """A number with its interval and n."""
    if number is None or number["value"] is None:
        return _NO_NUMBER
    scale, digits = (100.0, 1) if percent else (1.0, 3)
    low, high = number["interval"] or (None, None)
    span = "" if low is None else f"{scale * low:.{digits}f} to {scale * high:.{digits}f}"
    return Cell(
        f"{scale * number['value']:.{digits}f}",
        span,
        f"n = {number['n']}",
        title=number["definition"],
        caution=number.get("caution", ""),
    )


def _rows(results: Mapping[str, Mapping[str, Any]], cells: Any) -> list[Row]:
    return [Row(name, cells(found), colour(place)) for place, (name, found) in enumerate(results.items())]


def _overview(results: Mapping[str, Mapping[str, Any]]) -> Section:
    def cells(found: Mapping[str, Any]) -> list[Cell]:
        orders = found["orders"]
        return [
            number_cell(found["accuracy"]),
            number_cell(found["calibration"]["ece"], percent=False),
            number_cell(orders["flips"]) if orders else Cell("no labels in its input"),
            Cell(f"{orders['largest_change']:.2g}", n=f"{orders['orders']} orders") if orders else _NO_NUMBER,
        ]

    columns = ["Accuracy, %", "Calibration error", "Questions that flip, %", "Largest change of a score"]
    help = (
        "Each distinct wording counts once. A question flips if its most probable label differs in any order in which "
        "the router is told the labels."
    )
    return Section("Routers", help, Table("Routers", columns, _rows(results, cells)), first="Router")


def _by_task(results: Mapping[str, Mapping[str, Any]]) -> Section:
    tasks = list(dict.fromkeys(task for found in results.values() for task in found["by_task"]))
    rows = _rows(results, lambda found: [number_cell(found["by_task"].get(task)) for task in tasks])
    help = "Share of each task's questions whose most probable label is right, in %."
    return Section("Accuracy of each task", help, Table("Tasks", tasks, rows), first="Router")


def _reliability(results: Mapping[str, Mapping[str, Any]]) -> Section:
    picture = reliability_chart({name: found["calibration"]["bins"] for name, found in results.items()})
    help = (
        "Share of right labels against the score, in ten bins; the whiskers are 95% intervals and the number is n. A "
        "router whose scores can be trusted lies on the diagonal."
    )
    return Section("Reliability", help, None, picture, "Share of right labels against the score of each router")


def _thresholds(results: Mapping[str, Mapping[str, Any]]) -> Section:
    columns = ["Right adapter, %", "Wrong adapter, %", "Known tasks that fall back, %", "No task falls back, %",
               "Unseen tasks fall back, %"]  # fmt: skip
    keys = ("right_adapter", "wrong_adapter", "known_fall_back", "no_task_falls_back", "unseen_falls_back")
    rows = [
        Row(f"{name}, {at['threshold']:g}", [number_cell(at[key]) for key in keys], colour(place))
        for place, (name, found) in enumerate(results.items())
        for at in found["thresholds"]
    ]
    help = "A text whose best score is below the threshold goes to the fallback, the adapter of all tasks."
    picture = threshold_chart({name: found["thresholds"] for name, found in results.items()})
    alt = "Share of texts that fall back against the threshold"
    return Section("Thresholds", help, Table("Thresholds", columns, rows), picture, alt, first="Router, threshold")


def _groups(name: str, found: Mapping[str, Any]) -> Section:
    groups = list(found["thresholds"][0]["by_group"]) if found["thresholds"] else []
    rows = [
        Row(group, [number_cell(at["by_group"][group]) for at in found["thresholds"]])
        for group in groups
    ]  # fmt: skip
    columns = [f"{at['threshold']:g}" for at in found["thresholds"]]
    help = "Share of texts that fall back at each threshold, in %."
    return Section(f"{name}: what should fall back", help, Table("Texts", columns, rows), first="Texts")


def _confusion(name: str, found: Mapping[str, Any]) -> Section:
    table = found["confusion"]
    rows = [
        Row(gold, [Cell(str(count)) for count in counts])
        for gold, counts in zip(table["gold"], table["counts"], strict=True)
    ]
    help = "Number of questions by their task (rows) and the router's most probable label (columns)."
    return Section(f"{name}: confusion", help, Table("Confusion", list(table["answered"]), rows), first="Task")


def reliability_chart(bins: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Draw the share of right labels against the mean score of each bin, with n.

    Args:
        bins: router -> its bins, as :func:`medtune.routing.evaluation.calibration` returns them.

    Returns:
        SVG text.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.0 * max(1, len(bins)) + 0.5, 3.2))
        panels: Any = figure.subplots(1, max(1, len(bins)), sharey=True, squeeze=False)[0]
        for place, (panel, (name, rows)) in enumerate(zip(panels, bins.items(), strict=False)):
            panel.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
            for row in (row for row in rows if row["n"]):
                low, high = row["accuracy"]["interval"]
                panel.plot([row["score"]] * 2, [low, high], color=colour(place), linewidth=1.4)
                panel.plot([row["score"]], [row["accuracy"]["value"]], marker="o", markersize=5, color=colour(place))
                panel.annotate(str(row["n"]), (row["score"], low), xytext=(0, -9), textcoords="offset points",
                               ha="center", fontsize=7)  # fmt: skip
            panel.set(xlim=(-0.02, 1.04), ylim=(-0.12, 1.05))
            panel.set_title(name, fontsize=9.5)
            panel.spines[["top", "right"]].set_visible(False)
        panels[0].set_ylabel("share of right labels", fontsize=9)
        figure.supxlabel("score of the most probable label", fontsize=9)
        figure.tight_layout()
        return svg_text(figure)


def threshold_chart(thresholds: Mapping[str, Sequence[Mapping[str, Any]]]) -> str | None:
    """Draw what falls back against the threshold, one panel for each router; None for fewer than two thresholds.

    Args:
        thresholds: router -> its numbers at each threshold.
    """
    if min((len(rows) for rows in thresholds.values()), default=0) < 2:
        return None
    lines = (("known_fall_back", "known tasks", "-"), ("no_task_falls_back", "no task", "--"),
             ("unseen_falls_back", "unseen tasks", ":"))  # fmt: skip
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.0 * len(thresholds) + 0.5, 3.0))
        panels: Any = figure.subplots(1, len(thresholds), sharey=True, squeeze=False)[0]
        for place, (panel, (name, rows)) in enumerate(zip(panels, thresholds.items(), strict=True)):
            for key, label, dashes in lines:
                points = [(row["threshold"], row[key]) for row in rows if row[key]["value"] is not None]
                if points:
                    heights = [100 * number["value"] for _, number in points]
                    panel.plot([at for at, _ in points], heights, linestyle=dashes, color=colour(place), label=label)
            panel.set_ylim(-3, 103)
            panel.set_title(name, fontsize=9.5)
            panel.spines[["top", "right"]].set_visible(False)
            panel.legend(frameon=False, fontsize=7.5)
        panels[0].set_ylabel("falls back, %", fontsize=9)
        figure.supxlabel("threshold", fontsize=9)
        figure.tight_layout()
        return svg_text(figure)
