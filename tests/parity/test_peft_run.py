"""A run with adapters of their own rank and rate in vision tower and decoder, by the real trainer, then in PEFT."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from medtune.cli.main import main
from medtune.config import instantiate
from medtune.models.common.parts import names_of
from medtune.models.lora.peft import load_peft
from medtune.models.weights import save_hf
from tests.parity.peft_twin import torchao_passed_over  # noqa: F401
from tests.runs import SFT, largest_difference, launch, metrics, tiny

SIZES = {"vocab_size": 1024, "embed_dim": 32, "vision_layers": 3, "decoder_layers": 2, "image_size": 16}
BASE = {"_component_": "medtune.models.mini.mini_llava", **SIZES}
MODEL: dict[str, Any] = {
    **BASE,
    "_component_": "medtune.models.mini.lora_mini_llava",
    "lora_attn_modules": ["q_proj", "v_proj"],
    "apply_lora_to_mlp": True,
    "lora_parts": {"vision": {"rank": 4, "alpha": 8}, "decoder": {"rank": 8, "alpha": 32}},
}
RUN: dict[str, Any] = {
    **SFT,
    "model": MODEL,
    "transform": {"_component_": "medtune.models.mini.mini_llava_transform", "path": "${asset}", "image_size": 16},
    "max_steps": 4,
    "export": "hf",
}
RATES = {"adapter.vision": 4e-2, "adapter.decoder": 2e-2, "projection": 3e-3}
IMAGE = SIZES["vocab_size"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    model = instantiate(BASE)
    return save_hf(model.state_dict(), model.family, tmp_path_factory.mktemp("weights") / "base")


def run(folder: Path, base: Path, **changes: Any) -> Path:
    config = tiny(folder, **{**RUN, "checkpoint": str(base), **changes})
    config.learning_rates = dict(changes.get("learning_rates", RATES))
    assert launch(config) == [0]
    return folder


def their_logits(model: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.tensor([[1, *[IMAGE] * 4, *range(5, 40)]])
    pixels = torch.randn(1, 3, 16, 16, generator=generator)
    with torch.no_grad():
        return model.eval()(input_ids=tokens, attention_mask=torch.ones_like(tokens), pixel_values=pixels).logits


def loaded(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)


def in_peft(base: Path, adapter: Path) -> Any:
    theirs = loaded(base)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return PeftModel.from_pretrained(theirs, adapter)


def test_ranks_and_rates_of_their_own_and_a_projection_beside_them(base: Path, tmp_path: Path) -> None:
    folder = run(tmp_path / "run", base, trainable=["adapter.vision", "adapter.decoder", "projection"])
    line = metrics(folder)[-1]
    shown = {key.removeprefix("lr/"): value for key, value in line.items() if key.startswith("lr/")}
    assert shown.keys() == RATES.keys()
    assert [shown[part] / shown["projection"] for part in RATES] == pytest.approx([RATES[p] / 3e-3 for p in RATES])
    assert main(["export", str(folder), "--to", "peft", "--out", str(tmp_path / "adapter")]) == 0
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert {config["r"], *config["rank_pattern"].values()} == {4, 8}
    assert all(name.startswith("model.multi_modal_projector.linear_") for name in config["modules_to_save"])
    model = in_peft(base, tmp_path / "adapter")
    # what the trainer wrote at its end: merged weights
    wanted = their_logits(loaded(folder / "weights"))
    difference = (their_logits(model) - wanted).abs().max()
    with model.disable_adapter():
        without = (their_logits(model) - wanted).abs().max()
    print(f"PEFT and merged weights differ by {difference:.1e}, base and merged by {without:.1e}")
    assert difference < 5e-6 and without > 1e-2


def test_an_export_is_the_checkpoints_tensors(base: Path, tmp_path: Path) -> None:
    """The old form, adapters as one part and the projection beside them, as LLaVA's own configs have it."""
    rates = {"adapter": 1e-2}
    folder = run(tmp_path / "run", base, trainable=["adapter", "projection"], learning_rates=rates)
    assert main(["export", str(folder), "--to", "peft", "--out", str(tmp_path / "out")]) == 0
    last = sorted((folder / "checkpoints").glob("step_*"))[-1]
    assert (
        largest_difference(load_peft(tmp_path / "out", instantiate(MODEL)), load_file(last / "model.safetensors")) == 0
    )


def test_adapters_of_a_part_that_was_not_trained_add_nothing(base: Path, tmp_path: Path) -> None:
    folder = run(tmp_path / "run", base, trainable=["adapter.decoder"], learning_rates={})
    for form in ("hf", "peft"):
        assert main(["export", str(folder), "--to", form, "--out", str(tmp_path / form)]) == 0
    whole = [load_file(path / "model.safetensors") for path in (tmp_path / "hf", folder / "weights")]
    assert largest_difference(*whole) == 0
    model = instantiate(MODEL)
    adapters = load_peft(tmp_path / "peft", model)
    idle = names_of("adapter.vision", model.parts())
    assert not any(adapters[name].any() for name in idle if ".lora_b." in name)
    difference = (their_logits(in_peft(base, tmp_path / "peft")) - their_logits(loaded(folder / "weights"))).abs().max()
    assert difference < 5e-6
