"""The miniature of ME-VLIP's claim: where questions were routed, by hand, and what is missing."""

import json
from pathlib import Path

import pytest

from medtune.config import load_config
from medtune.errors import DataError
from medtune.evaluation.prediction import Prediction
from medtune.sweep.config import SweepConfig
from tests.benchmark.scripts import script

table = script("me_vlip_table")


def answered(folder: Path, *pairs: tuple[str, object]) -> None:
    """Answers of the run to questions of the first task, given by the second, an adapter."""
    (folder / "predict").mkdir(parents=True)
    rows = [
        Prediction(
            str(n), "flare", "q", "a", meta={"images": ["x"], "flare_task": task, "notes": {"adapter": adapter}}
        ).to_dict()
        for n, (task, adapter) in enumerate(pairs)
    ]
    (folder / "predict" / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def routed(tmp_path: Path):
    config = load_config(table.SWEEP, SweepConfig, [f"output_dir={tmp_path}", "seeds=[7]"])
    return next(run for run in table.chains(config) if run.variant.name == "routed")


def test_a_question_goes_to_its_own_adapter_to_that_of_all_tasks_or_astray(tmp_path: Path) -> None:
    run = routed(tmp_path)
    pairs = [("counting", "counting"), ("counting", "general"), ("counting", "detection"), ("detection", "detection")]
    answered(run.folder, *pairs, ("counting", "detection"))
    found = table.routing(run)
    assert found == {
        "questions": 5,
        "own": 2,
        "fallback": 1,
        "other": 2,
        "not_own": {"counting -> detection": 2, "counting -> general": 1},
    }


def test_an_answer_without_a_route_is_refused(tmp_path: Path) -> None:
    run = routed(tmp_path)
    answered(run.folder, ("counting", None))
    with pytest.raises(DataError, match="names no adapter"):
        table.routing(run)


def test_what_is_not_scored_is_named(tmp_path: Path) -> None:
    config = load_config(table.SWEEP, SweepConfig, [f"output_dir={tmp_path}", "seeds=[7]"])
    with pytest.raises(DataError, match=r"not scored yet: .*routed"):
        table.table(config)


def test_every_model_of_the_table_is_a_variant_and_routed_ones_come_after_their_adapters() -> None:
    config = load_config(table.SWEEP, SweepConfig, [])
    variants = {variant.name: variant for variant in config.variants}
    assert set(table.COMPARED) <= variants.keys()
    tasks = set(variants) - set(table.COMPARED)
    assert set(variants["oracle"].needs) == tasks and set(variants["routed"].needs) == tasks | {table.FALLBACK}


def test_a_difference_is_written_with_its_sign_and_interval() -> None:
    one = {"value": -0.25, "interval": [-0.5, 0.125]}
    assert table._difference(one, 1.0) == "-0.25 [-0.50, +0.12]"
    assert table._difference({**one, "interval": None}, 100.0) == "-25.0"


def test_answers_that_nobody_can_read_are_averaged_over_seeds(tmp_path: Path) -> None:
    config = load_config(table.SWEEP, SweepConfig, [f"output_dir={tmp_path}", "seeds=[7,8]"])
    rows = [row for run in table.chains(config) if run.variant.name == "routed" for row in table.rows_of(config, run)]
    results = [
        {"protocols": {"flare": {"overall": {"counting_unread": {"value": value}, "counting_mae": {"value": 9.0}}}}}
        for value in (0.25, 0.75)
    ]
    assert table.unread(rows, results) == {"Routed": {"counting": 0.5}}
