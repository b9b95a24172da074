"""Metrics while training: a fixed question set, best weights and early stopping by any metric."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from medtune.config import build
from medtune.data.sample import Sample
from medtune.errors import ConfigError, MedtuneError
from medtune.evaluation.result import Metric
from medtune.objectives.base import Objective
from medtune.training.config import TrainConfig
from medtune.training.questions import Answered, chosen, majority
from medtune.training.trainer import Trainer
from medtune.training.validation import EarlyStopping, Validated
from tests.evaluation.counting import PATH, pictures
from tests.runs import CELLS, LORA, SFT, SGD, TINY, die_at, launch, losses, metrics, tiny, weights

SOURCE = {"_component_": CELLS, "size": 4, "seed": 5, "offset": 50, "kind": "questions", "image_size": 16}
QUESTIONS = {"source": SOURCE, "limit": 6, "max_new_tokens": 4, "batch_size": 4, "resamples": 20, "answers": 2}
RUN: dict[str, Any] = {
    **SFT,
    "questions": {**QUESTIONS, "protocols": ["open", "multiple_choice"]},
    "validate_every_steps": 2,
    "monitor": "open/accuracy_macro",
    "optimizer": SGD,
    "max_steps": 6,
}


def asked(folder: Path) -> list[dict[str, Any]]:
    return [line for line in metrics(folder) if "open/accuracy_macro" in line]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    assert launch(tiny(folder, **RUN)) == [0]
    return folder


def test_the_questions_are_answered_every_n_steps_with_intervals(plain: Path) -> None:
    lines = asked(plain)
    assert [line["step"] for line in lines] == [2, 4, 6]
    for line in lines:
        assert 0 <= line["open/accuracy_macro"] <= 1 and "multiple_choice/accuracy_micro" in line
        low, high = line["intervals"]["open/accuracy_micro"]
        assert low <= line["open/accuracy_micro"] <= high
        assert len(line["answers"]) == 2 and set(line["answers"][0]) == {"id", "answer"}
    assert [one["id"] for one in lines[0]["answers"]] == [one["id"] for one in lines[-1]["answers"]]


def test_asking_changes_nothing_of_the_run(plain: Path, tmp_path: Path) -> None:
    quiet = {key: value for key, value in RUN.items() if key not in ("questions", "monitor")}
    assert launch(tiny(tmp_path, **quiet)) == [0]
    assert losses(tmp_path) == losses(plain)
    assert all(torch.equal(value, weights(plain)[name]) for name, value in weights(tmp_path).items())


def test_two_processes_ask_the_same_and_agree(plain: Path, tmp_path: Path) -> None:
    assert launch(tiny(tmp_path, **RUN, batch_size=2), world=2) == [0, 0]
    for ours, theirs in zip(asked(tmp_path), asked(plain), strict=True):
        assert ours["answers"] == theirs["answers"] and ours["open/accuracy_macro"] == theirs["open/accuracy_macro"]
    assert losses(tmp_path) == pytest.approx(losses(plain), abs=1e-6), "training goes on as if nothing was asked"


def test_adapters_checkpointed_layers_and_a_kill(tmp_path: Path) -> None:
    run = {**RUN, "model": LORA, "trainable": ["adapter"], "activation_checkpointing": True, "save_every_steps": 3}
    assert launch(tiny(tmp_path / "whole", **run)) == [0]
    assert launch(tiny(tmp_path / "killed", **run), harm=die_at(4)) == [9]
    assert launch(tiny(tmp_path / "killed", **run)) == [0]
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")


@pytest.mark.parametrize("world", [1, 2])
def test_a_run_that_begins_with_its_questions_trains_on(world: int, plain: Path, tmp_path: Path) -> None:
    """A signal cuts a validation off; the next start makes up for it before any training step."""

    def told() -> None:
        original = Trainer._optimizer_step

        def step(self: Trainer, batches: list) -> int:
            self.stop_signal = signal.SIGTERM if self.step == 3 else 0
            return original(self, batches)

        Trainer._optimizer_step = step  # type: ignore[method-assign]

    run = tiny(tmp_path, **RUN, batch_size=4 // world)
    assert launch(run, world, harm=told) == [128 + signal.SIGTERM] * world
    assert [line["step"] for line in asked(tmp_path)] == [2]
    assert launch(run, world) == [0] * world
    assert [line["step"] for line in asked(tmp_path)] == [2, 4, 6]
    assert losses(tmp_path) == pytest.approx(losses(plain), abs=0 if world == 1 else 1e-6)


def test_a_protocol_of_ones_own_is_monitored(tmp_path: Path) -> None:
    """It goes by its dotted path, has no options and no majority, and lower is better."""
    run = {**RUN, "monitor": "counting/absolute_error_micro", "max_steps": 2}
    run["questions"] = {**QUESTIONS, "protocols": [PATH], "source": write_numbers(tmp_path / "data")}
    assert launch(tiny(tmp_path / "run", **run)) == [0]
    (line,) = [line for line in metrics(tmp_path / "run") if "intervals" in line]
    assert line["counting/unread"] == 1.0 and "counting/absolute_error_micro" not in line, "no number was answered yet"
    best = json.loads((tmp_path / "run" / "summary.json").read_text())["best_validation"]
    assert (best["value"], best["worse"]) == (None, 1), "an untrained model does not end the run"
    trainer = Trainer(tiny(tmp_path / "other", **{**run, "monitor": "open/accuracy_macro"}))
    with pytest.raises(ConfigError, match="questions.protocols asks counting"):
        trainer.setup()


def measured(values: list[float]) -> Any:
    """Say these accuracies, one a validation, whatever the model answers."""

    def harm() -> None:
        original = Trainer._validate_if_due

        def due(self: Trainer) -> None:
            number = Metric(values[self.step // 2 - 1], "fraction", True, 6, None, "made up")
            said = Validated({}, Answered({"open/accuracy_macro": number}, []))
            self.validation.measure = lambda *_: said  # type: ignore[method-assign]
            original(self)

        Trainer._validate_if_due = due  # type: ignore[method-assign]

    return harm


def test_best_weights_and_early_stopping_follow_the_monitored_metric(tmp_path: Path) -> None:
    flat = {**RUN, "schedule": {"kind": "constant"}}
    config = tiny(tmp_path, **{**flat, "max_steps": 10}, early_stopping_patience=2)
    assert launch(config, harm=measured([0.2, 0.6, 0.5, 0.4, 0.9])) == [0]
    assert len(losses(tmp_path)) == 8, "two validations without a higher accuracy"
    short = tiny(tmp_path / "short", **{**flat, "max_steps": 4})
    assert launch(short, harm=measured([0.2, 0.6])) == [0]
    best, last = load_file(tmp_path / "best/model.safetensors"), load_file(tmp_path / "short/weights/model.safetensors")
    assert all(torch.equal(best[name], last[name]) for name in best), "the weights of step 4, the best"


def test_the_objectives_own_metrics_are_validated_too() -> None:
    class Preference(Objective):
        higher_is_better = {"accuracies": True}

    found = Validated({"validation_loss": 1.0, "validation_accuracies": 0.75, "validation_margin": 2.0})
    config = build(TrainConfig, {**needed(), "monitor": "validation_accuracies"}, "test")
    assert found.monitored(config, Preference()) == (0.75, True)
    config.monitor = "validation_loss"
    assert found.monitored(config, Preference()) == (1.0, False)
    config.monitor = "validation_margin"
    with pytest.raises(ConfigError, match="monitor_direction=higher"):
        found.monitored(config, Preference())
    config.monitor_direction = "lower"
    assert found.monitored(config, Preference()) == (2.0, False)
    config.monitor = "validation_accuracy"
    with pytest.raises(ConfigError, match="did you mean 'validation_accuracies'"):
        found.monitored(config, Preference())


def write_numbers(folder: Path) -> dict[str, Any]:
    """The questions of a protocol of one's own, with their images; the data set's config."""
    folder.mkdir()
    rows = []
    for sample in pictures():
        for name in sample.images:
            Image.new("RGB", (16, 16), "pink").save(folder / name)
        turns = [{"role": turn.role, "content": turn.content} for turn in sample.messages]
        rows.append({"id": sample.id, "images": list(sample.images), "messages": turns, "meta": sample.meta})
    (folder / "numbers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = str(folder / "numbers.jsonl")
    return {"_component_": "medtune.datasets.jsonl_dataset", "source": source, "image_root": str(folder)}


def needed() -> dict[str, Any]:
    return {name: TINY[name] for name in ("model", "dataset", "objective")} | {
        "output_dir": "x",
        "transform": {**TINY["transform"], "path": "x"},
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"monitor": "open/accuracy_macro"}, "needs the key 'questions'"),
        ({"questions": {**QUESTIONS, "protocols": ["open"]}, "monitor": "yes_no/accuracy"}, "belongs to the protocol"),
        ({"questions": {**QUESTIONS, "protocols": ["open"]}}, "needs the key 'dataset_val'"),
        ({"early_stopping_patience": 2}, "early_stopping_patience needs"),
    ],
)
def test_what_is_not_measured_cannot_be_monitored(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    held_out = {"dataset_val": TINY["dataset"]} if changes.get("monitor", "").startswith("open") else {}
    with pytest.raises(MedtuneError, match=message):
        Trainer(tiny(tmp_path, **SFT, **changes, **held_out)).setup()


def test_a_checkpoint_of_an_earlier_version_calls_the_value_loss() -> None:
    assert EarlyStopping.of({"loss": 2.0, "step": 8, "worse": 1, "checked": 10}) == EarlyStopping(2.0, 8, 1, 10)
    assert EarlyStopping.of({"value": 2.0, "step": 8, "worse": 1, "checked": 10}).value == 2.0


def test_questions_are_drawn_once_for_all_runs() -> None:
    assert chosen(5, 9) == [0, 1, 2, 3, 4]
    first = chosen(1000, 10)
    assert first == chosen(1000, 10) == sorted(set(first)) and len(first) == 10 and first[-1] > 500


def test_majority_of_the_set() -> None:
    def question(answer: str) -> Sample:
        meta = {"attribute": "size", "options": ["big", "small", "tiny"], "answer": answer}
        return Sample(answer, ("x.png",), (), meta)

    assert majority([question(one) for one in ("small", "big", "small")]) == {"size": "small"}
    assert majority([question(one) for one in ("small", "big")]) == {"size": "big"}
