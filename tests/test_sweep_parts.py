"""A sweep done in parts, as an array of jobs does: one run at a time, then the report."""

import json
from pathlib import Path

import pytest

from medtune.config import load_config
from medtune.errors import ConfigError
from medtune.recipes.sweep import main
from medtune.sweep import run as sweep
from medtune.sweep.config import SweepConfig, chains, task_name
from tests.evaluation.ranked import write_run
from tests.test_sweep_steps import commands

VARIANTS = (
    "variants=[{name: base, title: Base},{name: a, title: A, train: []},{name: b, title: B, train: [max_steps=2]}]"
)


def words(folder: Path, *more: str) -> list[str]:
    return ["--config", "sweep/mini_wbcatt", VARIANTS, f"output_dir={folder}", "samples=0", "seeds=[3,4]", *more]


def test_the_list_has_every_run_once_and_writes_nothing(tmp_path: Path, capsys) -> None:
    assert main(words(tmp_path / "out", "only=list")) == 0
    expected = ["wave 5", "task base/3", "task a/3", "task a/4", "task b/3", "task b/4"]
    assert capsys.readouterr().out.split("\n")[:-1] == expected and not (tmp_path / "out").exists()


def test_all_parts_together_run_what_the_whole_sweep_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config("sweep/mini_wbcatt", SweepConfig, words(tmp_path)[2:])
    whole = commands(monkeypatch, config)  # also puts stand-ins in the place of the recipes
    lines = (tmp_path / "commands.txt").read_text()
    (tmp_path / "commands.txt").unlink()
    for chain in chains(config):
        assert main(words(tmp_path, f"only={task_name(chain)}")) == 0
    assert (tmp_path / "commands.txt").read_text() == lines and len(lines.splitlines()) == 14 == len(whole) / 2


def test_steps_before_all_runs_are_a_part_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(sweep, "run_recipe", lambda root, name, arguments: done.append(name))
    before = "before=[{recipe: prepare, config: prepare/wbcatt}]"
    assert main(words(tmp_path, before, "only=before")) == 0 and done == ["prepare"]
    assert main(words(tmp_path, before, "only=base/3")) == 0 and done == ["prepare", "predict", "evaluate"]


@pytest.mark.parametrize(("status", "ends"), [(143, 143), (2, 2), (1, 2)])
def test_the_status_tells_a_signal_from_a_failure(
    status: int, ends: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def ended(root: Path, name: str, arguments: list[str]) -> None:
        raise sweep.RecipeEnded(name, status)

    monkeypatch.setattr(sweep, "run_recipe", ended)
    assert main(words(tmp_path, "only=a/4")) == ends
    said = capsys.readouterr()
    assert ("the same command goes on" in said.out) == (status > 128) and ("a_seed4.log" in said.err) == (status < 128)


@pytest.mark.parametrize("wrong", ["only=a/5", "only=a", "only=c/3"])
def test_an_unknown_run_is_refused_with_the_known_ones(wrong: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there are base/3, a/3, a/4, b/3, b/4, before, list"):
        load_config("sweep/mini_wbcatt", SweepConfig, [*words(tmp_path)[2:], wrong])


def test_one_part_and_the_report_are_not_asked_for_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave one of them out"):
        load_config("sweep/mini_wbcatt", SweepConfig, [*words(tmp_path)[2:], "only=a/3", "collect=true"])


def test_collect_names_what_is_missing_and_then_writes_the_report(tmp_path: Path, capsys) -> None:
    config = load_config("sweep/mini_wbcatt", SweepConfig, words(tmp_path)[2:])
    *first, last = chains(config)
    for chain in first[:-1]:
        write_run(chain.folder, chain.title, 1.0)
    assert main(words(tmp_path, "collect=true")) == 2
    assert "2 of 5 runs have no results yet: b/3, b/4; do each with only=NAME" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()
    for chain in (first[-1], last):
        write_run(chain.folder, chain.title, 1.0)
    assert main(words(tmp_path, "collect=true")) == 0
    assert list(json.loads((tmp_path / "seeds.json").read_text())) == ["Base", "A", "B"]
