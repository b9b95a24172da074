"""The folder of a run: nothing of anybody else's is replaced, and one set of weights is always there."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from medtune.data.folders import RECORD, noted
from medtune.errors import CheckpointError, ConfigError, MedtuneError
from medtune.training.run_folder import NAMES, claim_run_folder, is_run, refuse_foreign_files
from medtune.training.trainer import Trainer
from tests.runs import die_at, kill_self, launch, tiny, weights


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(folder: Path, **changes: Any) -> str:
    """What a run says that is refused; nothing may have been written."""
    before = tree(folder)
    with pytest.raises(MedtuneError) as caught:
        Trainer(tiny(folder, **changes)).run()
    assert tree(folder) == before
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("weights/thesis.txt", "weights"),
        ("best/model.safetensors", "best"),
        ("checkpoints/step_100/model.pt", "checkpoints"),
        ("metrics.jsonl", "metrics.jsonl"),
        ("config.yaml", "config.yaml"),
        ("nonfinite_step_3.json", "nonfinite_step_3.json"),
        ("summary.json", "summary.json"),
        ("exemplar/notes", "exemplar"),
    ],
)
def test_a_folder_with_somebody_elses_files_is_refused(name: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("name: mine\n")
    message = refused(tmp_path)
    assert message.startswith(f"{tmp_path} holds {said}, which train would replace") and "choose another" in message


def test_other_files_of_the_folder_stay(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert launch(tiny(tmp_path, max_steps=1)) == [0]
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    written = {path.name for path in tmp_path.iterdir()} - {"thesis.txt", ".lock", RECORD}
    assert written <= set(NAMES) and set(noted(tmp_path, "train")) == {*NAMES, "weights/model.safetensors"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    assert launch(tiny(folder, max_steps=1)) == [0]
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def without_record(run: Path) -> None:
    """As an older version left it."""
    (run / RECORD).unlink()


@pytest.mark.parametrize("older", [False, True])
def test_what_was_put_into_the_weights_is_not_deleted(older: bool, run: Path) -> None:
    if older:
        without_record(run)
    (run / "weights" / "thesis.txt").write_text("mine")
    message = refused(run, max_steps=1)
    assert f"{run / 'weights'} holds thesis.txt, which no run wrote" in message and "move it away" in message
    (run / "weights" / "thesis.txt").unlink()
    assert launch(tiny(run, max_steps=1)) == [0]


def test_with_a_record_only_what_it_lists_is_replaced(run: Path) -> None:
    (run / "weights" / "quantised.safetensors").write_text("mine")
    assert "holds quantised.safetensors" in refused(run, max_steps=1)


def test_what_is_put_into_the_weights_while_the_run_goes_on(run: Path) -> None:
    (run / "weights" / "a").write_text("mine")
    (run / "weights" / "b").write_text("mine")
    with pytest.raises(ConfigError, match="holds a, b, which no run wrote, and is replaced as a whole; move them away"):
        refuse_foreign_files(run / "weights")


@pytest.mark.parametrize("left", [("checkpoints", "metrics.jsonl"), ("config.yaml", "metrics.jsonl", "weights")])
def test_a_run_of_an_older_version_goes_on(left: tuple[str, ...], run: Path) -> None:
    """Known by its checkpoints, or by its config."""
    for path in run.iterdir():
        if path.name not in left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert is_run(run)
    assert launch(tiny(run, max_steps=1)) == [0]
    assert noted(run, "train")


def test_anybodys_config_makes_no_run(tmp_path: Path) -> None:
    for content in ("model: x\n", "- a\n", "{", "objective: a\nmodel: ${nothing}\n", "\x00"):
        (tmp_path / "config.yaml").write_text(content)
        assert not is_run(tmp_path), content


@pytest.mark.parametrize("key", ["checkpoint", "transform", "objective", "dataset"])
def test_a_run_does_not_replace_what_it_starts_from(key: str, run: Path) -> None:
    inside = str(run / "weights")
    changes: dict[str, Any] = {
        "checkpoint": {"checkpoint": inside},
        "transform": {},
        "objective": {"objective": {"instruction_file": f"{inside}/model.safetensors"}},
        "dataset": {"dataset": {"source": str(run / "metrics.jsonl")}},
    }[key]
    config = tiny(run, max_steps=1)
    for name, value in changes.items():
        setattr(config, name, {**getattr(config, name), **value} if isinstance(value, dict) else value)
    if key == "transform":
        config.transform["path"] = inside
    before = tree(run)
    with pytest.raises(ConfigError, match=rf"^{key}.*lies in output_dir .*set another output_dir"):
        claim_run_folder(config)
    assert tree(run) == before


def test_a_base_beside_the_runs_own_files_is_allowed(run: Path) -> None:
    """Nothing of it is replaced."""
    shutil.copy(run / "weights" / "model.safetensors", run / "model.safetensors")
    claim_run_folder(tiny(run, checkpoint=str(run / "model.safetensors"))).close()


@pytest.mark.parametrize("moment", ["before", "between", "after"])
@pytest.mark.parametrize("how", ["exchange", "in two steps"])
def test_killed_while_the_weights_are_replaced(how: str, moment: str, run: Path) -> None:
    """A run that is started again writes its weights again; one set of them is always there, or comes back."""
    expected = weights(run)

    def harm() -> None:
        from medtune.data import folders

        swap, replace = folders.exchange, folders.os.replace
        if how == "exchange":

            def exchange(*paths: Path) -> bool:
                if moment == "before":
                    kill_self()
                done = swap(*paths)
                kill_self()
                return done

            folders.exchange = exchange
        else:
            folders.exchange = lambda *_: False

            def renamed(source: Path, target: Path) -> None:
                step = {".weights.replaced": "before", "weights": "between"}.get(Path(target).name)
                if step == moment:
                    kill_self()
                replace(source, target)
                if moment == "after" and step == "between":
                    kill_self()

            folders.os.replace = renamed  # type: ignore[assignment]

    assert launch(tiny(run, max_steps=1), harm=harm) == [-9]
    if how == "exchange" or moment != "between":
        assert weights(run).keys() == expected.keys()
    claim_run_folder(tiny(run, max_steps=1)).close()
    assert all((value == expected[name]).all() for name, value in weights(run).items()), "put right at the start"
    assert launch(tiny(run, max_steps=1)) == [0]
    assert not list(run.glob(".weights*"))


def test_a_folder_that_is_in_use_is_not_claimed(tmp_path: Path) -> None:
    lock = claim_run_folder(tiny(tmp_path))
    with pytest.raises(CheckpointError, match="in use by another run"):
        claim_run_folder(tiny(tmp_path))
    lock.close()
    claim_run_folder(tiny(tmp_path)).close()


def test_the_record_is_there_before_anything_else(tmp_path: Path) -> None:
    assert launch(tiny(tmp_path), harm=die_at(0)) == [9]
    assert json.loads((tmp_path / RECORD).read_text())["writes"]["train"] == sorted(NAMES)
    assert launch(tiny(tmp_path, max_steps=1)) == [0]
