"""Means over several data sets: the column "Avg." of a table of models and data sets (InstFree, Tables 1, 2 and 4).

A data set is the folder of a sweep, or of an evaluated run. Models are matched by their titles. The average gives every
data set the same weight, whatever its number of questions.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtune.data.folders import claim
from medtune.data.writing import write_whole
from medtune.errors import DataError
from medtune.evaluation.metrics import drawn_statistic, macro, quantile_ends
from medtune.reporting.comparison import mismatch
from medtune.reporting.displays import displays
from medtune.reporting.report import render_sections
from medtune.reporting.runs import Run, read_run
from medtune.reporting.summary import MISSING, interval, percent, written
from medtune.reporting.views import Cell, Row, Section, Table

ROWS = "rows.json"
SCHEMA = "medtune-averages-1"
STATISTICS = {"accuracy_macro": "mean over attributes", "accuracy_micro": "over questions"}
Seeds = Mapping[int | None, Run]
"""Training seed (None for a model that was not trained) to its run."""
Models = Mapping[str, Mapping[str, Seeds]]
"""Data set to the models that were evaluated on it, by title."""


def read_models(folder: str | Path) -> dict[str, dict[int | None, Run]]:
    """Read the models that were evaluated on one data set.

    Args:
        folder: Folder of a sweep, or of a page of it, with ``rows.json``; or of one evaluated run.

    Raises:
        DataError: It is neither, or a run cannot be read.
    """
    folder = Path(folder)
    models: dict[str, dict[int | None, Run]] = {}
    if not (folder / ROWS).is_file():
        run = read_run(folder)
        return {run.name: {None: run}}
    try:
        rows = json.loads((folder / ROWS).read_text(encoding="utf-8"))
        for row in rows:
            models.setdefault(str(row["title"]), {})[row["seed"]] = read_run(folder / row["folder"], row["title"])
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{folder / ROWS}: not written by a sweep; run the sweep again.") from None
    return models


def write_averages(
    folders: Mapping[str, Path], out: Path, *, title: str = "medtune report", resamples: int = 1000, seed: int = 0
) -> Path:
    """Write a page with every model's accuracy on each data set and its average, and the same as ``averages.json``.

    Args:
        folders: Name of each data set to its folder (:func:`read_models`).
        out: The HTML file to write.
        title: Heading of the page.
        resamples: Bootstrap resamples.
        seed: Seed of the bootstrap.

    Raises:
        DataError: A folder cannot be read, or the runs of a data set answered different questions.
    """
    found = average({name: read_models(folder) for name, folder in folders.items()}, resamples=resamples, seed=seed)
    page = render_sections(average_sections(found), title=title, note=f"Data sets: {', '.join(folders)}.")
    out = Path(out)
    claim(out.parent, "report", [out.name, "averages.json"], lambda folder: _is_page(folder / "averages.json"))
    write_whole(out.with_name("averages.json"), json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    write_whole(out, page)
    return out


def average(models: Models, *, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Average the accuracy of every model over the data sets.

    ``value`` is the mean over data sets of the mean over seeds. ``deviation`` is the standard deviation over seeds of
    the average of one seed's models; it is null for one seed, and if the data sets have different seeds. ``interval``
    is by a bootstrap over images within each data set, each image with the answers of every seed: it is about the
    choice of images, not of seeds. ``difference`` is that of the average from the first model's, with the same
    resamples, so that it is paired by image.

    Args:
        models: Data set to its models.
        resamples: Bootstrap resamples.
        seed: Seed of the bootstrap.

    Returns:
        ``{schema, sets, base, protocols: {protocol: {title, statistics: {name: {model: {sets, average}}}}}}``. The
        average of a model without answers on one of the data sets is null.

    Raises:
        DataError: There are fewer than two data sets, no protocol with right and wrong answers was asked of all, or the
            runs of one data set answered different questions.
    """
    if len(models) < 2:
        raise DataError("an average over data sets needs at least two of them; give --data-set NAME=FOLDER for each.")
    runs = [run for of_set in models.values() for seeds in of_set.values() for run in seeds.values()]
    titles = list(dict.fromkeys(title for of_set in models.values() for title in of_set))
    protocols: dict[str, Any] = {}
    for task, shown in displays(run.results for run in runs).items():
        if shown.paired != "correct" or not shown.headline:
            continue
        tables = {name: _tables(name, of_set, task) for name, of_set in models.items()}
        if not all(tables.values()):
            continue
        found = {statistic: _of_statistic(tables, titles, statistic, resamples, seed) for statistic in STATISTICS}
        protocols[task] = {"title": shown.title, "statistics": found}
    if not protocols:
        raise DataError("no protocol with right and wrong answers was asked of every data set; evaluate them alike.")
    return {"schema": SCHEMA, "sets": list(models), "base": titles[0], "protocols": protocols}


