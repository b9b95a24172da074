"""What the scripts of the papers' tables share: the results of a finished sweep, and Markdown tables in percent."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medtune.errors import DataError
from medtune.sweep.config import ReportRow


def parse_with_overrides(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse options and ``overrides`` of a sweep, which may stand before, between and behind the options."""
    parser.add_argument("overrides", nargs="*", help="key=value of the sweep's config")
    return parser.parse_intermixed_args(arguments)


def scored(rows: Sequence[ReportRow]) -> list[dict[str, Any]]:
    """The ``results.json`` of every row of a sweep.

    Raises:
        DataError: If a row has not been scored.
    """
    missing = sorted({str(row.folder) for row in rows if not (row.folder / "results.json").is_file()})
    if missing:
        raise DataError(f"not scored yet: {', '.join(missing)}; start without --collect-only.")
    return [json.loads((row.folder / "results.json").read_text(encoding="utf-8")) for row in rows]


def write(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result as JSON, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def heading(cells: Sequence[str]) -> list[str]:
    """The first two lines of a table."""
    return [line(cells), "|---" * len(cells) + "|"]


def line(cells: Sequence[str]) -> str:
    """A row of a table."""
    return f"| {' | '.join(cells)} |"


def percent(mean: float | None, deviation: float | None = None, unit: float = 100.0) -> str:
    """A mean with its deviation, if there is one; no mean gives an empty cell."""
    if mean is None:
        return ""
    return f"{unit * mean:.1f}" + ("" if deviation is None else f" ± {unit * deviation:.1f}")


def over_seeds(one: Mapping[str, Any] | None) -> str:
    """The mean and the deviation over seeds of a number."""
    return "" if one is None else percent(one["mean"], one["deviation"])


def estimate(one: Mapping[str, Any], sign: str = "") -> str:
    """A value with its interval, which it lacks where there are too few images; ``sign="+"`` is for differences."""
    ends = one["interval"]
    value = f"{100 * one['value']:{sign}.1f}"
    return value if ends is None else f"{value} [{100 * ends[0]:{sign}.1f}, {100 * ends[1]:{sign}.1f}]"
