"""Writes several evaluated runs as one self-contained HTML page, and the same numbers as JSON and CSV."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from medtune.data.folders import claim
from medtune.data.writing import write_whole
from medtune.errors import DataError
from medtune.evaluation.evaluation import metric_rows, to_csv
from medtune.reporting import plots, views
from medtune.reporting.beside import beside_sections
from medtune.reporting.boxes import overlay_sections
from medtune.reporting.comparison import compare
from medtune.reporting.confusions import confusion_rows, confusion_tables
from medtune.reporting.curves import config_section, training_rows, training_section
from medtune.reporting.displays import displays
from medtune.reporting.gallery import OpenImage, choose_cards, data_uri
from medtune.reporting.groups import group_sections
from medtune.reporting.leakage import known_overlaps, leakage_text
from medtune.reporting.method_curves import method_section
from medtune.reporting.pairs import paired_skips, paired_tables
from medtune.reporting.preferences import is_judging, judged_folders, judging_sections
from medtune.reporting.progress import progress_sections
from medtune.reporting.robustness import robustness_sections
from medtune.reporting.runs import Run, read_runs, step_runs
from medtune.reporting.scatter import scatter_sections
from medtune.reporting.sections import protocol_sections
from medtune.reporting.side_by_side import side_by_side_sections
from medtune.reporting.worst import WORST, worst_cards

SCHEMA = "medtune-report-1"


def write_report(
    runs: Sequence[Path],
    out: Path,
    *,
    title: str = "medtune report",
    note: str = "",
    names: Mapping[str, str] | None = None,
    samples: int = 0,
    open_image: OpenImage | None = None,
    seed: int = 0,
    extra: views.Section | Sequence[views.Section] | None = None,
) -> Path:
    """Write the page, and ``results.json``, ``results.csv`` and ``confusion.csv`` in the same folder.

    If ``samples`` is above 0, the page contains images and texts of patients. The other files never contain them.

    Args:
        runs: Folders that the evaluate recipe wrote; the others are compared with the first. A run that was only
            trained has its curves beside those of the others; if none was evaluated, the page holds the curves alone.
            Folders of the judge recipe may be among them. Steps of a run that lie one folder below it, training runs
            and judgings, are on the page too.
        out: The HTML file to write; its folder is created.
        title: Heading of the page.
        note: A sentence below the heading, e.g. which data was used.
        names: Folder name to the name to show; the default is the name in the run's results.
        samples: Number of sample questions to show, with every run's answers. Above 0 the worst cases are shown too.
        open_image: Opens an image by its path in the question file.
        seed: Seed of the choice of samples and of the bootstrap of differences.
        extra: One or several further sections, placed below the headline.

    Returns:
        The HTML file.

    Raises:
        DataError: A run has no readable results, two runs have the same name, or the page would be in a run's folder.
        ConfigError: The page's folder holds files with these names that are not from a report.
    """
    out = Path(out)
    for run in runs:
        if Path(run).resolve() == out.resolve().parent:  # the report's results.json would replace the run's own
            raise DataError(f"{out}: the report must not lie in the run's own folder; choose another place for it.")
    judged = [Path(run) for run in runs if is_judging(Path(run))]
    folders = [Path(run) for run in runs if Path(run) not in judged]
    every = []
    if folders or not (judged or extra):  # a page may hold its own sections alone
        every = read_runs(folders, dict(names or {}), with_answers=samples > 0, trained=True)
    loaded = [run for run in every if run.results]
    every = loaded + [run for run in every if not run.results]  # so that a run has one colour on the page
    results = combine(loaded, seed=seed)
    results["training"] = training_rows(every)
    for step, of_step in step_runs(every).items():
        results["training"] += [{**row, "step": step} for row in training_rows(of_step)]
    if isinstance(extra, views.Section) or extra is None:
        extra = [] if extra is None else [extra]
    extra = [*extra, *judging_sections(judged_folders(every, judged), samples, open_image, seed)]
    if loaded:
        page = render(
            loaded,
            results,
            title=title,
            note=note,
            samples=samples,
            open_image=open_image,
            seed=seed,
            extra=extra,
            trained=every,
        )
    else:
        page = render_sections([*extra, *_training(every)], title=title, note=note)
    claim(out.parent, "report", [out.name, "results.json", "results.csv", "confusion.csv"], _is_report)
    write_whole(out.with_name("results.json"), json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    write_whole(out.with_name("results.csv"), to_csv([row for run in results["runs"] for row in metric_rows(run)]))
    write_whole(out.with_name("confusion.csv"), to_csv(confusion_rows(loaded)))
    write_whole(out, page)
    return out


def _is_report(folder: Path) -> bool:
    """Return whether a folder without a record holds a report."""
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(results, dict) and results.get("schema") == SCHEMA


def combine(runs: Sequence[Run], *, seed: int = 0) -> dict[str, Any]:
    """Join the results of several runs into one tree, with the paired differences from the first run."""
    return {
        "schema": SCHEMA,
        "base": runs[0].name if runs else None,
        "runs": [{**run.results, "name": run.name} for run in runs],
        "differences": {run.name: compare(runs[0], run, seed=seed) for run in runs[1:]},
    }


def render(
    runs: Sequence[Run],
    results: dict[str, Any],
    *,
    title: str,
    note: str,
    samples: int,
    open_image: OpenImage | None,
    seed: int,
    extra: Sequence[views.Section] = (),
    trained: Sequence[Run] = (),
) -> str:
    """Fill the template of the page; all text from data is escaped."""
    shown = displays(run.results for run in runs)
    radars = [(display.title, plots.radar_chart(runs, name)) for name, display in shown.items() if display.radar]
    beside = [*side_by_side_sections(runs, samples, open_image), *overlay_sections(runs, samples, open_image, seed)]
    progress = progress_sections(runs, answers=samples > 0)
    return _template().render(
        title=title,
        note=note,
        runs=[_description(run, place) for place, run in enumerate(runs)],
        base=results["base"],
        headline=views.headline(runs, results["differences"]),
        leaks=known_overlaps(runs),
        overview=_svg_uri(plots.accuracy_chart(runs)),
        sections=[
            (section, _svg_uri(section.picture or None))
            for section in [
                *extra,
                *beside_sections(runs),
                *group_sections(runs),
                *robustness_sections(runs),
                *protocol_sections(runs),
                *scatter_sections(runs),
                *beside,
                *progress,
            ]
        ],
        protocols=views.protocol_tables(runs),
        protocol_help=views.protocol_help(runs),
        radars=[(name, _svg_uri(chart)) for name, chart in radars if chart],
        notes_help=views.notes_help(runs),
        legends=views.legends(runs),
        paired=paired_tables(runs, results["differences"]),
        skipped=paired_skips(results["differences"], shown),
        attributes=views.attribute_tables(runs),
        confusions=confusion_tables(runs),
        retention=views.retention_table(runs),
        swapped=views.swapped_table(runs),
        training=[(section, _svg_uri(section.picture or None)) for section in _training(trained or runs)],
        cards=choose_cards(runs, samples, open_image, seed) if samples > 0 else [],
        worst=worst_cards(runs, WORST, open_image, seed) if samples > 0 else [],
        definitions=views.definitions(runs),
    )


def _training(runs: Sequence[Run]) -> list[views.Section]:
    """Return the curves of trained runs, the question set's metrics if no run was evaluated, and what differs."""
    metrics = [] if any(run.results for run in runs) else progress_sections(runs, answers=False)
    found = [training_section(runs), method_section(runs), *metrics, config_section(runs)]
    for step, of_step in step_runs(runs).items():
        found += [make(of_step, step) for make in (training_section, method_section, config_section)]
    return [section for section in found if section is not None]


