"""Means over data sets: every set has the same weight, seeds are not questions, intervals are over images."""

import json
import math
import random
import statistics
from pathlib import Path

import numpy as np
import pytest

from medtune.cli.main import main
from medtune.errors import DataError
from medtune.reporting.averages import average, average_sections, read_models
from medtune.reporting.runs import Run
from tests.reporting.conftest import make_questions, write_run

ASKED = [("i1", "a"), ("i2", "a"), ("i2", "b"), ("i3", "b")]


def run(name: str, right: list[int], asked: list[tuple[str, str]] = ASKED, task: str = "open") -> Run:
    verdicts = {
        f"q{place}/{task}": {
            "task": task,
            "swapped": "0",
            "attribute": attribute,
            "images": image,
            "gold": "g",
            "correct": str(ok),
        }
        for place, ((image, attribute), ok) in enumerate(zip(asked, right, strict=True))
    }
    return Run(name, Path(), {"name": name, "protocols": {task: {"overall": {}}}, "retention": {}}, verdicts)


def numbers(models: dict, statistic: str = "accuracy_macro") -> dict:
    return average(models, resamples=50)["protocols"]["open"]["statistics"][statistic]


def test_the_average_is_the_mean_over_sets_of_the_macro_accuracy_whatever_their_size() -> None:
    few = [("j1", "c"), ("j2", "c")]
    lopsided = [("i1", "a"), ("i2", "a"), ("i3", "a"), ("i4", "b")]
    models = {
        "A": {"m": {None: run("m", [1, 1, 1, 0], lopsided)}},
        "B": {"m": {None: run("m", [1, 0], few)}},
    }
    found = numbers(models)["m"]
    assert found["sets"]["A"]["mean"] == 0.5 and found["sets"]["B"]["mean"] == 0.5
    assert found["average"]["value"] == 0.5 and found["average"]["n"] == 6
    assert numbers(models, "accuracy_micro")["m"]["average"]["value"] == (0.75 + 0.5) / 2
    assert found["average"]["deviation"] is None and found["average"]["seeds"] == 1


def test_the_deviation_is_over_seeds_of_the_average_of_each_seed() -> None:
    a = {0: run("m", [1, 1, 1, 1]), 1: run("m", [1, 1, 0, 0]), 2: run("m", [1, 0, 1, 0])}
    b = {0: run("m", [0, 0, 0, 0]), 1: run("m", [1, 1, 1, 1]), 2: run("m", [1, 1, 0, 0])}
    found = numbers({"A": {"m": a}, "B": {"m": b}})["m"]
    per_seed = [(1.0 + 0.0) / 2, (0.5 + 1.0) / 2, (0.5 + 0.5) / 2]
    assert list(found["average"]["by_seed"].values()) == per_seed
    assert found["average"]["value"] == pytest.approx(statistics.fmean(per_seed))
    assert found["average"]["deviation"] == pytest.approx(statistics.stdev(per_seed))
    assert found["sets"]["A"]["values"] == [1.0, 0.5, 0.5]
    other = {7: b[0], 8: b[1], 9: b[2]}
    apart = numbers({"A": {"m": a}, "B": {"m": other}})["m"]["average"]
    assert apart["deviation"] is None and apart["by_seed"] == {} and apart["value"] == found["average"]["value"]


def test_the_interval_is_over_images_and_does_not_shrink_with_seeds() -> None:
    rng = np.random.default_rng(0)
    sizes, shares = {"A": 400, "B": 100}, {"A": 0.7, "B": 0.5}
    right = {name: [int(x) for x in rng.random(size) < shares[name]] for name, size in sizes.items()}
    asked = {name: [(f"{name}{place}", "a") for place in range(size)] for name, size in sizes.items()}
    one = {name: {"m": {0: run("m", right[name], asked[name])}} for name in sizes}
    five = {name: {"m": {seed: run("m", right[name], asked[name]) for seed in range(5)}} for name in sizes}
    first, pooled = (
        average(models, resamples=2000)["protocols"]["open"]["statistics"]["accuracy_micro"]["m"]["average"]
        for models in (one, five)
    )
    p = {name: np.mean(values) for name, values in right.items()}
    error = math.sqrt(sum(p[name] * (1 - p[name]) / sizes[name] for name in sizes)) / 2
    low, high = first["interval"]
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.1)
    assert pooled["interval"] == pytest.approx(first["interval"])


