"""Variants that need others: the folders that they are told, their seeds, and the order of the runs."""

from concurrent.futures import Future
from pathlib import Path

import pytest

from medtune.config import load_config
from medtune.errors import ConfigError
from medtune.recipes.sweep import main
from medtune.sweep.config import SweepConfig, SweepRun, chains, task_name
from medtune.sweep.run import _in_order, filled
from tests.evaluation.ranked import write_run
from tests.test_sweep_steps import commands

JOINT = (
    "{name: both, title: Both, needs: [base, one, two], steps: [{recipe: predict, overrides:"
    " ['a={run:one}/x','b={run:two}','c={run:base}']},{recipe: evaluate}]}"
)
PARTS = "{name: base, title: Base},{name: one, title: One, train: []},{name: two, title: Two, train: []}"


def words(folder: Path, variants: str, *more: str) -> list[str]:
    return ["sweep/mini_wbcatt", f"variants=[{variants}]", f"output_dir={folder}", "samples=0", "seeds=[3,4]", *more]


def load(folder: Path, variants: str, *more: str) -> SweepConfig:
    name, *overrides = words(folder, variants, *more)
    return load_config(name, SweepConfig, overrides)


def test_a_run_is_told_the_folders_of_the_same_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(tmp_path, f"{JOINT},{PARTS}")
    both = [run for run in chains(config) if run.variant.name == "both"]
    assert [task_name(run) for run in both] == ["both/3", "both/4"] and not any(run.one_seed for run in both)
    asked = [row for row in commands(monkeypatch, config) if any(one.startswith("a=") for one in row)]
    for seed, row in zip((3, 4), asked, strict=True):
        assert {f"a={tmp_path}/one_seed{seed}/x", f"b={tmp_path}/two_seed{seed}", f"c={tmp_path}/base"} <= set(row)


def test_an_untrained_variant_that_needs_only_untrained_ones_has_one_seed(tmp_path: Path) -> None:
    late = "{name: late, title: Late, needs: [base], steps: [{recipe: predict},{recipe: evaluate}]}"
    later = late.replace("late", "later").replace("[base]", "[late]").replace("Late", "Later")
    config = load(tmp_path, f"{later},{late},{PARTS}")
    assert [task_name(run) for run in chains(config)][:3] == ["later/3", "late/3", "base/3"]
    assert [run.one_seed for run in chains(config)] == [True, True, True, False, False, False, False]
    assert filled(["{run:late}"], config, chains(config)[0]) == [str(tmp_path / "late")]


def test_each_run_begins_as_soon_as_those_that_it_needs_are_done(tmp_path: Path) -> None:
    config = load(tmp_path, f"{JOINT},{PARTS}")
    begun: list[str] = []
    waiting: dict[str, Future[None]] = {}

    def submit(run: SweepRun) -> Future[None]:
        begun.append(task_name(run))
        waiting[task_name(run)] = Future()
        if len(begun) == 5:  # everything that needs nothing
            for name in ("two/4", "base/3", "one/4"):
                waiting[name].set_result(None)
        elif len(begun) > 5:
            waiting[task_name(run)].set_result(None)
        return waiting[task_name(run)]

    ended = _in_order(config, chains(config), submit)
    first = [task_name(next(ended)[0]) for _ in range(3)]
    assert set(first) == {"two/4", "base/3", "one/4"} and begun == ["base/3", "one/3", "one/4", "two/3", "two/4"]
    assert task_name(next(ended)[0]) == "both/4" == begun[5]
    for name in ("one/3", "two/3"):
        waiting[name].set_result(None)
    assert [task_name(run) for run, _ in ended][-1] == "both/3" == begun[6]


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ("{name: a, title: A, needs: [b]}", "needs 'b', which is no variant; there are a"),
        ("{name: a, title: A, needs: [a]}", "need each other"),
        ("{name: a, title: A, needs: [b]},{name: b, title: B, needs: [c]},{name: c, title: C, needs: [a]}", "a, b, c"),
        ("{name: a, title: A, train: ['x={run:b}']},{name: b, title: B}", "{run:b}"),
    ],
)
def test_needs_that_nothing_fulfils_are_refused_at_load(variants: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, variants)


def test_a_part_is_refused_before_those_that_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load(tmp_path, f"{JOINT},{PARTS}")
    write_run(next(run.folder for run in chains(config) if run.variant.name == "base"), "Base", 1.0)
    assert main(["--config", *words(tmp_path, f"{JOINT},{PARTS}", "only=both/4")]) == 2
    assert "both/4 needs one/4, two/4; do each with only=NAME first" in capsys.readouterr().err
