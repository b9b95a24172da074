"""The report of a sweep: one page per group of rows with the same questions, and statistics over seeds."""

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medtune.data.writing import write_whole
from medtune.reporting.averages import ROWS
from medtune.reporting.comparison import compare_over_seeds
from medtune.reporting.displays import displays
from medtune.reporting.gallery import image_opener
from medtune.reporting.report import write_report
from medtune.reporting.runs import Run, read_run
from medtune.reporting.seeds import differences_section, seeds_section, sets_section
from medtune.reporting.summary import is_share
from medtune.sweep.config import ReportRow, SweepConfig, SweepRun, data_of, row_title, rows_of


def write_pages(config: SweepConfig, every: Sequence[SweepRun]) -> Path:
    """Write ``report.html`` and, for evaluation settings with a page, ``pages/<page>/report.html``.

    ``seeds.json``, ``seed_differences.json`` and ``rows.json`` (the runs of the page's rows) are written to the folder
    of each page.

    Args:
        config: The sweep.
        every: Its runs, all of them evaluated.

    Returns:
        The sweep's main page, or the first page if no row is on the main page.
    """
    rows = [row for chain in every for row in rows_of(config, chain)]
    root = Path(config.output_dir)
    written = {}
    for page in dict.fromkeys(row.ask.page for row in rows):
        on_page = [row for row in rows if row.ask.page == page]
        out = root / "pages" / page / "report.html" if page else root / "report.html"
        written[page] = _write_page(config, on_page, out, page)
    return written.get("", next(iter(written.values())))


def _write_page(config: SweepConfig, rows: Sequence[ReportRow], out: Path, page: str) -> Path:
    first = {row_title(row.chain.variant, row.ask): row for row in reversed(rows)}
    titles = list(dict.fromkeys(row_title(row.chain.variant, row.ask) for row in rows))
    table = seeds_table(rows)
    shown = displays(_results(row) for row in rows)
    places = {title: row.chain.variant.x for title, row in first.items() if row.chain.variant.x is not None}
    _, images = data_of(config, rows[0].chain.variant, rows[0].ask)
    differences = seed_differences(rows)
    sections = [
        seeds_section(table, config.axis, places, shown),
        sets_section(table, shown),
        differences_section(differences, titles[0], shown),
    ]
    write_report(
        [first[title].folder for title in titles],
        out,
        title=f"{config.title}: {page}" if page else config.title,
        note=config.note,
        samples=config.samples,
        open_image=image_opener(images) if config.samples > 0 else None,
        extra=[section for section in sections if section is not None],
    )
    entries = [
        {
            "title": row_title(row.chain.variant, row.ask),
            "seed": None if row.chain.one_seed else row.chain.seed,
            "folder": os.path.relpath(row.folder, out.parent),
        }
        for row in rows
    ]
    write_whole(out.with_name(ROWS), json.dumps(entries, indent=1) + "\n")
    write_whole(out.with_name("seeds.json"), json.dumps(table, indent=1) + "\n")
    write_whole(out.with_name("seed_differences.json"), json.dumps(differences, indent=1) + "\n")
    return out


def over_seeds(config: SweepConfig, every: Sequence[SweepRun]) -> dict[str, Any]:
    """Return mean and standard deviation over seeds of the numbers of every row of a sweep, on all pages.

    Returns:
        As for :func:`seeds_table`.
    """
    return seeds_table([row for chain in every for row in rows_of(config, chain)])


def seed_differences(rows: Sequence[ReportRow], base: str = "", resamples: int = 1000) -> dict[str, dict[str, Any]]:
    """Return paired differences of every row from the base row, over the seeds that both have.

    Args:
        rows: Rows with their seeds. A model that the sweep did not train is paired with every seed.
        base: Title, without the seed, of the row to compare with; empty takes the first.
        resamples: Bootstrap resamples.

    Returns:
        Row title without the seed -> result of :func:`medtune.reporting.comparison.compare_over_seeds`; empty if no
        model was trained with more than one seed.
    """
    seeds = sorted({row.chain.seed for row in rows if not row.chain.one_seed})
    if len(seeds) < 2:
        return {}
    runs: dict[str, dict[int, Run]] = {}
    for row in rows:
        title = row_title(row.chain.variant, row.ask)
        run = read_run(row.folder, title)
        run_seeds = seeds if row.chain.one_seed else [row.chain.seed]
        runs.setdefault(title, {}).update(dict.fromkeys(run_seeds, run))
    first = runs.pop(base or next(iter(runs)))
    return {title: compare_over_seeds(first, other, resamples=resamples) for title, other in runs.items()}


def seeds_table(rows: Sequence[ReportRow]) -> dict[str, Any]:
    """Return mean and standard deviation over seeds of each row's main numbers per protocol, and of retention.

    Returns:
        Row title without the seed -> number name -> ``{mean, deviation, seeds, values}``, with ``unit`` if the number
        is not a share. The deviation of a single seed is null. The name of a number is ``protocol/statistic``, or
        ``protocol/set/statistic`` for a single set.
    """
    table: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        numbers = table.setdefault(row_title(row.chain.variant, row.ask), {})
        for name, number in _headline(_results(row)).items():
            numbers.setdefault(name, []).append(number)
    return {title: {name: _spread(values) for name, values in numbers.items()} for title, numbers in table.items()}


def _results(row: ReportRow) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((row.folder / "results.json").read_text(encoding="utf-8"))
    return results


def _headline(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return name -> number for all numbers that are tracked over seeds and have a value."""
    numbers: dict[str, dict[str, Any]] = {}
    shown = displays([results])
    for protocol, scores in results["protocols"].items():
        overall = scores["overall"]
        numbers |= {f"{protocol}/{name}": overall[name] for name in shown[protocol].kept if name in overall}
    for protocol, scores in results["protocols"].items():
        for name, of_set in scores.get("attributes", {}).items():
            numbers |= {f"{protocol}/{name}/{metric}": of_set[metric] for metric in shown[protocol].followed_of_sets}
    numbers["retention"] = results["retention"].get("composite", {"value": None})
    return {name: number for name, number in numbers.items() if number["value"] is not None}


def _spread(numbers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    values = [number["value"] for number in numbers]
    unit = numbers[0].get("unit", "fraction")
    deviation = statistics.stdev(values) if len(values) > 1 else None
    spread = {"mean": statistics.fmean(values), "deviation": deviation, "seeds": len(values), "values": values}
    return spread if is_share(unit) else {**spread, "unit": unit}
