"""A protocol of the test's own, from a prediction file to the report and the table of a sweep, by its dotted path."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from medtune.config import load_config
from medtune.data.writing import jsonl_bytes
from medtune.errors import ConfigError, DataError
from medtune.evaluation.display import Display
from medtune.evaluation.evaluation import evaluate
from medtune.evaluation.prediction import write_predictions
from medtune.evaluation.protocols.registry import REGISTRY, build_protocol, plan_queries
from medtune.recipes.evaluate import main
from medtune.reporting.comparison import compare, compare_over_seeds
from medtune.reporting.displays import displays
from medtune.reporting.report import write_report
from medtune.reporting.runs import read_run
from medtune.sweep.config import SweepConfig, chains, rows_of
from medtune.sweep.report import write_pages
from tests.evaluation.counting import PATH, Counting, Registered, off_by, pictures
from tests.evaluation.ranked import save_run

ERRORS = [0, 2, 1, 3, -1, 0, 0, 4, 2, 0, 1, 5]
BETTER = [0, 1, 0, 1, 2, 0, 0, 1, 1, 0, 0, 2]
"""How far off each answer is, one question after the other; -1 holds no number."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("counted")
    (folder / "test.jsonl").write_bytes(jsonl_bytes(pictures()))
    return folder


def score(folder: Path, prepared: Path, errors: list[int], name: str) -> Path:
    """Write a prediction file and evaluate it by the recipe; no majority values are there."""
    rows = [off_by(query, error) for query, error in zip(plan_queries(pictures(), [PATH]), errors, strict=True)]
    write_predictions(folder / "predictions.jsonl", rows)
    told = [f"predictions={folder / 'predictions.jsonl'}", f"prepared_dir={prepared}", f"output={folder}"]
    asked = [f"protocols=[{PATH}]", "swapped=[]", "bootstrap_draws=50", f"name={name}"]
    assert main(["--config", "evaluate/default", *told, *asked]) in (0, None)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    return [score(root / "base", prepared, ERRORS, "base"), score(root / "tuned", prepared, BETTER, "tuned")]


def test_the_numbers_are_those_by_hand(runs: list[Path]) -> None:
    results = json.loads((runs[0] / "results.json").read_text())
    overall = results["protocols"]["counting"]["overall"]
    kinds = ([0, 1, 0, 2, 1], [2, 3, 0, 4, 0, 5])  # lymphocytes are asked first; the third one is unread
    means = [sum(one) / len(one) for one in kinds]
    assert overall["absolute_error_macro"]["value"] == pytest.approx(sum(means) / 2)
    assert overall["absolute_error_micro"]["value"] == pytest.approx(sum(map(sum, kinds)) / 11)
    assert overall["exact_micro"]["value"] == pytest.approx(4 / 12) and overall["unread"]["value"] == 1 / 12
    roots = [math.sqrt(sum(error * error for error in one) / len(one)) for one in kinds]
    assert overall["rmse_macro"]["value"] == pytest.approx(sum(roots) / 2)
    error = overall["absolute_error_macro"]
    assert (error["unit"], error["higher_is_better"], error["n"]) == ("cells", False, 11)
    assert all(one["interval"][0] < one["value"] < one["interval"][1] for one in overall.values())
    apart = results["protocols"]["counting"]["attributes"]
    assert [apart[kind]["absolute_error"]["value"] for kind in ("lymphocytes", "platelets")] == pytest.approx(means)


