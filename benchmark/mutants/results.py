"""The file of results: written after each mutant, read again when a stopped run goes on."""

import json
import os
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmark.mutants.sample import PACKAGES, Mutant

OUTCOMES = ("killed", "timeout", "survived", "equivalent", "not_run")
"""A mutant that never ends counts as killed. ``equivalent``: see ``equivalents``."""


def equivalents(path: Path) -> dict[tuple[str, str, str], str]:
    """The hand-written list: (module, before, after) -> the reason why no test can, or should, tell them apart.

    Raises:
        ValueError: an entry has no reason.
    """
    found = {}
    for entry in tomllib.loads(path.read_text(encoding="utf-8")).get("mutant", []):
        if not entry.get("reason", "").strip():
            raise ValueError(f"{path}: the mutant of {entry['module']} ({entry['before']!r}) needs a reason")
        found[entry["module"], entry["before"], entry["after"]] = entry["reason"]
    return found


class Results:
    """Outcomes of a draw.

    Args:
        path: the file.
        head: what the file says of itself: command, commit, versions, seed.
        drawn: the mutants of this draw; of an older file only their outcomes are kept.
        listed: the equivalent ones, see ``equivalents``.
    """

    def __init__(
        self, path: Path, head: Mapping[str, Any], drawn: Sequence[Mutant], listed: Mapping[tuple[str, str, str], str]
    ) -> None:
        self.path, self.head, self.drawn = path, dict(head), drawn
        self.rows = {mutant.place.key: _described(mutant) for mutant in drawn}
        kept = json.loads(path.read_text(encoding="utf-8"))["mutants"] if path.is_file() else []
        for row in kept:
            mine = self.rows.get(row["key"])
            if mine and (mine["before"], mine["after"]) == (row["before"], row["after"]):
                self.rows[row["key"]] = {**row, "line": mine["line"]}
        for row in self.rows.values():
            reason = listed.get((row["module"], row["before"], row["after"]))
            row.pop("reason", None)
            if reason is not None:
                row |= {"outcome": "equivalent", "reason": reason}
            elif row["outcome"] == "equivalent":
                row["outcome"] = "not_run"

    def waiting(self, *outcomes: str) -> list[Mutant]:
        """Mutants with one of these outcomes, in the order of the draw."""
        return [mutant for mutant in self.drawn if self.rows[mutant.place.key]["outcome"] in outcomes]

    def record(self, mutant: Mutant, outcome: str, **about: Any) -> None:
        """Sets a mutant's outcome and writes the file."""
        self.rows[mutant.place.key] |= {"outcome": outcome, **about}
        self.write()

    def write(self) -> None:
        """Replaces the file by what is known now."""
        content = {**self.head, "summary": summary(self.rows.values()), "mutants": list(self.rows.values())}
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(part, self.path)


def _described(mutant: Mutant) -> dict[str, Any]:
    place = mutant.place
    return {
        "key": place.key,
        "module": place.module,
        "line": place.line,
        "operator": place.operator,
        "before": mutant.before,
        "after": mutant.after,
        "outcome": "not_run",
    }


def summary(rows: Any) -> dict[str, dict[str, Any]]:
    """Counts by package and in all, with the share killed of those that were run and are not equivalent."""
    rows = list(rows)
    found: dict[str, dict[str, Any]] = {}
    for name in (*PACKAGES, "all"):
        counts = Counter(row["outcome"] for row in rows if name in (row["module"].split("/")[1], "all"))
        killed = counts["killed"] + counts["timeout"]
        tried = killed + counts["survived"]
        found[name] = {
            "drawn": counts.total(),
            **{outcome: counts[outcome] for outcome in OUTCOMES},
            "killed_share": round(killed / tried, 4) if tried else None,
        }
    return found


def head_of(root: Path) -> dict[str, Any]:
    """Commit and versions; medtune is asked in a process of its own, since forks must not inherit it."""
    asked = "import json, sys; from medtune.evaluation.provenance import stamp; json.dump(stamp('', []), sys.stdout)"
    environment = {**os.environ, "PYTHONPATH": str(root)}
    run = subprocess.run(
        [sys.executable, "-c", asked], cwd=root, env=environment, capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(run.stdout)
    for name in ("cosmic_ray", "coverage", "pytest"):
        found["versions"][name] = metadata.version(name)
    return {**found, "command": "make mutants"}