def average_sections(found: Mapping[str, Any]) -> list[Section]:
    """Return a section for each protocol and statistic, with a row for each model and a column for each data set."""
    sections = []
    for protocol in found["protocols"].values():
        for statistic, models in protocol["statistics"].items():
            rows = [
                Row(title, [*(_set_cell(numbers["sets"].get(name)) for name in found["sets"]), _average_cell(numbers)])
                for title, numbers in models.items()
            ]
            help = (
                f"Accuracy in percent, {STATISTICS[statistic]}; mean and standard deviation over training seeds. Avg. "
                "is the mean over data sets, each with the same weight; its interval is by a bootstrap over the images "
                f"of each data set, with the answers of all seeds. Δ is relative to {found['base']}, paired by image."
            )
            table = Table("Data sets", [*found["sets"], "Avg."], rows)
            sections.append(Section(f"{protocol['title']}, {STATISTICS[statistic]}", help, table))
    return sections


class _Answers:
    """One model's answers to one protocol's questions about one data set.

    Attributes:
        by_seed: Training seed to whether each answer is right, ``[n]``.
        attributes: Attribute of each question.
        images: Image of each question.
    """

    def __init__(self, rows: Mapping[int | None, Mapping[str, dict[str, str]]]) -> None:
        ids = sorted(next(iter(rows.values())))
        first = next(iter(rows.values()))
        self.by_seed = {seed: np.array([float(of[id]["correct"]) for id in ids]) for seed, of in rows.items()}
        self.attributes = [first[id]["attribute"] for id in ids]
        self.images = [first[id]["images"] for id in ids]

    def cells(self, statistic: str) -> list[str]:
        """Return the group of each answer that the statistic averages over."""
        return self.attributes if statistic == "accuracy_macro" else [""] * len(self.attributes)

    @property
    def mean(self) -> NDArray[np.float64]:
        """Return the share of seeds that are right about each question, ``[n]``."""
        return np.asarray(np.mean(list(self.by_seed.values()), axis=0))


def _tables(name: str, of_set: Mapping[str, Seeds], task: str) -> dict[str, _Answers]:
    """Return the answers of each model that was asked, after checking that all had the same questions."""
    found: dict[str, _Answers] = {}
    reference: dict[str, dict[str, str]] | None = None
    for title, seeds in of_set.items():
        rows = {
            seed: {id: row for id, row in run.verdicts.items() if row["task"] == task and row["swapped"] == "0"}
            for seed, run in seeds.items()
        }
        rows = {seed: of_seed for seed, of_seed in rows.items() if of_seed}
        for of_seed in rows.values():
            reference = reference or of_seed
            why = mismatch(reference, of_seed)
            if why:
                raise DataError(f"{name}, {title}, {task}: {why}; the runs of a data set need the same questions.")
        if rows:
            found[title] = _Answers(rows)
    return found


