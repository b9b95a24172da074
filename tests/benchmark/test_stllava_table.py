"""The miniature of STLLaVA-Med's claim: win rates by hand, and what is collected from made-up runs."""

import json
from pathlib import Path

import pytest

from medtune.config import load_config
from medtune.errors import DataError
from medtune.evaluation.prediction import Prediction
from medtune.sweep.config import SweepConfig
from tests.benchmark.scripts import script

table = script("stllava_table")


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    path = tmp_path / "test_reports.jsonl"
    rows = [
        {"id": name, "images": [name], "messages": [{"role": "assistant", "content": "big cell size, granularity"}]}
        for name in ("a", "b")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answer(image: str, text: str) -> Prediction:
    return Prediction(f"{image}/{text}", "open", "What?", text, meta={"images": [image]})


def test_a_win_is_an_answer_that_names_more_and_a_tie_is_half_of_one(truth: Path) -> None:
    right, wrong = "big cell size", "small cell size"
    first = {
        "1": (answer("a", wrong), answer("a", right)),
        "2": (answer("a", right), answer("a", right)),
        "3": (answer("b", right), answer("b", wrong)),
        "4": (answer("b", wrong), answer("b", "yes, granularity")),
    }
    found = table.win_rate({0: first, 1: first}, truth, 0.0)
    assert (found["wins"], found["ties"], found["losses"]) == (4, 2, 2)
    assert found["value"] == pytest.approx(2.5 / 4) and found["by_seed"] == {"0": 0.625, "1": 0.625}
    assert found["wins_of_decided"] == pytest.approx(4 / 6) and (found["questions"], found["images"]) == (4, 2)
    assert found["interval"][0] <= found["value"] <= found["interval"][1]
    turned = table.win_rate({0: first}, truth, 1.0)
    assert (turned["wins"], turned["ties"], turned["losses"]) == (1, 1, 2)


def test_what_is_not_scored_is_named(tmp_path: Path) -> None:
    config = load_config(table.SWEEP, SweepConfig, [f"output_dir={tmp_path}", "seeds=[7]"])
    with pytest.raises(DataError, match=r"not scored yet: .*dpo"):
        table.table(config)


def test_models_that_answered_different_questions_are_refused(tmp_path: Path) -> None:
    config = load_config(table.SWEEP, SweepConfig, [f"output_dir={tmp_path}", "seeds=[7]"])
    runs = {}
    for chain in table.chains(config):
        (chain.folder / "predict").mkdir(parents=True)
        row = answer("a", chain.variant.name).to_dict()
        (chain.folder / "predict" / "predictions.jsonl").write_text(json.dumps(row) + "\n")
        runs[chain.variant.name] = chain
    with pytest.raises(DataError, match="answered different questions"):
        table._paired(runs["sft"], runs["dpo"])
