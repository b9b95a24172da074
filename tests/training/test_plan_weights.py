"""`medtune plan` reads the headers of the base weights: weights of another model end it with the reason."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from medtune.cli.main import main
from medtune.config import save_config
from medtune.models.mini import mini_llava, mini_vlm
from medtune.models.weights import save_hf
from tests.runs import TINY, tiny

SIZES = {key: value for key, value in TINY["model"].items() if key != "_component_"}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Weights that fit."""
    model = mini_vlm(**SIZES)
    return save_hf(model.state_dict(), model.family, tmp_path / "base")


def planned(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    save_config(tiny(tmp_path / "run", checkpoint=str(base)), tmp_path / "config.yaml")
    status = main(["plan", str(tmp_path / "config.yaml")])
    return status, capsys.readouterr().err


def test_weights_that_fit_are_no_problem(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert planned(tmp_path, base, capsys) == (0, "")


def test_weights_of_another_family_end_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = mini_llava(1024, image_size=16, embed_dim=16, vision_layers=2, decoder_layers=2)
    status, said = planned(tmp_path, save_hf(other.state_dict(), other.family, tmp_path / "base"), capsys)
    assert status == 2 and "holds a model of type 'llava', but mini_vlm needs 'mllama'" in said


def test_another_familys_weights_without_a_config_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = mini_llava(1024, image_size=16, embed_dim=16, vision_layers=2, decoder_layers=2)
    base = save_hf(other.state_dict(), other.family, tmp_path / "base")
    (base / "config.json").unlink()
    status, said = planned(tmp_path, base, capsys)
    assert status == 2 and "does not hold the weights of mini_vlm" in said


def test_a_missing_tensor_and_a_wrong_size_are_seen_in_the_headers(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = load_file(base / "model.safetensors")
    name = "language_model.model.norm.weight"
    save_file({**state, name: torch.zeros(7)}, base / "model.safetensors")
    status, said = planned(tmp_path, base, capsys)
    assert status == 2 and "decoder.norm.scale is [7], the model has [16]" in said
    save_file({key: tensor for key, tensor in state.items() if key != name}, base / "model.safetensors")
    status, said = planned(tmp_path, base, capsys)
    assert status == 2 and "1 missing (decoder.norm.scale)" in said


def test_a_run_in_place_of_its_weights_names_them(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    base.rename(run / "weights")
    (run / "config.yaml").write_text("{}")
    status, said = planned(tmp_path, run, capsys)
    assert status == 2 and f"whose weights are in {run / 'weights'}: name that" in said
