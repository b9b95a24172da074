"""An adapter folder of a model of the InternVL family is the same model in PEFT, and the other way round."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import InternVLConfig, InternVLForConditionalGeneration

from medtune.models.internvl import lora_internvl2_2b, lora_internvl3_8b
from medtune.models.internvl._component_builders import LoraOptions
from medtune.models.lora.merge import merge_adapters
from medtune.models.lora.options import ATTENTION
from medtune.models.lora.peft import WEIGHTS_NAME, load_peft, save_peft
from medtune.models.lora.peft_config import read_config, strength_of
from tests.parity.internvl_twin import batch_of, item, our_logits, their_logits, tiny, twin, worst
from tests.parity.peft_twin import adapters_of, assert_fits, in_peft, linear_maps, torchao_passed_over  # noqa: F401

TOLERANCE = 3e-5  # measured: 1.2e-5 on logits of up to 9
BATCH = batch_of(item([1, None, *range(3, 30)], [2], 1), item([1, None, None, *range(3, 9)], [1, 3], 2))
ALL = LoraOptions(ATTENTION, ("vision", "decoder"), mlp=True, output=True, rank=3, alpha=7.0)
PLACES = {
    "decoder": LoraOptions(ATTENTION, ("decoder",), rank=4),
    "vision": LoraOptions(("q_proj", "v_proj"), ("vision",), mlp=True, rank=2),
    "all": ALL,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("decoder", ["internlm2", "qwen2"])
def test_logits_equal_peft(decoder, place, tmp_path):
    adapted = tiny(decoder, lora=PLACES[place])
    loaded = in_peft(adapted, tiny(decoder), twin, tmp_path)
    ours = our_logits(adapted, BATCH)
    assert worst(ours, their_logits(loaded, BATCH), BATCH) < TOLERANCE
    with loaded.disable_adapter():
        assert worst(ours, their_logits(loaded, BATCH), BATCH) > 0.01


@pytest.mark.parametrize("decoder", ["internlm2", "qwen2"])
def test_what_peft_saves_reads_back_bit_for_bit(decoder, tmp_path):
    adapted = tiny(decoder, lora=ALL)
    in_peft(adapted, tiny(decoder), twin, tmp_path).save_pretrained(tmp_path / "theirs")
    again, ours = load_peft(tmp_path / "theirs", adapted), adapters_of(adapted)
    assert again.keys() == ours.keys() and all(torch.equal(again[key], ours[key]) for key in ours)


@pytest.mark.parametrize("builder", [lora_internvl2_2b, lora_internvl3_8b])
def test_the_published_sizes_fit_transformers_module_by_module(builder):
    with torch.device("meta"):
        model = builder(apply_lora_to_output=True, lora_rank=2, lora_parts=["vision", "decoder"], layout="hf")
        theirs = InternVLForConditionalGeneration(InternVLConfig(**model.family.hf_config()))
    linear = {name: shape for name, shape in linear_maps(theirs).items() if "multi_modal_projector" not in name}
    assert_fits(model, linear, rank=2)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("decoder", ["internlm2", "qwen2"])
def test_adapters_in_the_original_layout_are_those_of_the_weights(decoder, place, tmp_path):
    """Each written adapter changes its tensor as merging changes it, packed q, k and v included; then read back."""
    adapted, plain = (tiny(decoder, layout="original", **more) for more in ({"lora": PLACES[place]}, {}))
    ours = adapters_of(adapted)
    base = {key: value for key, value in adapted.state_dict().items() if key not in ours}
    before, after = (plain.family.tune_to_hf(state) for state in (base, merge_adapters(adapted.state_dict(), adapted)))
    save_peft(ours, adapted, tmp_path, "some/base")
    tensors, config = load_file(tmp_path / WEIGHTS_NAME), read_config(tmp_path)
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    for name in changed:
        module = name.removesuffix(".weight")
        a, b = (tensors[f"base_model.model.{module}.lora_{side}.weight"] for side in "AB")
        strength = strength_of(config, module, tmp_path)
        assert a.shape[0] == strength.rank
        update = strength.alpha / strength.rank * (b @ a)
        assert (before[name] + update - after[name]).abs().max() < 1e-6
    assert len(tensors) == 2 * len(changed)
    again = load_peft(tmp_path, adapted)
    assert again.keys() == ours.keys() and all(torch.equal(again[key], ours[key]) for key in ours)


def test_qwen2_in_the_original_layout_keeps_its_decoder_adapters(tmp_path):
    adapted = tiny("qwen2", layout="original", lora=LoraOptions(ATTENTION, mlp=True, rank=2))
    save_peft(adapters_of(adapted), adapted, tmp_path, "some/base")
    with safe_open(tmp_path / WEIGHTS_NAME, "pt") as file:
        names = set(file.keys())
    assert "base_model.model.language_model.model.layers.0.self_attn.q_proj.lora_A.weight" in names