def _of_statistic(
    tables: Mapping[str, Mapping[str, _Answers]], titles: Sequence[str], statistic: str, resamples: int, seed: int
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    base: tuple[float, NDArray[np.float64]] | None = None
    for title in titles:
        of_model = {name: answers[title] for name, answers in tables.items() if title in answers}
        entry: dict[str, Any] = {"sets": {name: _spread(of, statistic) for name, of in of_model.items()}}
        entry["average"] = None
        if len(of_model) == len(tables):
            drawn = np.mean(
                [
                    drawn_statistic(of.mean, of.cells(statistic), of.images, macro, resamples, seed + place)
                    for place, of in enumerate(of_model.values())
                ],
                axis=0,
            )
            entry["average"] = number = _average(of_model, statistic, drawn)
            if title == titles[0]:
                base = number["value"], drawn
            elif base is not None:
                definition = f"average minus that of {titles[0]}, paired by image; interval as that of the average"
                gain = _number(number["value"] - base[0], drawn - base[1], number["n"], definition)
                number["difference"] = {**gain, "unit": "difference of fractions"}
        found[title] = entry
    return found


def _average(of_model: Mapping[str, _Answers], statistic: str, drawn: NDArray[np.float64]) -> dict[str, Any]:
    values = {name: _spread(of, statistic)["mean"] for name, of in of_model.items()}
    seeds = [tuple(sorted(of.by_seed, key=str)) for of in of_model.values()]
    by_seed: dict[str, float] = {}
    if len(set(seeds)) == 1 and len(seeds[0]) > 1:
        for one in seeds[0]:
            of_seed = [_value(of.by_seed[one], of.cells(statistic)) for of in of_model.values()]
            by_seed[str(one)] = statistics.fmean(of_seed)
    definition = (
        f"mean over the {len(of_model)} data sets of the accuracy, {STATISTICS[statistic]}, averaged over seeds; "
        "interval by a bootstrap over the images of each data set"
    )
    number = _number(
        statistics.fmean(values.values()), drawn, sum(len(of.images) for of in of_model.values()), definition
    )
    deviation = statistics.stdev(by_seed.values()) if by_seed else None
    return {**number, "deviation": deviation, "by_seed": by_seed, "seeds": min(map(len, seeds))}


def _number(value: float, drawn: NDArray[np.float64], n: int, definition: str) -> dict[str, Any]:
    ends = None if np.isnan(drawn).any() else quantile_ends(drawn)
    return {
        "value": value,
        "unit": "fraction",
        "higher_is_better": True,
        "n": n,
        "interval": None if ends is None else list(ends),
        "definition": definition,
    }


def _spread(of: _Answers, statistic: str) -> dict[str, Any]:
    values = [_value(right, of.cells(statistic)) for right in of.by_seed.values()]
    deviation = statistics.stdev(values) if len(values) > 1 else None
    mean = statistics.fmean(values)
    return {"mean": mean, "deviation": deviation, "seeds": len(values), "values": values, "n": len(of.images)}


def _value(right: NDArray[np.float64], cells: Sequence[str]) -> float:
    names = np.asarray(cells)
    return float(np.mean([right[names == name].mean() for name in np.unique(names)]))


def _set_cell(spread: Mapping[str, Any] | None) -> Cell:
    if spread is None:
        return Cell(MISSING)
    span = "" if spread["deviation"] is None else f"± {written(spread['deviation'], 'fraction')}"
    values = ", ".join(written(value, "fraction") for value in spread["values"])
    return Cell(written(spread["mean"], "fraction"), span, f"n={spread['n']}, {_seeds(spread['seeds'])}", title=values)


def _average_cell(numbers: Mapping[str, Any]) -> Cell:
    number = numbers["average"]
    if number is None:
        return Cell(MISSING, title="not evaluated on every data set")
    deviation = "" if number["deviation"] is None else f"± {written(number['deviation'], 'fraction')}, "
    change = number.get("difference")
    note = "" if change is None else f"Δ {percent(change, sign=True)} ({interval(change, sign=True)})"
    kind = "change" if note else ""
    return Cell(
        percent(number), interval(number), deviation + _seeds(number["seeds"]), note, kind, title=number["definition"]
    )


def _seeds(count: int) -> str:
    return f"{count} seed{'' if count == 1 else 's'}"


def _is_page(path: Path) -> bool:
    """Return whether a folder without a record holds an earlier page of averages."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("schema") == SCHEMA
