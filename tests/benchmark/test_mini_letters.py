"""benchmark/mini_letters.py: each stage starts from the one before, with seeds of its own."""

import json
import re
import sys
from pathlib import Path

import pytest

from medtune.config import load_config
from medtune.training.config import TrainConfig
from tests.benchmark.scripts import script

mini_letters = script("mini_letters")


def test_each_stage_starts_from_the_one_before(tmp_path: Path) -> None:
    listed = mini_letters.commands(tmp_path, 100, ["max_steps=2"])
    assert len(listed) == len(mini_letters.STAGES)
    for number, (name, words) in enumerate(zip(mini_letters.STAGES, listed, strict=True)):
        config = load_config(f"sft/{name}", TrainConfig, words[words.index("--config") + 2 :])
        assert config.output_dir == str(tmp_path / name) and config.max_steps == 2
        assert config.seed == load_config(f"sft/{name}", TrainConfig).seed + 100
        before = mini_letters.STAGES[number - 1]
        assert config.checkpoint == (f"{tmp_path / before}/weights" if number else None)
        usual = load_config(f"sft/{name}", TrainConfig).checkpoint
        assert usual == (f"runs/{before}/weights" if number else None), "a stage can be run alone"


def test_losses_are_means_of_a_hundred_steps(tmp_path: Path) -> None:
    rows = [{"step": step, "loss": float(step)} for step in (1, 50, 100, 101, 200, 201)] + [
        {"step": 200, "validation_loss": 1}
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert mini_letters.losses(tmp_path) == {"100": round(151 / 3, 4), "200": 150.5, "300": 201.0}


def pretend(command: list[str], ran: list[str]) -> None:
    """Write what a stage, or the gate, leaves behind."""
    name = next((word for word in command if re.match("sft/", word)), Path(command[1]).name)
    ran.append(name)
    if "--out" in command and name == "mini_base_gate.py":
        answers = {"options_shuffled": {}, "options_in_fixed_order": {}, "gate": {"yes_no": 0.85}, "gate_passed": True}
        Path(command[command.index("--out") + 1]).write_text(json.dumps({"command": "-", **answers}))
    elif name != "export":
        folder = Path(next(word for word in command if word.startswith("output_dir=")).partition("=")[2])
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0}) + "\n")
        (folder / "summary.json").write_text(json.dumps({"steps": 1, "tokens": 9, "seconds": 1.5, "samples": 2}))


@pytest.mark.parametrize("stages", [2, 7])
def test_the_last_stage_alone_is_asked_questions(stages: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(mini_letters, "run", lambda command: pretend(command, ran))
    words = ["mini_letters.py", "--stages", str(stages), "--work", str(tmp_path / "w"), "frozen=[]"]
    monkeypatch.setattr(sys, "argv", words)
    assert mini_letters.main() == 0
    asked = ["export", "mini_base_gate.py"] if stages == 7 else []
    assert ran == [*(f"sft/{name}" for name in mini_letters.STAGES[:stages]), *asked]
    record = json.loads((tmp_path / "w" / "stages.json").read_text())
    each = {"steps": 1, "tokens": 9, "seconds": 1.5, "losses": {"100": 2.0}}
    assert record["stages"] == dict.fromkeys(mini_letters.STAGES[:stages], each)
    assert record.get("gate_passed") is (True if stages == 7 else None)
    assert "mini_letters.py" in record["command"]
