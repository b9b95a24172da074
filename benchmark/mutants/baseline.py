"""Which tests run which lines, measured once on the sources as they are and kept for each test file."""

import ast
import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmark.mutants.forks import forked, run_pytest
from benchmark.mutants.sample import PACKAGES, Place

LONG = ("training/test_runs.py", "training/test_feature_cache.py", "training/test_validation.py")
FIRST = {
    "losses": ("losses", "objectives"),
    "objectives": ("objectives",),
    "evaluation": ("evaluation",),
    "training": ("training",),
}
SECOND = {
    "losses": ("invariants/test_vitask.py", "invariants/test_sft.py"),
    "objectives": ("invariants/test_vitask.py", "invariants/test_sft.py"),
    "evaluation": ("reporting",),
    "training": (*LONG, "invariants/test_resume.py", "invariants/test_sft.py"),
}
"""Folders and files of tests that are asked at first (``LONG`` aside), and those that are asked as well of what lives.

What is marked slow is left out.
"""
FIRST_SECONDS = 30.0
"""The first selection: covering tests, quickest first, up to this much time of theirs."""
SECOND_SECONDS = 120.0
"""The second selection, for mutants that the first one lets live: the other tests that may see the line, up to this."""


class Watch:
    """A pytest plugin: which lines each test runs, how long it takes, and whether it passes."""

    def __init__(self, tree: Path, out: Path) -> None:
        import coverage

        self.tree, self.out = tree, out
        self.seconds: dict[str, float] = {}
        self.failed: set[str] = set()
        self.coverage = coverage.Coverage(
            data_file=None, config_file=False, source=[str(tree / "medtune" / name) for name in PACKAGES]
        )
        self.coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        """Counts lines and seconds for this test."""
        self.coverage.switch_context(item.nodeid)
        begin = time.perf_counter()
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid] = time.perf_counter() - begin
            self.coverage.switch_context("")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Leaves out a test that fails or is skipped without a mutant."""
        if report.failed or report.skipped:
            self.failed.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        """Writes what was found."""
        self.coverage.stop()
        data = self.coverage.get_data()
        found: dict[str, dict[str, list[int]]] = {}
        for path in data.measured_files():
            module = str(Path(path).relative_to(self.tree))
            for line, contexts in data.contexts_by_lineno(path).items():
                for test in contexts:
                    found.setdefault(test, {}).setdefault(module, []).append(line)
        tests = {
            test: {"seconds": seconds, "lines": found.get(test, {})}
            for test, seconds in self.seconds.items()
            if test not in self.failed
        }
        left_out = sorted(self.failed)
        self.out.write_text(json.dumps({"tests": tests, "left_out": left_out}), encoding="utf-8")


class Baseline:
    """What was measured of every test file, kept in ``folder``; a file is measured again when it or medtune changed."""

    def __init__(self, tree: Path, folder: Path) -> None:
        self.tree, self.folder = tree, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.tests: dict[str, dict[str, Any]] = {}
        self._measured: set[Path] = set()
        self._sources = ""

    def measure(self, files: Sequence[Path]) -> None:
        """Measures what is missing, file by file, so that a stopped measurement goes on."""
        self._sources = self._sources or _digest(sorted(self.tree.glob("medtune/**/*.py")))
        for file in (file for file in files if file not in self._measured):
            self._measured.add(file)
            name = str(file.relative_to(self.tree))
            kept = self.folder / f"{name.replace('/', '.')}.{_digest([file])}.{self._sources}.json"
            if not kept.is_file():
                begin = time.monotonic()
                status = forked(lambda name=name, kept=kept: self._watched(name, kept), self.folder / "log", 900)
                print(f"measured {name}: {time.monotonic() - begin:.0f} s, status {status}", flush=True)
            if kept.is_file():
                found = json.loads(kept.read_text(encoding="utf-8"))
                self.tests |= found["tests"]

    def files(self, package: str, more: bool) -> list[Path]:
        """The test files that are asked of a package's mutants."""
        found = []
        for name in (*FIRST[package], *(SECOND[package] if more else ())):
            path = self.tree / "tests" / name
            inside = [path] if path.is_file() else sorted(path.rglob("test_*.py"))
            found += [one for one in inside if more or str(one.relative_to(self.tree / "tests")) not in LONG]
        return list(dict.fromkeys(found))

    def _watched(self, name: str, kept: Path) -> int:
        part = kept.with_suffix(".part")
        status = run_pytest(self.tree, [name], compiled=True, plugin=Watch(self.tree, part))
        if part.is_file():
            os.replace(part, kept)
        return status

    def selection(self, place: Place, *, more: bool = False) -> list[str]:
        """The tests to ask of a mutant: at first, or, with ``more``, the others after these have passed."""
        files = self.files(place.package, more)
        self.measure(files)
        names = {str(file.relative_to(self.tree)) for file in files}
        asked = {test: found for test, found in self.tests.items() if test.partition("::")[0] in names}
        lines = around((self.tree / place.module).read_text(encoding="utf-8"), place.line)
        covering = [t for t, found in asked.items() if lines & set(found["lines"].get(place.module, ()))]
        covering = covering or list(asked)  # it runs at import alone, and any of them may notice
        ordered = sorted(covering, key=lambda test: self._rank(place, test))
        if not more:
            return self._quickest(ordered, FIRST_SECONDS)
        first = self.selection(place)
        near = {test.partition("::")[0] for test in covering}
        others = [t for t in asked if t not in covering and (t.partition("::")[0] in near or self._own(place, t))]
        rest = [t for t in ordered if t not in first] + sorted(others, key=lambda test: self._rank(place, test))
        return self._quickest(rest, SECOND_SECONDS)

    def seconds(self, tests: Sequence[str]) -> float:
        """How long tests take together."""
        return sum(self.tests[test]["seconds"] for test in tests)

    def _quickest(self, ordered: list[str], limit: float) -> list[str]:
        count = 0
        while count < len(ordered) and (count == 0 or self.seconds(ordered[: count + 1]) <= limit):
            count += 1
        return ordered[:count]

    def _own(self, place: Place, test: str) -> bool:
        return test.startswith(f"tests/{place.package}/")

    def _rank(self, place: Place, test: str) -> tuple[int, float]:
        stem = Path(place.module).stem
        own = Path(test.partition("::")[0]).stem.startswith(f"test_{stem}")
        seconds: float = self.tests[test]["seconds"]
        return (0 if own else 1 if self._own(place, test) else 2), seconds


def around(source: str, line: int) -> set[int]:
    """Lines that run where a changed line counts: its statement's, or a function's body for its defaults.

    Of a statement with a body, such as a condition, it is the part before the body. Statements of a module or a class,
    and a class's decorators, run at import, which may have happened within any one test: there are none.
    """
    statements = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)]
    holding = [node for node in statements if _first(node) <= line <= (node.end_lineno or 0)]
    inner = min(holding, key=lambda node: (node.end_lineno or 0) - _first(node))
    body = getattr(inner, "body", None)
    if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
        return set(range(inner.body[0].lineno, (inner.end_lineno or 0) + 1))
    if not any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in holding):
        return set()
    last = body[0].lineno - 1 if body else inner.end_lineno or 0
    return set(range(inner.lineno, max(last, line) + 1))


def _first(node: ast.stmt) -> int:
    return min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", ()))])


def _digest(paths: Sequence[Path]) -> str:
    found = hashlib.sha256()
    for path in paths:
        found.update(path.read_bytes())
    return found.hexdigest()[:12]