def test_differences_are_paired_and_relative_to_the_first_model() -> None:
    rng = random.Random(1)
    asked = [(f"i{place}", "a") for place in range(60)]
    right = [rng.randint(0, 1) for _ in asked]
    better = [1 if place % 10 == 0 else ok for place, ok in enumerate(right)]
    models = {
        name: {"base": {None: run("base", right, asked)}, "m": {0: run("m", better, asked), 1: run("m", right, asked)}}
        for name in ("A", "B")
    }
    found = numbers(models)
    gain = found["m"]["average"]["difference"]
    assert gain["value"] == pytest.approx((sum(better) - sum(right)) / 60 / 2) and gain["value"] > 0
    width = gain["interval"][1] - gain["interval"][0]
    low, high = found["m"]["average"]["interval"]
    assert width < (high - low) / 2, "the same images are drawn for both models"
    assert "difference" not in found["base"]["average"]


def test_a_model_that_lacks_a_set_has_no_average() -> None:
    models = {
        "A": {"m": {None: run("m", [1, 1, 0, 0])}, "n": {None: run("n", [1, 1, 0, 0])}},
        "B": {"m": {None: run("m", [1, 1, 0, 0])}},
    }
    found = average(models, resamples=20)
    assert found["protocols"]["open"]["statistics"]["accuracy_macro"]["n"]["average"] is None
    table = average_sections(found)[0].table
    assert table is not None and table.columns == ["A", "B", "Avg."]
    assert [[cell.value for cell in row.cells] for row in table.rows] == [["50.0", "50.0", "50.0"], ["50.0", "–", "–"]]


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ({"A": {"m": {None: run("m", [1, 1, 0, 0])}}}, "at least two"),
        (
            {
                "A": {"m": {None: run("m", [1, 1, 0, 0])}},
                "B": {"m": {None: run("m", [1, 1, 0, 0], task="multiple_choice")}},
            },
            "no protocol",
        ),
        (
            {
                "A": {"m": {0: run("m", [1, 1, 0, 0]), 1: run("m", [1], [("i1", "a")])}},
                "B": {"m": {None: run("m", [1, 1, 0, 0])}},
            },
            "A, m, open: the question sets differ",
        ),
    ],
)
def test_what_cannot_be_averaged_is_refused_by_name(models: dict, said: str) -> None:
    with pytest.raises(DataError, match=said):
        average(models, resamples=5)


def test_the_command_writes_a_page_of_two_data_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place, name in enumerate(("cells", "skin")):
        write_run(tmp_path / name, make_questions(4 + place), "FT", seed=place)
    given = [f"--data-set={name}={tmp_path / name}" for name in ("cells", "skin")]
    out = tmp_path / "page" / "report.html"
    assert main(["report", *given, "--out", str(out), "--title", "Two sets"]) == 0
    page = out.read_text(encoding="utf-8")
    assert "Two sets" in page and "Avg." in page and "cells" in page
    found = json.loads(out.with_name("averages.json").read_text(encoding="utf-8"))
    of_sets = [
        json.loads((tmp_path / name / "results.json").read_text())["protocols"]["open"]["overall"]["accuracy_macro"]
        for name in ("cells", "skin")
    ]
    value = found["protocols"]["open"]["statistics"]["accuracy_macro"]["FT"]["average"]["value"]
    assert value == pytest.approx(statistics.fmean(number["value"] for number in of_sets))
    assert main(["report", *given, "--out", str(out)]) == 0, "a second time"
    capsys.readouterr()
    for wrong in (["report"], ["report", str(tmp_path / "cells"), *given], ["report", "--data-set", "cells"]):
        assert main(wrong) == 2
        assert "--data-set" in capsys.readouterr().err


def test_a_broken_list_of_rows_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('[{"title": "m"}]')
    with pytest.raises(DataError, match="rows.json: not written by a sweep"):
        read_models(tmp_path)
