"""What a training config refuses before anything is built."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from medtune import aliases
from medtune.config import Component, load_config
from medtune.errors import ConfigError
from medtune.objectives import SFT, Classification, InstFree, VITask
from medtune.training.config import LOGGER_PACKAGES, QuestionsConfig, TrainConfig, check_loggers, require_objective
from medtune.training.plan import plan
from tests.recipe_modules import load_recipe
from tests.runs import tiny


class Tuned(InstFree):
    """A method of a user's own, built on a packaged one."""


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return load_config("instfree/mini", TrainConfig, [f"output_dir={tmp_path}"])


def test_a_recipe_takes_its_method_and_what_is_built_on_it(config: TrainConfig) -> None:
    require_objective(config, InstFree)
    config.objective["_component_"] = f"{__name__}.Tuned"
    require_objective(config, InstFree)
    config.objective["_component_"] = "medtune.objectives.instfree.InstFree"
    require_objective(config, InstFree)


def test_an_old_name_of_the_method_counts(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aliases, "COMPONENTS", {"medtune.old": "medtune.objectives"})
    config.objective["_component_"] = "medtune.old.InstFree"
    require_objective(config, InstFree)
    with pytest.raises(ConfigError, match="this recipe trains SFT, not medtune.old.InstFree"):
        require_objective(config, SFT)


def test_a_class_that_only_bears_the_name_does_not_count(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "InstFree", type("InstFree", (), {}))
    config.objective["_component_"] = f"{__name__}.InstFree"
    with pytest.raises(ConfigError, match=f"this recipe trains InstFree, not {__name__}.InstFree"):
        require_objective(config, Tuned.__mro__[1])


@pytest.mark.parametrize(("recipe", "method"), [("instfree", InstFree), ("vitask", VITask), ("tsm", Classification)])
def test_each_recipe_refuses_another_method(
    recipe: str, method: type, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config", "sft/mini", f"output_dir={tmp_path}"]
    assert load_recipe(recipe).main(arguments) == 2
    assert f"this recipe trains {method.__name__}, not medtune.objectives.SFT" in capsys.readouterr().err


LOGGER = "torchtune.training.metric_logging"


def with_logger(folder: Path, path: str, **arguments: Any) -> TrainConfig:
    return tiny(folder, loggers=[{"_component_": path, **arguments}])


@pytest.mark.parametrize("name", sorted(LOGGER_PACKAGES))
def test_a_logger_whose_package_is_missing_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {"log_dir": "a"} if name == "TensorBoardLogger" else {}
    config = with_logger(tmp_path, f"{LOGGER}.{name}", **arguments)
    package = LOGGER_PACKAGES[name]
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None if asked == package else found(asked))
    with pytest.raises(ConfigError, match=f"loggers.0: {LOGGER}.{name} needs the package {package}, .*pip install"):
        check_loggers(config)
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: object())
    check_loggers(config)


def test_plan_and_the_trainer_find_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    if importlib.util.find_spec("comet_ml") is not None:
        pytest.skip("comet_ml is installed here")
    wanted = f"loggers=[{{_component_: {LOGGER}.CometLogger}}]"
    assert any("needs the package comet_ml" in problem for problem in plan("instfree/mini", [wanted]).problems)
    assert load_recipe("instfree").main(["--config", "instfree/mini", f"output_dir={tmp_path / 'run'}", wanted]) == 2
    assert "needs the package comet_ml" in capsys.readouterr().err


def test_plan_says_what_type_is_expected(capsys: pytest.CaptureFixture[str]) -> None:
    from medtune.cli.main import main

    assert main(["plan", "instfree/mini", "objective.alpha=abc"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "instfree/mini.yaml, override 'objective.alpha=abc': objective.alpha: expected a number, got 'abc'" in told


def test_questions_by_default() -> None:
    asked = QuestionsConfig(source=Component(_component_="x.y"))
    assert (asked.protocols, asked.limit, asked.batch_size) == (["open"], 64, 16)
    assert (asked.max_new_tokens, asked.answers, asked.resamples) == (32, 8, 300)


@pytest.mark.parametrize("changes", [{"answers": -1}, {"protocols": []}, {"limit": 0}, {"resamples": 0}])
def test_questions_that_cannot_be_asked_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="questions"):
        QuestionsConfig(source=Component(_component_="x.y"), **changes)
    assert QuestionsConfig(source=Component(_component_="x.y"), answers=0).answers == 0


COUNTS = ("batch_size", "gradient_accumulation_steps", "log_every_steps", "keep_checkpoints", "max_steps", "epochs")
EVERY = ("save_every_steps", "validate_every_steps", "early_stopping_patience")


@pytest.mark.parametrize(("name", "least"), [*((name, 1) for name in (*COUNTS, *EVERY)), ("num_workers", 0)])
def test_a_count_below_its_least_is_refused_by_its_key(name: str, least: int, tmp_path: Path) -> None:
    assert getattr(tiny(tmp_path, **{name: least}), name) == least
    with pytest.raises(ConfigError, match=f"{name} must be at least {least}, got {least - 1}"):
        tiny(tmp_path, **{name: least - 1})
