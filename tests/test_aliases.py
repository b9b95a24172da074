"""Every name that a user could write down at commit d377d55 is still understood.

``tests/golden/components_d377d55.json`` holds the components, parts and metrics of that commit, and
``tests/golden/configs_d377d55`` configs as runs wrote them then. Nothing is ever removed from either.
"""

import ast
import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from medtune import aliases
from medtune.config import import_path, load_config
from medtune.errors import CheckpointError, ConfigError
from medtune.evaluation.evaluation import evaluate
from medtune.evaluation.protocols.registry import PROTOCOLS, plan_queries
from medtune.generation.identity import claim
from medtune.models import mini
from medtune.models.common.parts import ADAPTER
from medtune.objectives import InstFree, VITask
from medtune.reporting.runs import read_run
from medtune.sweep.config import SweepConfig
from medtune.training.checkpoints import check_identity
from medtune.training.config import TrainConfig
from tests.evaluation.classes import MAJORITY, answered, class_questions
from tests.evaluation.ranked import BOTH, answers, many
from tests.evaluation.tools import question
from tests.recipe_modules import load_recipe

GOLDEN = Path(__file__).parent / "golden"
NAMES: dict[str, Any] = json.loads((GOLDEN / "components_d377d55.json").read_text())
SAVED = sorted((GOLDEN / "configs_d377d55").glob("*.yaml"))


@functools.cache
def parts_of_today() -> frozenset[str]:
    """The parts that models and methods have, and the group of all adapters."""
    with torch.device("meta"):
        builders = (mini.lora_mini_vlm, mini.lora_mini_internvl, mini.lora_mini_llava)
        models = [build(vocab_size=1024, lora_attn_modules=["q_proj"]) for build in builders]
    methods = [InstFree(), VITask(tsm="x")]
    return frozenset({ADAPTER, *(part for owner in (*models, *methods) for part in owner.parts())})


TABLES = {"COMPONENTS": aliases.resolve_component, "PARTS": aliases.resolve_part, "METRICS": aliases.resolve_metric}


@pytest.mark.parametrize("path", NAMES["components"])
def test_every_component_of_old_is_found(path: str) -> None:
    assert callable(import_path(path))


def test_every_part_of_old_is_one_of_today() -> None:
    for part in NAMES["parts"]:
        assert aliases.resolve_part(part) in parts_of_today()


def keys_of_results() -> set[str]:
    """Every key under which the evaluator reports a number today."""
    found: set[str] = set()

    def walk(node: Any) -> None:
        for key, value in node.items() if isinstance(node, dict) else ():
            if isinstance(value, dict) and "value" in value:
                found.add(key)
            walk(value)

    shapes = [question(f"s{i}", "cell size", ["big", "small"], "big", f"{i}.png") for i in range(3)]
    plain = {"protocols": PROTOCOLS, "swapped": ("multiple_choice",)}
    labels = {"protocols": ("classification",), "swapped": ("classification",)}
    for samples, asked in ((shapes, plain), (class_questions(), labels)):
        rows = []
        for query in plan_queries(samples, **asked):
            scores = None
            if query.task == "classification" and "chest" in query.id:
                scores = [0.1, 0.2, 0.3]
            elif query.continuations or query.task == "classification":
                scores = [0.0] * max(len(query.continuations), len(query.meta.get("classes", [])))
            rows.append(answered(query, query.references[0] if query.references else "A cell is shown.", scores))
        walk(evaluate(samples, rows, {**MAJORITY, "cell size": "big"}, name="a", resamples=3, **asked).results)
    walk(evaluate(many(), answers(1.0, **BOTH), MAJORITY, name="a", resamples=3, **BOTH).results)
    return found


def test_every_metric_of_old_results_is_reported_today() -> None:
    today = keys_of_results()
    assert {aliases.resolve_metric(name) for name in NAMES["metrics"]["results.json"]} <= today


def test_every_metric_of_an_old_training_run_is_logged_today(checkout: Path) -> None:
    written: set[Any] = set()
    for folder in ("training", "objectives", "losses"):
        for path in sorted((checkout / "medtune" / folder).rglob("*.py")):
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            written |= {node.value for node in nodes if isinstance(node, ast.Constant)}
    for name in NAMES["metrics"]["metrics.jsonl"]:
        today = aliases.resolve_metric(name)
        if today.startswith("lr/"):
            assert today.removeprefix("lr/") in parts_of_today()
        else:
            assert today in written, name


