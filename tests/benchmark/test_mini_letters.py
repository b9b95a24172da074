"""benchmark/mini_letters.py: each stage starts from the one before, with seeds of its own."""

import csv
import dataclasses
import json
import re
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from medtune.config import PACKAGE, load_config
from medtune.data.sample import Sample
from medtune.datasets.cells.attributes import ATTRIBUTES
from medtune.errors import ModelError
from medtune.models.mini import mini_internvl
from medtune.models.weights import save_hf
from medtune.training.config import TrainConfig
from tests.benchmark.scripts import script

Answered = namedtuple("Answered", "id text")
mini_base_gate = script("mini_base_gate")
mini_letters = script("mini_letters")
SHIPPED = mini_letters.FAMILIES["llama3_2_vision"]
INTERNVL = mini_letters.FAMILIES["internvl"]


def test_each_stage_starts_from_the_one_before(tmp_path: Path) -> None:
    before = None
    for name in mini_letters.STAGES:
        part = mini_letters.Part(name, tmp_path / name, 0)
        words = mini_letters.command(part, before, SHIPPED, 100, ["max_steps=2"])
        config = load_config(f"sft/{name}", TrainConfig, words[words.index("--config") + 2 :])
        assert config.output_dir == str(tmp_path / name) and config.max_steps == 2
        assert config.seed == load_config(f"sft/{name}", TrainConfig).seed + 100
        assert config.checkpoint == (f"{before.folder}/weights" if before else None)
        usual = load_config(f"sft/{name}", TrainConfig).checkpoint
        assert usual == (f"runs/{before.name}/weights" if before else None), "a stage can be run alone"
        before = part


def test_another_family_is_taken_through_the_same_stages(tmp_path: Path) -> None:
    """Model, transform and parts are the family's; everything else is the stage's own."""
    for name in mini_letters.STAGES:
        part = mini_letters.Part(name, tmp_path / name, 0)
        ours, usual = (
            load_config(f"sft/{name}", TrainConfig, mini_letters.command(part, None, family, 0, [])[5:])
            for family in (INTERNVL, SHIPPED)
        )
        assert ours.model == {**usual.model, "_component_": "medtune.models.mini.mini_internvl"}
        drills = "drill" in usual.transform.path
        assert drills == (name != "mini_letters_styles")
        expected = f"medtune.models.mini.mini_internvl_{'drill_' if drills else ''}transform"
        assert ours.transform == {**usual.transform, "_component_": expected}
        assert ours.trainable == [part for part in usual.trainable if part != "fusion"]
        same = {"model": usual.model, "transform": usual.transform, "trainable": usual.trainable}
        assert dataclasses.replace(ours, **same) == usual


def test_a_model_of_another_family_is_asked_between_stages(tmp_path: Path) -> None:
    """Random weights answer nothing; those of another family are no weights of this one."""
    model = mini_internvl(1024)
    save_hf(model.state_dict(), model.family, tmp_path / "weights")
    assert mini_letters.lists(tmp_path, INTERNVL, 3) == dict.fromkeys(ATTRIBUTES, 0.0)
    assert mini_letters.closed_questions(tmp_path, INTERNVL, 3) == 0.0
    with pytest.raises(ModelError):
        mini_letters.lists(tmp_path, SHIPPED, 3)


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
    monkeypatch.setattr(mini_letters, "closed_questions", lambda *_: 0.8)
    monkeypatch.setattr(mini_letters, "lists", lambda *_: {"cell size": 0.9})
    words = ["mini_letters.py", "--stages", str(stages), "--work", str(tmp_path / "w"), "frozen=[]"]
    monkeypatch.setattr(sys, "argv", words)
    assert mini_letters.main() == 0
    asked = ["export", "mini_base_gate.py"] if stages == 7 else []
    assert ran == [*(f"sft/{name}" for name in mini_letters.STAGES[:stages]), *asked]
    record = json.loads((tmp_path / "w" / "stages.json").read_text())
    each = {"steps": 1, "tokens": 9, "seconds": 1.5, "losses": {"100": 2.0}}
    assert record["stages"] == dict.fromkeys(mini_letters.STAGES[:stages], each)
    assert record.get("gate_passed") is (True if stages == 7 else None)
    assert record.get("closed_questions_after_rounds") == ([0.8] if stages == 7 else None)
    assert record.get("lists_after_rounds") == ([{"cell size": 0.9}] if stages == 7 else None)
    assert "mini_letters.py" in record["command"]


def names_of(stage: str, rounds: int) -> list[str]:
    return [stage, f"{stage}_round_2", f"{stage}_round_3"][:rounds]


