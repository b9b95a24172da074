"""`plan` and `export` call components of known packages and of modules that the user names, and no others."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from medtune.cli.main import main
from medtune.config import import_path, instantiate, save_config
from medtune.errors import ConfigError
from medtune.models.mini import mini_vlm
from medtune.models.weights import save_hf
from medtune.training.checkpoints import TrainingState, save_checkpoint
from medtune.trust import trusting
from tests.runs import TINY, tiny

SIZES = {key: value for key, value in TINY["model"].items() if key != "_component_"}
STRANGE = {
    "a program": "os.system",
    "a program by its own module": "posix.system",
    "code in a text": "builtins.exec",
    "a pickle": "torch.load",
    "code from the network": "torch.hub.load",
    "a compiler": "torch.utils.cpp_extension.load",
    "a component in a component": "torchtune.config.instantiate",
    "medtune's own door to it": "medtune.config.instantiate",
    "a recipe": "medtune.sweep.run.run_recipe",
    "what a module of medtune imports": "medtune.models.weights.partial",
    "a function of another package": "medtune.models.common.tokenizer.Tokenizer",
    "a longer name": "medtuned.models.x",
}


@pytest.fixture
def strange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that a stranger's folder could hold; it leaves a file when it is imported or called."""
    (tmp_path / "theirs.py").write_text(
        f"open({str(tmp_path / 'imported')!r}, 'w')\n"
        "from medtune.models.mini import mini_vlm\n"
        f"def model(**sizes):\n    open({str(tmp_path / 'called')!r}, 'w')\n    return mini_vlm(**sizes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    return "theirs.model"


@pytest.mark.parametrize("case", STRANGE)
def test_it_is_refused_and_not_called(case: str) -> None:
    with trusting(), pytest.raises(ConfigError, match="is not called|has no|cannot import"):
        import_path(STRANGE[case])


@pytest.mark.parametrize(
    "path",
    [
        "torch.optim.AdamW", "torchao.optim.AdamW8bit", "bitsandbytes.optim.PagedAdamW8bit",
        "torchtune.training.metric_logging.DiskLogger", "medtune.models.mini.mini_vlm",
        "medtune.models.mini.qlora_mini_vlm", "medtune.objectives.SFT", "medtune.datasets.jsonl_dataset",
        "medtune.generation.backends.openai_api.OpenAIServer", "medtune.generation.server.OpenAIServer",
    ],
)  # fmt: skip
def test_components_of_known_packages_are_called(path: str) -> None:
    with trusting():
        assert callable(import_path(path))


def test_without_the_restriction_a_recipe_calls_what_its_user_names() -> None:
    assert instantiate({"_component_": "fractions.Fraction", "numerator": 3}) == 3
    with trusting(), pytest.raises(ConfigError, match="--trust fractions"):
        instantiate({"_component_": "fractions.Fraction", "numerator": 3})
    with trusting(["fractions"]), trusting():  # an inner context adds to the outer one
        assert instantiate({"_component_": "fractions.Fraction", "numerator": 3}) == 3


def test_plan_runs_no_program_of_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_config(tiny(tmp_path / "run"), tmp_path / "config.yaml")
    called = tmp_path / "called"
    component = f"dataset={{_component_: os.system, command: 'touch {called}'}}"
    assert main(["plan", str(tmp_path / "config.yaml"), component]) == 2
    assert "os.system is not called" in capsys.readouterr().err and not called.exists()
    text = (tmp_path / "config.yaml").read_text()
    nested = "{_component_: medtune.datasets.mixture_dataset, parts: [{dataset: {_component_: os.getcwd}}]}"
    (tmp_path / "config.yaml").write_text(f"{text}dataset_val: {nested}\n".replace("dataset_val: null\n", ""))
    assert main(["plan", str(tmp_path / "config.yaml")]) == 2
    assert "os.getcwd is not called" in capsys.readouterr().err


def test_plan_calls_a_module_that_the_user_trusts(
    strange: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_config(tiny(tmp_path / "run"), tmp_path / "config.yaml")
    call = ["plan", str(tmp_path / "config.yaml"), f"model._component_={strange}"]
    assert main(call) == 2
    assert "--trust theirs" in capsys.readouterr().err and not (tmp_path / "imported").exists()
    assert main([*call, "--trust", "theirs"]) == 0
    assert (tmp_path / "called").exists()


@pytest.fixture
def strangers_run(strange: str, tmp_path: Path) -> Path:
    """A run whose config names a stranger's builder."""
    model = mini_vlm(**SIZES)
    base = save_hf(model.state_dict(), model.family, tmp_path / "base")
    name, parameter = next(iter(model.named_parameters()))
    run = tmp_path / "run"
    save_checkpoint(run / "checkpoints", TrainingState({name: parameter.detach()}, values={"step": 1}), keep=1)
    config = {"model": {**SIZES, "_component_": strange}, "checkpoint": str(base), "dtype": "fp32"}
    (run / "config.yaml").write_text(json.dumps(config))
    return run


def test_export_runs_no_code_that_a_strangers_run_names(
    strangers_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["export", str(strangers_run), "--to", "hf", "--out", str(tmp_path / "out")]
    assert main(call) == 2
    assert "theirs.model is not called" in capsys.readouterr().err
    assert not (tmp_path / "imported").exists() and not (tmp_path / "out").exists()
    assert main([*call, "--trust", "theirs"]) == 0
    assert (tmp_path / "called").exists() and (tmp_path / "out" / "config.json").is_file()


def test_export_called_from_python_is_restricted_too(strangers_run: Path, tmp_path: Path) -> None:
    from medtune.export import export

    with pytest.raises(ConfigError, match="is not called"):
        export(strangers_run, "hf", tmp_path / "out")
    assert not (tmp_path / "imported").exists()
    assert export(strangers_run, "hf", tmp_path / "out", trust=["theirs"], say=str).is_dir()
    shutil.rmtree(tmp_path / "out")
