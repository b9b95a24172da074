"""``$MEDTUNE_DATA`` alone names the folder of the data; without it configs are read, and using a path is an error."""

import os
import subprocess
from pathlib import Path

import pytest

from medtune.cli.doctor import check_data
from medtune.config import UNSET, data_root, instantiate, load_config
from medtune.errors import ConfigError, DataError
from medtune.training.config import TrainConfig
from tests.recipe_modules import load_recipe


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDTUNE_DATA", raising=False)


def test_the_variable_is_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDTUNE_DATA", "/somewhere")
    assert data_root() == Path("/somewhere")
    assert load_config("instfree/mini_wbcatt", TrainConfig).dataset["image_root"] == "/somewhere/wbcatt/wbcatt_128.tar"


@pytest.mark.parametrize("empty", [True, False])
def test_without_it_a_config_is_read_and_its_data_are_not(empty: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDTUNE_DATA", "") if empty else monkeypatch.delenv("MEDTUNE_DATA", raising=False)
    assert data_root() is None
    config = load_config("instfree/mini_wbcatt", TrainConfig)
    assert config.dataset["image_root"].startswith(UNSET)
    said = r"jsonl_dataset: image_root lies in the data folder, but \$MEDTUNE_DATA is not set: export MEDTUNE_DATA="
    with pytest.raises(ConfigError, match=said):
        instantiate(config.dataset)


def test_a_path_given_by_hand_needs_no_root(unset: None, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": "a", "images": [], "messages": [{"role": "user", "content": "a"}]}\n')
    overrides = [f"dataset.source={tmp_path / 'a.jsonl'}", f"dataset.image_root={tmp_path}"]
    assert len(instantiate(load_config("instfree/mini_wbcatt", TrainConfig, overrides).dataset)) == 1


def test_a_recipe_says_it_in_one_line(unset: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare = load_recipe("prepare")
    assert prepare.main(["--config", "prepare/wbcatt", f"output_dir={tmp_path}"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "$MEDTUNE_DATA is not set" in told


def test_an_image_root_that_no_component_takes_says_it_too(unset: None) -> None:
    config = load_config("prepare/wbcatt", load_recipe("prepare").PrepareConfig)
    with pytest.raises(DataError, match=r"\$MEDTUNE_DATA is not set/wbcatt/images"):
        load_recipe("prepare").ImageCheck("wbcatt", config.image_root)


def test_doctor_knows_the_three_cases(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MEDTUNE_DATA", raising=False)
    assert check_data().status == "ok" and "MEDTUNE_DATA is not set" in check_data().detail
    monkeypatch.setenv("MEDTUNE_DATA", str(tmp_path / "absent"))
    assert check_data().status == "FAIL"
    (tmp_path / "a").mkdir()
    monkeypatch.setenv("MEDTUNE_DATA", str(tmp_path))
    assert check_data().status == "ok" and check_data().detail == f"{tmp_path}: a"


@pytest.mark.parametrize(("named", "beside"), [(None, True), ("/named", True), (None, False)])
def test_ci_names_the_folder_beside_the_checkout(
    named: str | None, beside: bool, checkout: Path, tmp_path: Path
) -> None:
    (tmp_path / "repository/.ci").mkdir(parents=True)
    (tmp_path / "repository/.ci/run").write_text((checkout / ".ci/run").read_text())
    (tmp_path / "repository/Makefile").write_text('test:\n\t@echo "data: $$MEDTUNE_DATA"\n')
    if beside:
        (tmp_path / "shared/data").mkdir(parents=True)
    environment = {key: value for key, value in os.environ.items() if key != "MEDTUNE_DATA"}
    environment |= {} if named is None else {"MEDTUNE_DATA": named}
    run = subprocess.run(
        ["sh", str(tmp_path / "repository/.ci/run")], capture_output=True, text=True, env=environment, check=True
    )
    expected = named or (str(tmp_path / "shared/data") if beside else "")
    assert f"data: {expected}\n" in run.stdout
