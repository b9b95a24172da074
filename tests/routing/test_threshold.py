"""The sweep of thresholds: every point is what the router's own rule gives."""

from pathlib import Path

import numpy as np
import pytest

from medtune.config import Component, load_config
from medtune.data.writing import json_bytes
from medtune.errors import ConfigError, DataError
from medtune.recipes.router_threshold import ThresholdConfig
from medtune.routing import RoutedModel
from medtune.routing.routes import choose
from medtune.routing.threshold import NEVER, draw, sweep
from medtune.routing.validation import chosen_threshold, read_better
from medtune.sweep.config import SweepConfig

LABELS = ["counting", "detection", "report"]


def table(seed: int, count: int = 40) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Scores and correctness; the task report has no adapter."""
    rng = np.random.default_rng(seed)
    scores = rng.dirichlet(np.full(3, 0.6), count)
    return scores, {name: rng.integers(0, 2, count).astype(float) for name in ("counting", "detection", "all")}


@pytest.mark.parametrize("seed", range(3))
def test_every_point_is_what_the_router_would_choose(seed: int) -> None:
    scores, correct = table(seed)
    found = sweep(scores, LABELS, correct, "all")
    assert len(found.points) == len(set(scores.max(axis=1))) + 1
    for point in (*found.points, *found.known):
        routes = choose(scores, LABELS, correct, point.threshold, "all")
        assert point.value == pytest.approx(np.mean([correct[r.adapter][i] for i, r in enumerate(routes)]))
        own = [route.adapter == route.task for route in routes]
        assert point.own == pytest.approx(np.mean(own))
    assert found.best.value == max(point.value for point in found.points)
    assert [point.threshold for point in found.known] == [0.3, 0.5]
    assert (found.points[0].threshold, found.points[-1].threshold, found.points[-1].own) == (0.0, NEVER, 0.0)


def test_of_equal_thresholds_the_middle_of_the_widest_range_is_taken() -> None:
    """Own adapters are right from 0.9 on and wrong at 0.5; between them every threshold is perfect."""
    scores = np.array([[0.5, 0.3, 0.2], [0.9, 0.05, 0.05], [0.05, 0.95, 0.0]])
    found = sweep(scores, LABELS, {"counting": [0, 1, 0], "detection": [0, 0, 1], "all": [1, 0, 0]}, "all")
    assert (found.best.value, found.best.threshold) == (1.0, pytest.approx(0.7))
    assert [point.value for point in found.known] == [pytest.approx(2 / 3), pytest.approx(2 / 3)]


def test_the_plot_marks_the_known_thresholds_and_the_best() -> None:
    svg = draw(sweep(*table(0)[:1], LABELS, table(0)[1], "all"))
    assert (
        svg.startswith("<?xml")
        and "0.3" in svg
        and "best:" in svg
        and svg == draw(sweep(table(0)[0], LABELS, table(0)[1], "all"))
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"fallback": "mt"}, ConfigError, "the fallback 'mt' is not among the adapters all, counting, detection"),
        ({"scores": np.zeros((0, 3))}, DataError, r"scores of shape \[0, 3\]"),
        ({"scores": np.ones((4, 2))}, DataError, r"scores of shape \[4, 2\] do not fit 3 labels"),
        ({"scores": np.ones((5, 3))}, DataError, "was asked 40 questions, the router 5"),
        ({"scores": np.full((40, 3), np.nan)}, DataError, "not a finite number"),
    ],
)
def test_tables_that_do_not_fit_are_refused(change: dict, error: type[Exception], message: str) -> None:
    scores, correct = table(0)
    given = {"scores": scores, "labels": LABELS, "correct": correct, "fallback": "all", **change}
    with pytest.raises(error, match=message):
        sweep(**given)


def test_a_threshold_is_read_from_the_file_that_the_recipe_writes(tmp_path: Path) -> None:
    scores, correct = table(0)
    found = sweep(scores, LABELS, correct, "all")
    (tmp_path / "threshold.json").write_bytes(json_bytes(found.to_dict()))
    assert chosen_threshold(tmp_path / "threshold.json") == found.best.threshold
    component = Component(_component_="medtune.models.mini.mini_internvl")
    (tmp_path / "adapter_config.json").write_text("{}")
    file = str(tmp_path / "threshold.json")
    backend = RoutedModel(component, component, "base", {"counting": str(tmp_path)}, threshold=file)
    assert backend.least_score == found.best.threshold
    for content in ("{}", "no json", '{"best": {"threshold": true}}', '{"best": {"threshold": -1}}', "[]"):
        (tmp_path / "wrong.json").write_text(content)
        with pytest.raises(ConfigError, match=r"wrong.json is no threshold.json of the recipe router_threshold"):
            chosen_threshold(tmp_path / "wrong.json")
    with pytest.raises(ConfigError, match="cannot be read; run the recipe router_threshold first"):
        chosen_threshold(tmp_path / "gone.json")


def test_the_sweep_chooses_its_threshold_on_validation_questions_before_it_answers_the_test() -> None:
    config = load_config("sweep/me_vlip_mini", SweepConfig)
    (routed,) = (variant for variant in config.variants if variant.name == "routed")
    steps = routed.steps or []
    last = max(place for place, step in enumerate(steps) if step.recipe == "predict")
    for place, step in enumerate(steps):
        if step.recipe == "predict":
            assert ("questions.source={prepared}/val.jsonl" in step.overrides) == (place != last)
    assert [step.recipe for step in steps[last - 1 :]] == ["router_threshold", "predict", "evaluate"]
    assert "backend.threshold={step:router_threshold}/threshold.json" in steps[last].overrides
    asked = load_config("router_threshold/scenes", ThresholdConfig)
    assert set(asked.adapters) == set(routed.needs) and asked.fallback == "general"


def test_answers_in_unlike_units_are_compared_with_those_of_the_fallback_one_by_one(tmp_path: Path) -> None:
    columns = ["id", "read", "correct", "measure:error", "measure:image_f1"]
    rows = {
        "size": [
            "a,1,0,3.5,",
            "b,1,0,0.25,",
            "c,1,0,,0.5",
            "d,1,1,,",
            "e,0,0,,",
            "f,1,0,-5.0,",
            "g,1,0,-2.0,",
            "h,1,0,2.0,",
        ],
        "all": [
            "a,1,0,9.0,",
            "b,1,1,0.0,",
            "c,1,0,,0.5",
            "d,1,0,,",
            "e,1,0,70.0,",
            "f,1,1,0.0,",
            "g,1,0,-3.0,",
            "h,1,0,-2.0,",
        ],
    }
    for name, lines in rows.items():
        (tmp_path / name).mkdir()
        text = "\n".join([",".join(columns), *lines])
        (tmp_path / name / "verdicts.csv").write_text(text + "\n")
    folders = {name: str(tmp_path / name) for name in rows}
    found = read_better(folders, list("abcdefgh"), "all")
    assert found == {"size": [1.0, 0.0, 0.5, 1.0, 0.0, 0.0, 1.0, 0.5], "all": [0.5] * 8}
    with pytest.raises(ConfigError, match="'none' is not among the adapters all, size"):
        read_better(folders, ["a"], "none")
    with pytest.raises(DataError, match="lacks 1 of the routed answers"):
        read_better(folders, ["z"], "all")
    (tmp_path / "all" / "verdicts.csv").write_text(",".join(columns) + "\na,1,0,far,\n")
    with pytest.raises(DataError, match="'a' are no numbers"):
        read_better(folders, ["a"], "all")
