"""A method of one's own trains on every family by the interfaces alone (``tests/invariants/preference.py``)."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from medtune.config import instantiate, save_config
from medtune.errors import MedtuneError
from medtune.training.plan import plan
from medtune.training.trainer import Trainer
from tests.invariants.test_vitask import INTERNVL, LLAVA
from tests.runs import SGD, die_at, largest_difference, launch, losses, metrics, tiny, weights
from tests.tiny_task import task_rows, write_task

LLAMA: dict[str, Any] = {"trainable": ["fusion", "decoder"]}
FAMILIES = {"llama3_2_vision": LLAMA, "internvl": INTERNVL, "llava": LLAVA}
PREFERENCE = "tests.invariants.preference.Preference"
BETA = 0.5


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    rows = task_rows()
    answers = sorted({row["messages"][-1]["content"] for row in rows})
    for number, row in enumerate(rows):
        right = row["messages"][-1]["content"]
        row["meta"]["rejected"] = [answer for answer in answers if answer != right][number % (len(answers) - 1)]
    return {
        "dataset": write_task(tmp_path_factory.mktemp("pairs"), rows),
        "objective": {"_component_": PREFERENCE, "beta": BETA},
        "learning_rates": {},
        "optimizer": SGD,
        "max_steps": 6,
    }


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> dict[str, Any]:
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def plain(family: dict[str, Any], pairs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    assert launch(tiny(folder, **pairs, **family)) == [0]
    return folder


def test_the_first_step_knows_nothing_and_later_ones_do(plain: Path) -> None:
    first, *_, last = [line for line in metrics(plain) if "loss" in line]
    # Dropout acts on the policy's adapters alone, which give nothing while lora_b is zero.
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6) and first["margins"] == pytest.approx(0, abs=1e-6)
    assert last["margins"] != 0 and first["weight"] == 4


def test_two_processes_train_as_one(plain: Path, family: dict[str, Any], pairs: dict[str, Any], tmp_path: Path) -> None:
    if "lora_dropout" in family.get("model", {}):
        family = {**family, "model": {**family["model"], "lora_dropout": 0.0}}  # drawn per process
        plain = tmp_path / "plain"
        assert launch(tiny(plain, **pairs, **family)) == [0]
    assert launch(tiny(tmp_path / "two", **{**pairs, **family, "batch_size": 2}), world=2) == [0, 0]
    assert losses(tmp_path / "two") == pytest.approx(losses(plain), abs=1e-6)
    assert largest_difference(weights(tmp_path / "two"), weights(plain)) < 1e-6


def test_a_killed_run_is_resumed_to_the_bit(
    plain: Path, family: dict[str, Any], pairs: dict[str, Any], tmp_path: Path
) -> None:
    run = {**pairs, **family, "save_every_steps": 2}
    assert launch(tiny(tmp_path, **run), harm=die_at(3)) == [9]
    assert launch(tiny(tmp_path, **run)) == [0]
    assert metrics(tmp_path) == metrics(plain) and largest_difference(weights(tmp_path), weights(plain)) == 0.0


def test_the_reference_is_frozen_and_no_part_of_the_run(
    family: dict[str, Any], pairs: dict[str, Any], tmp_path: Path
) -> None:
    trainer = Trainer(tiny(tmp_path, **pairs, **family))
    trainer.setup()
    reference = trainer.objective.beside["reference"]
    assert not reference.training and not any(p.requires_grad for p in reference.parameters())
    assert not dict(trainer.objective.named_parameters()) and not trainer.objective.state_dict()
    before = {name: value.clone() for name, value in reference.state_dict().items()}
    trainer._optimizer_step(next(trainer.feed.epoch(0)))
    assert all(torch.equal(value, before[name]) for name, value in reference.state_dict().items())
    trainer._close()


def test_a_step_is_the_equation_pair_by_pair(pairs: dict[str, Any], tmp_path: Path) -> None:
    trainer = Trainer(tiny(tmp_path, **pairs, **LLAVA))
    trainer.setup()
    model, objective, transform = trainer.model, trainer.objective, trainer.transform
    torch.manual_seed(3)
    with torch.no_grad():  # so that policy and reference differ
        for parameter in trainer.trained.values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    (batch,) = next(trainer.feed.epoch(0))
    expected = torch.zeros((), dtype=torch.float64)
    source = trainer.feed.source
    samples = {source[index].id: source[index] for index in range(len(source))}
    for name in batch["ids"]:
        sample, sums = samples[name], {}
        images = source.open_images(sample)
        for kind, shown in (("chosen", sample), ("rejected", trainer.feed.dataset.items.rejected(source, sample))):
            row = transform.collate([{**transform(shown, images), "id": name}])
            for owner, net in (("policy", model), ("reference", objective.beside["reference"])):
                hidden = net.hidden(row["tokens"], net.encode(row["vision"]), vision_mask=row["vision_mask"])
                logs, labels = net.logits(hidden)[0].double().log_softmax(-1), row["labels"][0].tolist()
                sums[owner, kind] = sum(logs[at - 1, label] for at, label in enumerate(labels) if label != -100)
        gain = {kind: sums["policy", kind] - sums["reference", kind] for kind in ("chosen", "rejected")}
        expected = expected - F.logsigmoid(BETA * (gain["chosen"] - gain["rejected"]))
    assert objective(model, batch).loss_sum.item() == pytest.approx(expected.item(), rel=1e-5)
    assert abs(expected.item() - 4 * math.log(2)) > 1e-3
    trainer._close()


@pytest.mark.parametrize(
    ("rejected", "message"),
    [("", "meta.rejected is empty"), ("thin " * 300, r"tokens, the limit is"), (None, "both answers .* are the same")],
)
def test_a_bad_rejected_answer_is_found_before_training(rejected: str | None, message: str, tmp_path: Path) -> None:
    rows = task_rows()
    for row in rows:
        row["meta"]["rejected"] = "blue-green"
    rows[7]["meta"]["rejected"] = rows[7]["messages"][-1]["content"] if rejected is None else rejected
    run = {
        "dataset": write_task(tmp_path / "data", rows),
        "objective": {"_component_": PREFERENCE},
        "learning_rates": {},
    }
    limited = {**LLAVA, "transform": {**LLAVA["transform"], "max_seq_len": 200}}
    with pytest.raises(MedtuneError, match=rf"1 of 21 rows(?s:.*)line 8.*{message}"):
        Trainer(tiny(tmp_path / "run", **run, **limited)).setup()


def test_validation_and_monitoring_know_the_methods_metrics(pairs: dict[str, Any], tmp_path: Path) -> None:
    run = {
        **pairs,
        **LLAVA,
        "dataset_val": pairs["dataset"],
        "allow_leakage": ["same_file"],
        "monitor": "validation_accuracies",
        "max_steps": 2,
    }
    assert launch(tiny(tmp_path, **run)) == [0]
    (line,) = [line for line in metrics(tmp_path) if "validation_accuracies" in line]
    assert 0 <= line["validation_accuracies"] <= 1 and line["validation_loss"] > 0 and "validation_margins" in line
    best = json.loads((tmp_path / "summary.json").read_text())["best_validation"]
    assert best["monitor"] == "validation_accuracies" and best["value"] == line["validation_accuracies"]


def test_the_plan_counts_the_reference(pairs: dict[str, Any], tmp_path: Path) -> None:
    config = tiny(tmp_path, **pairs, **LLAVA)
    save_config(config, tmp_path / "config.yaml")
    found = plan(str(tmp_path / "config.yaml"))
    assert found.memory["companions"] == found.memory["weights"] > 0
    assert instantiate(config.objective).rows == 2
