"""The mutants: what is drawn, which tests are asked, and what becomes of a copy that is changed."""

import importlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest


def module(name: str) -> Any:
    return importlib.import_module(f"benchmark.mutants.{name}")


sample, baseline, forks, results = map(module, ("sample", "baseline", "forks", "results"))
SOURCE = """import math

LIMIT = 3


def scaled(x: int | None, *, by: int = 2) -> dict:
    if x is not None and x > LIMIT:
        raise ValueError("large")
    return {"value": by * x, "root": round(x, ndigits=1)}
"""


def place(line: int, name: str = "core/AddNot", occurrence: int = 0) -> Any:
    return sample.Place("medtune/losses/one.py", name, occurrence, line, f"key {line}")


@pytest.fixture
def checkout_of_one(tmp_path: Path) -> Path:
    for package in sample.PACKAGES:
        folder = tmp_path / "medtune" / package
        folder.mkdir(parents=True)
        (folder / "one.py").write_text(SOURCE)
    return tmp_path


def test_each_package_has_its_share() -> None:
    assert sample.shares({"a": 10, "b": 30, "c": 61}, 10) == {"a": 1, "b": 3, "c": 6}
    assert sample.shares({"a": 1, "b": 1, "c": 1}, 200) == {"a": 67, "b": 67, "c": 66}


def test_the_wrong_lines_of_a_small_file(checkout_of_one: Path) -> None:
    pytest.importorskip("cosmic_ray")
    draw = module("draw")
    drawn, sizes = draw.draw(checkout_of_one, 0, 4 * 100)
    assert set(sizes.values()) == {len(list(draw.places(checkout_of_one, "losses")))}
    changes = {(mutant.before, mutant.after) for mutant in drawn}
    assert ("LIMIT = 3", "LIMIT = 4") in changes
    assert ('raise ValueError("large")', "pass") in changes
    line = 'return {"value": by * x, "root": round(x, ndigits=1)}'
    assert (line, 'return {"value": by / x, "root": round(x, ndigits=1)}') in changes
    assert (line, 'return {"value": by * x}') in changes or (line, 'return {"value": by * x }') in changes
    assert (line, 'return {"value": by * x, "root": round(x)}') in changes
    assert not [after for _, after in changes if "int & None" in after or "/, by" in after], "they stay"
    assert all(compile(draw.mutated(checkout_of_one, mutant.place), "one", "exec") for mutant in drawn)


def test_a_larger_draw_begins_with_the_smaller_one_and_another_seed_draws_others(checkout_of_one: Path) -> None:
    pytest.importorskip("cosmic_ray")
    draw = module("draw")
    few, more, other = (
        {mutant.place.key for mutant in draw.draw(checkout_of_one, seed, count)[0]}
        for seed, count in ((0, 12), (0, 24), (1, 12))
    )
    assert len(few) == 12 and few < more and few != other


def test_tests_are_looked_for_around_a_line() -> None:
    assert baseline.around(SOURCE, 9) == {9}
    assert baseline.around(SOURCE, 7) == {7}, "a condition without what it guards"
    assert baseline.around(SOURCE, 6) == {7, 8, 9}, "a default belongs to the function's body"
    assert baseline.around(SOURCE, 3) == set()


def test_the_quickest_tests_that_run_the_line_come_first(
    checkout_of_one: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baseline, "FIRST_SECONDS", 5.0)
    held = baseline.Baseline(checkout_of_one, checkout_of_one / "kept")
    line = {"medtune/losses/one.py": [9]}
    held.tests = {
        "tests/invariants/test_all.py::a": {"seconds": 1.0, "lines": line},
        "tests/losses/test_two.py::slow": {"seconds": 4.5, "lines": line},
        "tests/losses/test_two.py::quick": {"seconds": 0.1, "lines": line},
        "tests/losses/test_one.py::own": {"seconds": 0.2, "lines": line},
        "tests/losses/test_one.py::other": {"seconds": 0.2, "lines": {}},
        "tests/training/test_all.py::far": {"seconds": 0.2, "lines": {"medtune/losses/one.py": [7]}},
    }
    monkeypatch.setattr(held, "measure", lambda files: None)
    monkeypatch.setattr(
        held,
        "files",
        lambda package, more: [held.tree / t.partition("::")[0] for t in held.tests if more or "inv" not in t],
    )
    first, second = held.selection(place(9)), held.selection(place(9), more=True)
    assert [test.rpartition(":")[2] for test in first] == ["own", "quick", "slow"]
    assert [test.rpartition(":")[2] for test in second] == ["a", "other"]
    at_import = held.selection(place(3))
    assert [test.rpartition(":")[2] for test in at_import] == ["own", "other", "quick", "slow"]