def render_sections(sections: Sequence[views.Section], *, title: str, note: str = "") -> str:
    """Return a page of sections alone, in the form of the report, for results that belong to no evaluated run.

    Args:
        sections: The sections; all text from data is escaped.
        title: Heading of the page.
        note: A sentence below the heading.
    """
    pictures = [(section, _svg_uri(section.picture or None)) for section in sections]
    return _template().render(title=title, note=note, runs=[], sections=pictures)


def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("medtune.reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("report.html.j2")


def _description(run: Run, place: int) -> dict[str, Any]:
    provenance = run.results.get("provenance", {})
    return {
        "name": run.name,
        "colour": plots.colour(place),
        "counts": run.results["counts"],
        "config": run.config,
        "evaluation": json.dumps(provenance.get("config", {}), indent=2, ensure_ascii=False),
        "commit": provenance.get("commit") or "not in a checkout",
        "config_hash": provenance.get("config_hash", ""),
        "leakage": leakage_text(provenance.get("leakage")),
        "seed": provenance.get("seed", ""),
        "versions": provenance.get("versions", {}),
        "hardware": provenance.get("hardware", {}),
    }


def _svg_uri(svg: str | None) -> str:
    return "" if svg is None else data_uri(svg.encode("utf-8"), "image/svg+xml")
