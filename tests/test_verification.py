"""`medtune export --verify`: transformers answers as medtune does, and a wrong tensor is noticed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from medtune.cli.main import main
from medtune.config import instantiate
from medtune.models.weights import save_hf
from tests.runs import SFT, launch, tiny

SIZES = {"vocab_size": 1024, "embed_dim": 32, "decoder_layers": 2}
LORA = {"lora_attn_modules": ["q_proj", "v_proj"], "apply_lora_to_mlp": True, "lora_rank": 2, "lora_alpha": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "mini_vlm": {"transform": "mini_transform", "vision_layers": 2, "trainable": ["adapter"]},
    "mini_llava": {"transform": "mini_llava_transform", "vision_layers": 3, "trainable": ["adapter", "projection"]},
    "mini_gemma3": {"transform": "mini_gemma3_transform", "vision_layers": 2, "trainable": ["adapter", "projection"]},
    "mini_internvl": {"transform": "mini_internvl_transform", "vision_layers": 2, "trainable": ["adapter"]},
    "mini_qwen2_5_vl": {"transform": "mini_qwen2_5_vl_transform", "vision_layers": 2, "trainable": ["adapter"]},
}
# an image's side, or for images of any size that of a patch
IMAGES = {"mini_qwen2_5_vl": {"patch_size": 4}}


@pytest.fixture(scope="module", params=FAMILIES)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run with adapters, at a rate that changes answers."""
    family, folder = FAMILIES[request.param], tmp_path_factory.mktemp(request.param)
    images = IMAGES.get(request.param, {"image_size": 16})
    sizes = {**SIZES, **images, "vision_layers": family["vision_layers"]}
    torch.manual_seed(3)
    model = instantiate({**sizes, "_component_": f"medtune.models.mini.{request.param}"})
    base = save_hf(model.state_dict(), model.family, folder / "base")
    changes = {
        **SFT,
        "model": {**sizes, **LORA, "_component_": f"medtune.models.mini.lora_{request.param}"},
        "transform": {"_component_": f"medtune.models.mini.{family['transform']}", "path": "x", **images},
        "trainable": family["trainable"],
        "optimizer": {"_component_": "torch.optim.AdamW", "lr": 3e-2},
        "max_steps": 3,
        "export": "hf",
        "checkpoint": str(base),
    }
    config = tiny(folder / "run", **changes)
    config.learning_rates = {}
    assert launch(config) == [0]
    return folder / "run"


def exported(run: Path, out: Path, *more: str) -> int:
    return main(["export", str(run), "--out", str(out), *more])


@pytest.mark.parametrize("form", ["hf", "peft"])
def test_the_exported_folder_answers_as_the_run(
    form: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exported(run, tmp_path / "out", "--to", form, "--verify") == 0
    said = capsys.readouterr().out
    assert "verified in transformers: 3 answers" in said and "all equal" in said
    assert float(said.split("at most ")[1]) < 1e-4


def test_peft_itself_is_asked_where_it_can_be_used(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT refuses the torchao that torchtune needs; without the check it adds the adapter as our own code does."""
    import peft.tuners.lora.torchao

    monkeypatch.setattr(peft.tuners.lora.torchao, "is_torchao_available", lambda: False)
    monkeypatch.setattr("medtune.verification.load_file", lambda *_: pytest.fail("PEFT was not used"))
    assert exported(run, tmp_path / "out", "--to", "peft", "--verify") == 0
    assert "all equal" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["hf", "peft"])
def test_a_wrong_tensor_is_noticed(
    form: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of one tensor in another order, as a wrong converter would leave them."""
    from medtune import verification

    opened = verification.open_in_transformers

    def spoiled(folder: Path, adapter: Path | None = None) -> Any:
        file = next((adapter or folder).glob("*.safetensors"))
        state = load_file(file)
        spoilt = ("lora_B.weight", "q_proj.weight", "lm_head.weight", "embed_tokens.weight")
        names = [name for name in state if name.endswith(spoilt)]
        save_file({**state, **{name: state[name].flip(0).contiguous() for name in names}}, file, {"format": "pt"})
        return opened(folder, adapter)

    monkeypatch.setattr("medtune.export.open_in_transformers", spoiled)
    assert exported(run, tmp_path / "out", "--to", form, "--verify") == 2
    assert "answers otherwise in transformers: answer" in capsys.readouterr().err


def test_what_cannot_be_verified_is_said(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exported(run, tmp_path / "a", "--to", "torchtune", "--verify") == 2
    assert "does not read torchtune's names" in capsys.readouterr().err and not (tmp_path / "a").exists()
    assert exported(run / "weights", tmp_path / "b", "--to", "hf", "--verify") == 2
    assert "--verify needs a run" in capsys.readouterr().err