def test_a_changed_file_is_as_before_afterwards_and_never_read_from_what_was_compiled(tmp_path: Path) -> None:
    path = tmp_path / "one.py"
    path.write_text("X = 1\n")
    os.utime(path, (1_000, 1_000))
    with pytest.raises(ZeroDivisionError), forks.changed(tmp_path, "one.py", "X = 2\n"):
        assert path.read_text() == "X = 2\n" and path.stat().st_mtime != 1_000
        raise ZeroDivisionError
    assert path.read_text() == "X = 1\n" and path.stat().st_mtime == 1_000


def test_a_fork_tells_how_it_ended_and_is_stopped_in_time(tmp_path: Path) -> None:
    assert forks.forked(lambda: 3, tmp_path / "log", 30) == 3
    assert forks.forked(lambda: int(print("said") is None), tmp_path / "log", 30) == 1
    assert (tmp_path / "log").read_text() == "said\n"
    assert forks.forked(lambda: 1 // 0, tmp_path / "log", 30) == 70
    assert "ZeroDivisionError" in (tmp_path / "log").read_text()
    begin = time.monotonic()
    assert forks.forked(lambda: time.sleep(60) or 0, tmp_path / "log", 0.3) == forks.TIMED_OUT
    assert time.monotonic() - begin < 20


def test_outcomes_are_kept_while_the_change_is_the_same(tmp_path: Path) -> None:
    drawn = [sample.Mutant(place(line), f"line {line}", f"wrong {line}") for line in (1, 2, 3)]
    path = tmp_path / "mutants.json"
    held = results.Results(path, {"seed": 0}, drawn, {})
    held.record(drawn[0], "killed", by="a test")
    held.record(drawn[1], "survived")
    held.record(drawn[2], "timeout")
    assert json.loads(path.read_text())["summary"]["all"]["killed_share"] == pytest.approx(2 / 3, abs=1e-4)

    moved = [drawn[0], drawn[1], sample.Mutant(drawn[2].place, "line 3", "wrong in another way")]
    listed = {("medtune/losses/one.py", "line 2", "wrong 2"): "it is the same"}
    again = results.Results(path, {"seed": 0}, moved, listed)
    assert [again.rows[m.place.key]["outcome"] for m in moved] == ["killed", "equivalent", "not_run"]
    assert again.waiting("not_run") == [moved[2]]
    again.write()
    found = json.loads(path.read_text())["summary"]["losses"]
    assert found == {
        "drawn": 3, "killed": 1, "timeout": 0, "survived": 0, "equivalent": 1, "not_run": 1, "killed_share": 1.0
    }  # fmt: skip


def test_every_equivalent_mutant_has_a_file_and_a_reason(tmp_path: Path, checkout: Path) -> None:
    listed = results.equivalents(checkout / "benchmark" / "mutants" / "equivalent.toml")
    for (name, _, after), reason in listed.items():
        assert (checkout / name).is_file() and len(reason) > 20, (name, after)
    (tmp_path / "list.toml").write_text('[[mutant]]\nmodule = "m"\nbefore = "a"\nafter = "b"\nreason = " "\n')
    with pytest.raises(ValueError, match="needs a reason"):
        results.equivalents(tmp_path / "list.toml")


def test_the_committed_outcomes_say_what_was_run(checkout: Path) -> None:
    found = json.loads((checkout / "benchmark" / "results" / "mutants.json").read_text())
    assert found["commit"] and found["versions"]["cosmic_ray"] and found["seed"] == 0
    assert results.summary(found["mutants"]) == found["summary"]
    assert len({row["key"] for row in found["mutants"]}) == found["summary"]["all"]["drawn"]
