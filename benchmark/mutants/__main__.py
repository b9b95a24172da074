"""How many wrong lines the tests notice, over the losses, the objectives, the evaluation and the training.

    python -m benchmark.mutants [--count 200] [--seed 0] [--minutes 0] [--again]

Mutants are made by cosmic-ray, drawn by a fixed seed, and written one by one into a copy of the checkout
(``build/mutants/tree``). Each is asked of the tests that run its line, quickest first; those that live are asked of a
second, slower selection at the end. The outcomes are kept after each mutant: a stopped run goes on where it was.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from benchmark.mutants.baseline import Baseline
from benchmark.mutants.draw import draw, mutated
from benchmark.mutants.forks import TIMED_OUT, changed, copy_checkout, forked, run_pytest, warm_up
from benchmark.mutants.results import Results, equivalents, head_of
from benchmark.mutants.sample import Mutant

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "mutants"
BROKEN = 70


class FirstFailure:
    """A pytest plugin that writes down the first test that fails."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Keeps the test's name."""
        if report.failed and not self.out.exists():
            self.out.write_text(report.nodeid, encoding="utf-8")


def outcome(mutant: Mutant, tests: list[str], tree: Path, limit: float) -> tuple[str, dict[str, Any]]:
    """Asks tests of a mutant.

    Returns:
        The outcome, and the test that fails first with the seconds that it took.

    Raises:
        RuntimeError: pytest could not be started.
    """
    text, named = mutated(ROOT, mutant.place), WORK / "first_failure"
    assert text is not None
    named.unlink(missing_ok=True)
    begin = time.monotonic()
    with changed(tree, mutant.place.module, text):
        status = forked(
            lambda: run_pytest(tree, ["-x", *tests], compiled=False, plugin=FirstFailure(named)), WORK / "log", limit
        )
    if status == BROKEN:
        raise RuntimeError(f"pytest did not start, see {WORK / 'log'}")
    about: dict[str, Any] = {"seconds": round(time.monotonic() - begin, 1), "tests": len(tests)}
    if status == TIMED_OUT:
        return "timeout", about
    if status == 0:
        return "survived", about
    return "killed", {**about, "by": named.read_text(encoding="utf-8") if named.is_file() else "import or collection"}


def run(results: Results, baseline: Baseline, again: bool, end: float) -> None:
    """Tries the mutants that wait, then asks more tests of those that lived."""
    tried = results.waiting("not_run", *(["survived"] if again else []))
    for number, mutant in enumerate(tried, 1):
        if time.monotonic() > end:
            return
        _ask(results, baseline, mutant, 1)
        print(f"  {number} of {len(tried)}", flush=True)
    for mutant in results.waiting("survived"):
        if results.rows[mutant.place.key].get("selection") == 1 and time.monotonic() < end:
            _ask(results, baseline, mutant, 2)


def _ask(results: Results, baseline: Baseline, mutant: Mutant, selection: int) -> None:
    tests = baseline.selection(mutant.place, more=selection == 2)
    known: tuple[str, dict[str, Any]] = ("survived", {"tests": 0})
    if tests:
        known = outcome(mutant, tests, baseline.tree, 30 + 4 * baseline.seconds(tests))
    results.rows[mutant.place.key].pop("by", None)
    results.record(mutant, known[0], selection=selection, **known[1])
    print(f"{known[0]:<10}{mutant.place.module}:{mutant.place.line}  {mutant.after[:90]}", flush=True)


def main() -> int:
    """Runs from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=0, help="stop after this long; 0 goes on to the end")
    parser.add_argument("--again", action="store_true", help="try those that lived once more, with the tests of now")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmark" / "results" / "mutants.json")
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes if arguments.minutes else float("inf")
    drawn, sizes = draw(ROOT, arguments.seed, arguments.count)
    head = {**head_of(ROOT), "seed": arguments.seed, "possible": sizes}
    listed = equivalents(Path(__file__).with_name("equivalent.toml"))
    results = Results(arguments.out, head, drawn, listed)
    os.nice(10)
    warm_up()
    tree = WORK / "tree"
    copy_checkout(ROOT, tree)
    baseline = Baseline(tree, WORK / "baseline")
    run(results, baseline, arguments.again, end)
    print(json.dumps(json.loads(arguments.out.read_text(encoding="utf-8"))["summary"], indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