def assert_rounds(commands: list[list[str]], work: Path, stage: str, rounds: int, before: str, seed: int) -> None:
    """Each round starts from the one before, the first from another stage, and the next stage from the last round."""
    names = names_of(stage, rounds)
    for number, (name, words) in enumerate(zip(names, commands[:rounds], strict=True)):
        start = names[number - 1] if number else before
        expected = [f"output_dir={work / name}", f"checkpoint={work / start}/weights"]
        assert words[4:] == [f"sft/{stage}", *expected, f"seed={seed + 1000 * number}"]
    assert f"checkpoint={work / names[-1]}/weights" in commands[rounds]


@pytest.mark.parametrize("shares, rounds", [([0.75], 1), ([0.6, 0.8], 2), ([0.6, 0.7, 0.74, 1.0], 3)])
def test_the_stage_of_closed_questions_is_repeated_until_they_are_answered(
    shares: list[float], rounds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    answered = iter(shares)
    monkeypatch.setattr(mini_letters, "run", commands.append)
    monkeypatch.setattr(mini_letters, "closed_questions", lambda *_: next(answered))
    monkeypatch.setattr(mini_letters, "lists", lambda *_: {"cell size": 0.9})
    done, found = mini_letters.train(tmp_path, SHIPPED, 100, [], 7, 400)
    assert found["closed_questions_after_rounds"] == shares[:rounds] and len(commands) == len(done) == 6 + rounds
    assert [part.folder.name for part in done[5:-1]] == names_of("mini_letters", rounds)
    assert_rounds(commands[5:], tmp_path, "mini_letters", rounds, "mini_letters_checks", seed=2 + 100)


@pytest.mark.parametrize("missed, rounds", [([0], 1), ([1], 1), ([2, 1], 2), ([3, 2, 2, 0], 3)])
def test_the_stage_of_lists_is_repeated_until_all_attributes_but_one_are_seen(
    missed: list[int], rounds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    measured = iter([{"abcd"[k]: 0.69 if k < count else 0.7 for k in range(4)} for count in missed])
    monkeypatch.setattr(mini_letters, "run", commands.append)
    monkeypatch.setattr(mini_letters, "closed_questions", lambda *_: 1.0)
    monkeypatch.setattr(mini_letters, "lists", lambda *_: next(measured))
    done, found = mini_letters.train(tmp_path, SHIPPED, 0, [], 7, 400)
    assert [len(mini_letters.unseen(shares)) for shares in found["lists_after_rounds"]] == missed[:rounds]
    assert [part.folder.name for part in done[3:-3]] == names_of("mini_letters_vision", rounds)
    assert_rounds(commands[3:], tmp_path, "mini_letters_vision", rounds, "mini_letters_text", seed=80)


def test_lists_are_compared_value_by_value_with_cells_that_the_gate_does_not_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers that are right, but for the cell size of every second cell and the label, which the first one lacks."""

    class Answers:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def __call__(self, requests: list) -> list:
            return [Answered(one.id, self.answer(int(one.id), one.sample)) for one in reversed(requests)]

        @staticmethod
        def answer(index: int, sample: Sample) -> str:
            assert sample.id == f"cell-{mini_letters.OFFSET + index}-attributes"
            values = sample.messages[-1].content.split(", ")
            values[0] = "huge" if index % 2 else values[0]
            return f" {', '.join(values if index else values[:-1])} "

    monkeypatch.setattr(mini_letters, "load_model", lambda *_, **__: None)
    monkeypatch.setattr(mini_letters, "Generator", Answers)
    shares = mini_letters.lists(tmp_path, SHIPPED, 10)
    assert shares == {**dict.fromkeys(ATTRIBUTES, 1.0), "cell size": 0.5, "label": 0.9}


def test_an_answer_that_is_no_list_has_no_right_values(tmp_path: Path) -> None:
    """The shipped base has unlearned lists: it names one value or two, in the wrong places but by chance."""
    (tmp_path / "weights").symlink_to(PACKAGE / "assets" / "mini_base")
    shares = mini_letters.lists(tmp_path, SHIPPED, 24)
    assert list(shares) == list(ATTRIBUTES)
    assert len(mini_letters.unseen(shares)) == 12 and sum(shares.values()) < 1


def test_closed_questions_are_those_that_a_model_was_not_trained_on_and_the_gate_does_not_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked of the shipped base, by the recipes."""
    (tmp_path / "weights").symlink_to(PACKAGE / "assets" / "mini_base")
    share = mini_letters.closed_questions(tmp_path, SHIPPED, 12)
    with (tmp_path / "asked" / "verdicts.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["task"] for row in rows} == {"yes_no"} and len(rows) == 12
    assert share == pytest.approx(sum(row["correct"] == "1" for row in rows) / 12)
    ids = [json.loads(line)["id"] for line in (tmp_path / "asked" / "test.jsonl").read_text().splitlines()]
    assert ids[0] == "cell-2000000" and mini_letters.OFFSET > mini_base_gate.OFFSET + 100_000
