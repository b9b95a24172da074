"""Whole runs of a tiny LLaVA: one process equals two, and what is exported is the trained model in transformers."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from medtune.models.mini import mini_llava
from medtune.models.weights import load_weights, save_hf
from tests.runs import SFT, SGD, largest_difference, launch, losses, tiny, weights

MODEL = {
    "_component_": "medtune.models.mini.mini_llava",
    "embed_dim": 16,
    "heads": 2,
    "vision_layers": 3,
    "decoder_layers": 2,
    "image_size": 16,
}
LORA = {
    **MODEL,
    "_component_": "medtune.models.mini.lora_mini_llava",
    "lora_attn_modules": ["q_proj", "v_proj"],
    "lora_parts": ["vision", "projection", "decoder"],
    "lora_rank": 2,
}
TRANSFORM = {"_component_": "medtune.models.mini.mini_llava_transform", "path": "${asset}", "image_size": 16}
RUN = {**SFT, "transform": TRANSFORM, "optimizer": SGD, "max_steps": 4, "schedule": {}}


@pytest.mark.parametrize(
    ("model", "trainable"),
    [(MODEL, ["vision", "projection", "decoder"]), (LORA, ["adapter", "projection"])],
    ids=["full", "lora"],
)
def test_one_process_equals_two(tmp_path, model, trainable):
    """The kept tensors, which are no parameters, come through sharding whole."""
    for world in (1, 2):
        changes = {"batch_size": 4 // world, "model": model, "trainable": trainable}
        assert set(launch(tiny(tmp_path / str(world), **{**RUN, **changes}), world)) == {0}
    one, two = losses(tmp_path / "1"), losses(tmp_path / "2")
    assert one[-1] < one[0] and max(abs(a - b) for a, b in zip(one, two, strict=True)) < 1e-6
    exported = weights(tmp_path / "1")
    assert largest_difference(exported, weights(tmp_path / "2")) < 1e-6
    assert "encoder.vision.unused.layer.mlp.w1.weight" in exported


def test_an_export_of_a_run_is_the_trained_model_in_transformers(tmp_path):
    sizes = {key: value for key, value in MODEL.items() if key != "_component_"}
    base = mini_llava(**sizes)
    save_hf(base.state_dict(), base.family, tmp_path / "base")
    config = tiny(
        tmp_path / "run",
        **{**RUN, "model": LORA, "trainable": ["adapter"], "checkpoint": str(tmp_path / "base"), "export": "hf"},
    )
    assert launch(config) == [0]
    out = tmp_path / "run" / "weights"
    theirs, info = LlavaForConditionalGeneration.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    before, after = (load_file(folder / "model.safetensors") for folder in (tmp_path / "base", out))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    parts = ("vision_tower.", "multi_modal_projector.", "language_model.")
    assert all(any(name.startswith(part) for name in changed) for part in parts)
    assert not any("encoder.layers.2" in name or "post_layernorm" in name for name in changed)
    model = mini_llava(**sizes)
    model.load_state_dict(load_weights(out, model))
    tokens = torch.tensor([[1, 1024, 1024, 1024, 1024, 5, 6]])
    images = torch.randn(1, 3, 16, 16)
    vision = {"images": images[None, None], "tiles": torch.ones(1, 1, dtype=torch.long)}
    with torch.no_grad():
        ours = model.logits(model.hidden(tokens, model.encode(vision)))
        assert (ours - theirs.eval()(input_ids=tokens, pixel_values=images).logits).abs().max() < 1e-5
