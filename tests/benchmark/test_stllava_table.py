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


def test_a_gain_is_paired_by_question_and_averaged_over_seeds() -> None:
    def rows(*values: str) -> dict[str, dict[str, str]]:
        kinds = [("vqa", "0"), ("vqa", "0"), ("vqa", "0"), ("open", "0"), ("vqa", "1")]
        return {
            str(place): {"task": task, "swapped": swapped, "images": "ab"[place % 2], "measure:open_recall": value}
            for place, (value, (task, swapped)) in enumerate(zip(values, kinds, strict=True))
        }

    first, better = rows("0.5", "0.0", "", "0.0", "0.0"), rows("1.0", "0.5", "", "1.0", "1.0")
    found = table.gain({0: (first, better), 1: (first, first)}, "vqa", "measure:open_recall")
    assert found["by_seed"] == {"0": 0.5, "1": 0.0} and found["value"] == 0.25
    assert (found["questions"], found["images"]) == (2, 2)
    low, high = found["seed_interval"]
    assert (low + high) / 2 == pytest.approx(0.25) and (high - low) / 2 == pytest.approx(12.7062 * 0.25, rel=1e-4)
    assert table.seed_interval([0.5]) is None


def test_what_was_learned_from_is_counted_by_the_truth(tmp_path: Path) -> None:
    prepared, run = tmp_path / "prepared", tmp_path / "run"
    report = {"id": "a", "images": ["a"], "messages": [{"role": "assistant", "content": "big cell size, granularity"}]}
    pairs = [
        ("What is the cell size?", "big cell size", "small cell size"),
        ("What is the cell size?", "small cell size", "big cell size"),
        ("What is the cytoplasm vacuole?", "no cytoplasm vacuole", "yes, cytoplasm vacuole"),
        ("light blue", "red", "pink"),
    ]
    files = {
        prepared / "train.jsonl": [report],
        run / "judge/pairs.jsonl": [
            {
                "id": str(place),
                "images": ["a"],
                "messages": [{"role": "user", "content": question}],
                "chosen": chosen,
                "rejected": rejected,
            }
            for place, (question, chosen, rejected) in enumerate(pairs)
        ],
        run / "dpo/metrics.jsonl": [dict.fromkeys(table.METRICS, float(step)) for step in range(10)],
    }
    for path, rows in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (prepared / "training_majority.json").write_text(json.dumps({"cell size": "big", "cytoplasm vacuole": "no"}))
    found = table.learned_from(run, prepared)
    assert (found["pairs"], found["chosen_is_right"], found["steps"]) == (4, 0.5, 10)
    assert found["by_attribute"] == {
        "cell size": {"pairs": 2, "chosen_is_right": 0.5},
        "cytoplasm vacuole": {"pairs": 1, "chosen_is_right": 1.0},
        "other": {"pairs": 1, "chosen_is_right": 0.0},
    }
    assert found["metrics"]["rewards/margins"] == [0.5, 8.5]


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