@pytest.mark.parametrize("path", SAVED, ids=lambda path: path.stem)
def test_every_config_that_a_run_wrote_is_read(path: Path) -> None:
    kind = path.stem.split("_")[0]
    if kind == "train":
        config_class: type[Any] = TrainConfig
    elif kind == "sweep":
        config_class = SweepConfig
    else:
        config_class = getattr(load_recipe(kind), f"{kind.capitalize()}Config")
    assert load_config(str(path), config_class)


def test_all_kinds_of_configs_are_kept() -> None:
    assert {path.stem.split("_")[0] for path in SAVED} == {"train", "predict", "evaluate", "sweep"}


def test_the_tables_are_flat() -> None:
    for name, resolve in TABLES.items():
        for old, new in getattr(aliases, name).items():
            assert old != new == resolve(new), f"{name}: {old} leads to {new}, which is itself an old name"


def test_an_old_module_path_stands_for_every_name_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aliases, "COMPONENTS", {"old.place": "torch.optim", "old.place.Adam": "torch.optim.AdamW"})
    assert aliases.resolve_component("old.place.SGD") == "torch.optim.SGD"
    assert aliases.resolve_component("old.place.Adam") == "torch.optim.AdamW"
    assert aliases.resolve_component("old.placement.SGD") == "old.placement.SGD"
    assert import_path("old.place.SGD") is import_path("torch.optim.SGD")
    with pytest.raises(ConfigError, match="'torch.optim' has no 'SDG'; did you mean 'SGD'"):
        import_path("old.place.SDG")


def test_a_run_goes_on_under_a_new_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = {
        "objective": {"_component_": "old.Method", "nested": [{"_component_": "old.Other", "a": 1}]},
        "optimizer": "old.Optimizer",
        "trainable": ["eyes", "decoder"],
    }
    new = {
        "objective": {"_component_": "new.Method", "nested": [{"_component_": "new.Other", "a": 1}]},
        "optimizer": "new.Optimizer",
        "trainable": ["vision", "decoder"],
    }
    with pytest.raises(CheckpointError, match="objective"):
        check_identity(tmp_path, old, new)
    monkeypatch.setattr(aliases, "COMPONENTS", {"old": "new"})
    monkeypatch.setattr(aliases, "PARTS", {"eyes": "vision"})
    check_identity(tmp_path, old, new)
    check_identity(tmp_path, new, old)
    new["objective"]["nested"][0]["a"] = 2
    with pytest.raises(CheckpointError, match="objective"):
        check_identity(tmp_path, old, new)


def test_predictions_go_on_under_a_new_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    claim(path, {"config": {"questions": {"_component_": "old.rows"}}})
    path.write_text("{}\n")
    with pytest.raises(ConfigError, match="made with other settings"):
        claim(path, {"config": {"questions": {"_component_": "new.rows"}}})
    monkeypatch.setattr(aliases, "COMPONENTS", {"old": "new"})
    claim(path, {"config": {"questions": {"_component_": "new.rows"}}})


def test_an_old_part_trains_under_its_new_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aliases, "PARTS", {"eyes": "vision"})
    config = load_config("instfree/mini", TrainConfig, ["trainable=[eyes]", "learning_rates.eyes=0.1"])
    assert config.trainable == ["vision"]
    assert config.learning_rates["vision"] == 0.1


def test_a_report_reads_old_metrics_under_their_new_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(aliases, "METRICS", {"loss_old": "loss", "share": "accuracy"})
    monkeypatch.setattr(aliases, "PARTS", {"eyes": "vision"})
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss_old": 2.0, "lr/eyes": 0.1}\n')
    number = {"value": 0.5, "unit": "fraction"}
    results = {"schema": "medtune-results-1", "name": "a", "retention": {}}
    scored = {"open": {"attributes": {"share": {"share": number}}, "swapped": None}}
    (tmp_path / "results.json").write_text(json.dumps({**results, "protocols": scored}))
    run = read_run(tmp_path)
    assert run.metrics == [{"step": 1, "loss": 2.0, "lr/vision": 0.1}]
    assert run.results["protocols"] == {"open": {"attributes": {"share": {"accuracy": number}}, "swapped": None}}