def test_the_verdicts_hold_the_numbers_and_the_results_say_how_to_show_them(runs: list[Path]) -> None:
    with (runs[0] / "verdicts.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["measure:absolute_error"] for row in rows[:5]] == ["0.0", "2.0", "1.0", "3.0", ""]
    results = json.loads((runs[0] / "results.json").read_text())
    assert displays([results]) == {"counting": Counting.display} and "counting" not in REGISTRY
    assert Display.from_dict({**Counting.display.to_dict(), "of a later version": 1}) == Counting.display
    with pytest.raises(DataError, match="describes no protocol"):
        displays([{**results, "display": {"counting": {"headline": 3}}}])


def test_the_page(runs: list[Path], tmp_path: Path, open_image: Callable) -> None:
    page = write_report(
        runs, tmp_path / "r.html", samples=3, open_image=lambda path: open_image("a/1.png")
    ).read_text()  # fmt: skip
    written = json.loads((tmp_path / "results.json").read_text())
    error = written["runs"][0]["protocols"]["counting"]["overall"]["absolute_error_macro"]
    low, high = error["interval"]
    assert f"<b>{error['value']:.2f}</b><small>{low:.2f} to {high:.2f}" in page, "cells are not written in percent"
    for text in (
        "Counting, mean error in cells",
        "Root mean square error in cells",
        "How many ",
        "the first number of",
    ):
        assert text in page, text
    assert "(absolute error " in page and "McNemar p" not in page and "Confusion" not in page
    difference = written["differences"]["tuned"]["counting"]
    before, after = ([error for error in one] for one in (ERRORS, BETTER))
    pairs = [(one, other) for one, other in zip(before, after, strict=True) if one >= 0]
    assert difference["micro"]["value"] == pytest.approx(sum(other - one for one, other in pairs) / len(pairs))
    assert (difference["unit"], difference["higher_is_better"], difference["n"]) == ("cells", False, 11)
    assert f'<td class="good" title="{difference["definition"]}">' in page, "a smaller error is green"


def test_a_sweep_has_its_table_over_seeds(prepared: Path, tmp_path: Path) -> None:
    variants = "variants=[{name: v, title: V, train: []},{name: w, title: W, train: []}]"
    where = [f"output_dir={tmp_path}", f"prepared_dir={prepared}", "seeds=[0,1]", "samples=0", "asks=[]", variants]
    config = load_config("sweep/vitask_mini", SweepConfig, where)
    for row in (row for chain in chains(config) for row in rows_of(config, chain)):
        shift = 3 if row.chain.variant.name == "v" else row.chain.seed
        score(row.folder, prepared, [abs(error) % 2 + shift for error in ERRORS], f"'{row.title}'")
    page = write_pages(config, chains(config)).read_text()
    table = json.loads((tmp_path / "seeds.json").read_text())
    one = table["W"]["counting/absolute_error_macro"]
    assert one["unit"] == "cells" and one["values"][1] == pytest.approx(one["values"][0] + 1)
    assert f"<b>{one['mean']:.2f}</b><small>± {one['deviation']:.2f}" in page and "platelets: error" in page
    apart = json.loads((tmp_path / "seed_differences.json").read_text())["W"]["counting"]
    assert apart["by_seed"] == pytest.approx({"0": -3, "1": -2}) and apart["unit"] == "cells"
    assert "Differences over seeds" in page


def test_swapped_images_and_missing_answers() -> None:
    """A swap that makes the error larger costs something, although a smaller error is better."""
    samples, path = pictures(), PATH.replace("Counting", "Swapped")
    queries = plan_queries(samples, [path], swapped=[path])
    assert len(queries) == 24
    rows = [off_by(query, 3 if query.meta["swapped"] else 1) for query in queries]
    done = evaluate(samples, rows[1:], {}, name="x", protocols=[path], swapped=[path], resamples=20, on_missing="wrong")
    swapped = done.results["protocols"]["counting"]["swapped"]
    assert swapped["drop_macro"]["value"] == pytest.approx(2.0) and swapped["drop_macro"]["unit"] == "cells"
    assert swapped["drop_macro"]["n"] == 11 and swapped["absolute_error_macro"]["value"] == pytest.approx(3.0)
    differs = sum(query.meta["answer"] != query.meta.get("shown_answer", query.meta["answer"]) for query in queries)
    assert swapped["answer_differs"]["value"] == pytest.approx(differs / 12)


def test_a_number_of_the_whole_set_is_compared_on_the_same_draws(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REGISTRY, "registered", Registered)
    folders = []
    for name, errors in (("base", ERRORS), ("same", ERRORS), ("tuned", BETTER)):
        rows = [off_by(one, error) for one, error in zip(plan_queries(pictures(), ["registered"]), errors, strict=True)]
        done = evaluate(pictures(), rows, {}, name=name, protocols=["registered"], resamples=50)
        assert "display" not in done.results
        folders.append(save_run(tmp_path / name, done.results, done.verdicts, rows))
    base, same, tuned = (read_run(folder) for folder in folders)
    found = compare(base, tuned, resamples=50)["registered"]["rmse_macro"]
    before = ([0, 1, 0, 2, 1], [2, 3, 0, 4, 0, 5])
    after = ([0, 0, 0, 1, 0], [1, 1, 0, 1, 0, 2])

    def root(errors: list[int]) -> float:
        return math.sqrt(sum(error * error for error in errors) / len(errors))

    expected = sum(root(later) - root(earlier) for earlier, later in zip(before, after, strict=True)) / 2
    assert found["value"] == pytest.approx(expected) and found["unit"] == "cells" and found["n"] == 11
    assert found["interval"][1] < 0 and found["higher_is_better"] is False
    nothing = compare(base, same, resamples=50)["registered"]["rmse_macro"]
    assert (nothing["value"], nothing["interval"]) == (0.0, None), "both runs are taken on the same draws"
    seeds = compare_over_seeds({0: base, 1: base}, {0: tuned, 1: same}, resamples=50)["registered"]["rmse_macro"]
    assert seeds["value"] == pytest.approx(expected / 2)
    assert seeds["by_seed"]["1"] == 0.0 and set(seeds["by_seed"]) == {"0", "1"}


class Other(Counting):
    pass


class Disguised(Counting):
    name = "open"


def test_protocols_that_cannot_be_told_apart_or_are_none_are_refused() -> None:
    here = __name__
    with pytest.raises(ConfigError, match="named 'open' as a packaged one"):
        build_protocol(f"{here}.Disguised")
    with pytest.raises(ConfigError, match="two of them are named 'counting'"):
        plan_queries(pictures(), [PATH, f"{here}.Other"])
    with pytest.raises(ConfigError, match="is no subclass"):
        build_protocol("medtune.config.load_config")
    with pytest.raises(ConfigError, match="give the dotted path"):
        build_protocol("counting")
