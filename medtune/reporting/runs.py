"""Reads the folder of an evaluated run."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from medtune.aliases import resolve_metrics
from medtune.data.writing import file_sha256
from medtune.errors import DataError
from medtune.evaluation.evaluation import SCHEMA
from medtune.evaluation.prediction import Prediction, read_predictions
from medtune.masking import masked


@dataclass(frozen=True)
class Run:
    """The data of one run that a report uses.

    Args:
        name: Name in tables and legends.
        folder: The run's folder.
        results: Content of ``results.json``, which the evaluate recipe wrote.
        verdicts: Rows of ``verdicts.csv`` by query id; empty without that file.
        metrics: Rows of ``metrics.jsonl``; empty if the run was not trained.
        config: Text of ``config.yaml``; empty if the run was not trained.
        panels: Content of ``panels.json``: title of a panel of curves -> names of the method's metrics in it.
        predictions: Answers by query id; empty unless they were requested.
    """

    name: str
    folder: Path
    results: dict[str, Any]
    verdicts: dict[str, dict[str, str]] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    config: str = ""
    panels: dict[str, list[str]] = field(default_factory=dict)
    predictions: dict[str, Prediction] = field(default_factory=dict)


def read_run(folder: str | Path, name: str | None = None, with_answers: bool = False) -> Run:
    """Read one run's folder.

    Args:
        folder: Holds ``results.json`` and, optionally, ``verdicts.csv``, ``metrics.jsonl``, ``config.yaml`` and
            ``predictions.jsonl`` and ``panels.json``.
        name: Name of the run; the default is the name in its results.
        with_answers: Read the answers' texts too.

    Raises:
        DataError: There are no results, or a file cannot be read.
    """
    folder = Path(folder)
    results = _read_results(folder / "results.json")
    return Run(
        name=name or results["name"],
        folder=folder,
        results=results,
        verdicts=_read_verdicts(folder / "verdicts.csv"),
        metrics=_read_metrics(folder / "metrics.jsonl"),
        config=_read_config(folder / "config.yaml"),
        panels=_read_panels(folder / "panels.json"),
        predictions=_read_answers(folder, results) if with_answers else {},
    )


def read_trained(folder: str | Path, name: str | None = None) -> Run:
    """Read a run that was trained and not evaluated; its ``results`` are empty and its name is the folder's.

    Raises:
        DataError: There is no ``metrics.jsonl`` either, or it cannot be read.
    """
    folder = Path(folder)
    if not (folder / "metrics.jsonl").is_file():
        raise DataError(
            f"{folder}: there are no results and no metrics.jsonl; run the evaluate recipe with output={folder} first, "
            "or give the output_dir of a training run."
        )
    return _trained(name or folder.resolve().name, folder)


def step_runs(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return the training runs that lie one folder below the runs, as those of a sweep's variants with steps do.

    Returns:
        Name of the folder -> one run for each of ``runs``, in their order and with their names; a run without this
        folder has no metrics.
    """
    folders = {run.name: [path.parent for path in sorted(run.folder.glob("*/metrics.jsonl"))] for run in runs}
    names = dict.fromkeys(folder.name for found in folders.values() for folder in found)
    return {
        name: [
            _trained(run.name, run.folder / name)
            if run.folder / name in folders[run.name]
            else Run(run.name, run.folder / name, {})
            for run in runs
        ]
        for name in names
    }


def _trained(name: str, folder: Path) -> Run:
    metrics, config = _read_metrics(folder / "metrics.jsonl"), _read_config(folder / "config.yaml")
    return Run(name, folder, {}, metrics=metrics, config=config, panels=_read_panels(folder / "panels.json"))


def read_runs(folders: list[Path], names: dict[str, str], with_answers: bool, trained: bool = False) -> list[Run]:
    """Read several runs, whose names must differ.

    Args:
        folders: The runs' folders, in the order of the report; the others are compared with the first.
        names: Folder name to the name to show.
        with_answers: Read the answers' texts too.
        trained: Also read runs that were trained and not evaluated (:func:`read_trained`).

    Raises:
        DataError: There is no run, a run cannot be read, or two runs have the same name.
    """
    if not folders:
        raise DataError("a report needs at least one run; give the folders that the evaluate recipe wrote.")
    runs = []
    for folder in folders:
        name = names.get(Path(folder).name)
        unscored = trained and not (Path(folder) / "results.json").is_file()
        runs.append(read_trained(folder, name) if unscored else read_run(folder, name, with_answers))
    folder_by_name: dict[str, Path] = {}
    for run in runs:
        if run.name in folder_by_name:
            raise DataError(
                f"{folder_by_name[run.name]} and {run.folder} are both named {run.name!r}; evaluate one with "
                "name=..., or rename a folder."
            )
        folder_by_name[run.name] = run.folder
    return runs


def _read_results(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"{path}: there are no results; run the evaluate recipe with output={path.parent} first.")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise DataError(f"{path}: not JSON; run the evaluate recipe again.") from None
    if not isinstance(results, dict) or results.get("schema") != SCHEMA:
        raise DataError(f"{path}: not a results file of schema {SCHEMA!r}; run the evaluate recipe again.")
    scored = {key: resolve_metrics(results[key]) for key in ("protocols", "retention") if key in results}
    provenance = results.get("provenance")
    hidden = {"provenance": masked(provenance)} if provenance is not None else {}
    return {**results, **scored, **hidden}


def _read_verdicts(path: Path) -> dict[str, dict[str, str]]:
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError:  # a killed run may leave an incomplete line; the curve works without it
            continue
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: a metrics row must be a JSON object.")
        rows.append(resolve_metrics(row))
    return rows


def _read_answers(folder: Path, results: dict[str, Any]) -> dict[str, Prediction]:
    """Read the answers from the files that evaluate read, else from the run's folder.

    A judge writes its scores into a copy of the answers; evaluate reads the copy, and the run's folder holds the first
    file. A file that has changed since it was evaluated is not taken before that of the run's folder.
    """
    provenance = results.get("provenance", {})
    scored = provenance.get("config", {}).get("predictions") or []
    paths = [Path(path) for path in ([scored] if isinstance(scored, str) else scored)]
    known = provenance.get("sha256", {}).get("predictions")
    own = folder / "predictions.jsonl"
    if own.is_file() and not (all(map(Path.is_file, paths)) and [file_sha256(path) for path in paths] == known):
        paths = [own]
    return {row.id: row for path in paths if path.is_file() for row in read_predictions(path)}


def _read_panels(path: Path) -> dict[str, list[str]]:
    """Return titles and metrics; those that a run of another version wrote in another form are left out."""
    try:
        found = json.loads(_read_text(path) or "{}")
        return {str(title): [str(name) for name in names] for title, names in found.items()}
    except (ValueError, AttributeError, TypeError):
        return {}


def _read_config(path: Path) -> str:
    """Return a run's config with credentials masked: it may have been written by hand, or before they were."""
    try:
        plain = OmegaConf.to_container(OmegaConf.create(_read_text(path) or "{}"), resolve=False)
    except Exception:  # of YAML and OmegaConf; a text that cannot be read cannot be masked
        return ""
    return OmegaConf.to_yaml(OmegaConf.create(masked(plain))) if plain else ""


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
