"""The report of a sweep: one page for each group of rows that were asked the same questions, and numbers over seeds."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medtune.data.writing import write_whole
from medtune.reporting.comparison import compare_over_seeds
from medtune.reporting.displays import displays
from medtune.reporting.gallery import image_opener
from medtune.reporting.report import write_report
from medtune.reporting.runs import Run, read_run
from medtune.reporting.seeds import differences_section, seeds_section, sets_section
from medtune.reporting.summary import is_share
from medtune.sweep.config import ReportRow, SweepConfig, SweepRun, data_of, row_title, rows_of


def write_pages(config: SweepConfig, every: Sequence[SweepRun]) -> Path:
    """Write ``report.html`` and, for asks that name a page, ``pages/<page>/report.html``.

    Beside each stand ``seeds.json`` and ``seed_differences.json``.

    Args:
        config: The sweep.
        every: Its chains, all of them scored.

    Returns:
        The sweep's own page, or the first where no row stands on it.
    """
    rows = [row for chain in every for row in rows_of(config, chain)]
    root = Path(config.output_dir)
    written = {}
    for page in dict.fromkeys(row.ask.page for row in rows):
        held = [row for row in rows if row.ask.page == page]
        out = root / "pages" / page / "report.html" if page else root / "report.html"
        written[page] = _write_page(config, held, out, page)
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
        extra=[one for one in sections if one is not None],
    )
    write_whole(out.with_name("seeds.json"), json.dumps(table, indent=1) + "\n")
    write_whole(out.with_name("seed_differences.json"), json.dumps(differences, indent=1) + "\n")
    return out


def over_seeds(config: SweepConfig, every: Sequence[SweepRun]) -> dict[str, Any]:
    """Mean and standard deviation over seeds of the numbers of every row of a sweep, whatever its page.

    Returns:
        As :func:`seeds_table`.
    """
    return seeds_table([row for chain in every for row in rows_of(config, chain)])


def seed_differences(rows: Sequence[ReportRow], base: str = "", resamples: int = 1000) -> dict[str, dict[str, Any]]:
    """Paired differences of every row from one of them, over the seeds that both have.

    Args:
        rows: Rows with their seeds. A model that was not tuned by the sweep is paired with every seed.
        base: Title, without the seed, of the row to compare with; empty takes the first.
        resamples: Bootstrap draws.

    Returns:
        Row title without the seed -> what :func:`medtune.reporting.comparison.compare_over_seeds` gives; empty where
        nothing was tuned with more than one seed.
    """
    seeds = sorted({row.chain.seed for row in rows if not row.chain.variant.one_seed})
    if len(seeds) < 2:
        return {}
    runs: dict[str, dict[int, Run]] = {}
    for row in rows:
        title = row_title(row.chain.variant, row.ask)
        run = read_run(row.folder, title)
        held = seeds if row.chain.variant.one_seed else [row.chain.seed]
        runs.setdefault(title, {}).update(dict.fromkeys(held, run))
    first = runs.pop(base or next(iter(runs)))
    return {title: compare_over_seeds(first, held, resamples=resamples) for title, held in runs.items()}


def seeds_table(rows: Sequence[ReportRow]) -> dict[str, Any]:
    """Mean and standard deviation over seeds of each row's numbers that its protocols follow, and of retention.

    Returns:
        Row title without the seed -> number name -> ``{mean, deviation, seeds, values}``, with ``unit`` where it is no
        share; the deviation of one seed is null. A number is named ``protocol/statistic``, that of one set
        ``protocol/set/statistic``.
    """
    table: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        numbers = table.setdefault(row_title(row.chain.variant, row.ask), {})
        for name, number in _headline(_results(row)).items():
            numbers.setdefault(name, []).append(number)
    return {title: {name: _spread(held) for name, held in numbers.items()} for title, numbers in table.items()}


def _results(row: ReportRow) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((row.folder / "results.json").read_text(encoding="utf-8"))
    return results


def _headline(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name to number of everything that is followed over seeds and has a value."""
    numbers: dict[str, dict[str, Any]] = {}
    shown = displays([results])
    for protocol, one in results["protocols"].items():
        overall = one["overall"]
        numbers |= {f"{protocol}/{name}": overall[name] for name in shown[protocol].kept if name in overall}
    for protocol, one in results["protocols"].items():
        for name, held in one.get("attributes", {}).items():
            numbers |= {f"{protocol}/{name}/{metric}": held[metric] for metric in shown[protocol].followed_of_sets}
    numbers["retention"] = results["retention"].get("composite", {"value": None})
    return {name: number for name, number in numbers.items() if number["value"] is not None}


def _spread(numbers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    values = [one["value"] for one in numbers]
    unit = numbers[0].get("unit", "fraction")
    deviation = statistics.stdev(values) if len(values) > 1 else None
    found = {"mean": statistics.fmean(values), "deviation": deviation, "seeds": len(values), "values": values}
    return found if is_share(unit) else {**found, "unit": unit}
