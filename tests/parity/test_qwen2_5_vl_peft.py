"""An adapter folder of a Qwen2.5-VL is the same model in PEFT, and the other way round, packed q, k and v included."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from medtune.errors import ModelError
from medtune.models.lora.options import ATTENTION
from medtune.models.lora.peft import load_peft, read_peft, save_peft
from medtune.models.qwen2_5_vl import lora_qwen2_5_vl_3b, lora_qwen2_5_vl_7b
from medtune.models.qwen2_5_vl._component_builders import LoraOptions
from tests.parity.peft_twin import adapters_of, assert_fits, in_peft, linear_maps, torchao_passed_over  # noqa: F401
from tests.parity.qwen2_5_vl_twin import SHAPES, batch_of, item, our_logits, their_logits, tiny, twin, worst

BATCH = batch_of(item([1, None, *range(3, 30)], [(2, 3)], 1), item([1, None, None, *range(3, 9)], [(5, 2), (3, 3)], 2))
ALL = LoraOptions(ATTENTION, ("vision", "decoder"), mlp=True, rank=3, alpha=7.0)
PLACES = {
    "decoder": LoraOptions(ATTENTION, ("decoder",), output=True, rank=4),
    "vision": LoraOptions(ATTENTION, ("vision",), mlp=True, rank=2),
    "two of three packed layers": LoraOptions(("q_proj", "v_proj"), ("vision",), rank=3, alpha=5.0),
    "one of three packed layers": LoraOptions(("k_proj",), ("vision", "decoder"), rank=2),
    "ranks of each part": LoraOptions(ATTENTION, {"vision": {"rank": 2, "alpha": 9}, "decoder": {"rank": 5}}, mlp=True),
    "all": LoraOptions(ATTENTION, ("vision", "decoder"), mlp=True, output=True, rank=3, alpha=7.0),
}


@pytest.mark.parametrize("place", PLACES)
def test_logits_equal_peft(place, tmp_path):
    adapted = tiny(lora=PLACES[place])
    loaded = in_peft(adapted, tiny(), twin, tmp_path)
    ours = our_logits(adapted, BATCH)
    tolerance = 1.5e-5 * ours.abs().max()  # measured: 8e-6 times the largest logit
    assert worst(ours, their_logits(loaded, BATCH), BATCH) < tolerance
    with loaded.disable_adapter():
        assert worst(ours, their_logits(loaded, BATCH), BATCH) > 0.01


@pytest.mark.parametrize("place", PLACES)
def test_what_peft_saves_reads_back_bit_for_bit(place, tmp_path):
    adapted = tiny(lora=PLACES[place])
    in_peft(adapted, tiny(), twin, tmp_path).save_pretrained(tmp_path / "theirs")
    again, ours = load_peft(tmp_path / "theirs", adapted), adapters_of(adapted)
    assert again.keys() == ours.keys() and all(torch.equal(again[key], ours[key]) for key in ours)


def test_tied_embeddings_leave_no_name_for_an_output_adapter(tmp_path):
    adapted = tiny(SHAPES["tied"], lora=ALL)
    loaded = in_peft(adapted, tiny(SHAPES["tied"]), twin, tmp_path)
    ours = our_logits(adapted, BATCH)
    assert worst(ours, their_logits(loaded, BATCH), BATCH) < 6e-6 * ours.abs().max()


def test_an_adapter_that_peft_made_on_the_packed_layer_is_read(tmp_path):
    """PEFT trains one adapter for q, k and v; here each takes the same A and its own rows of B."""
    base = tiny()
    wrapped = get_peft_model(twin(base, tmp_path / "base"), LoraConfig(r=6, lora_alpha=4, target_modules=["qkv"]))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in wrapped.named_parameters():
            if ".lora_" in name:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.2)
    wrapped.save_pretrained(tmp_path / "adapter")
    found = read_peft(tmp_path / "adapter", base.family)
    assert {strength.rank for strength in found.strengths.values()} == {6}
    merged, state = tiny(), dict(base.state_dict())
    for prefix, strength in found.strengths.items():
        a, b = (found.state[f"{prefix}.lora_{side}.weight"] for side in "ab")
        state[f"{prefix}.weight"] = state[f"{prefix}.weight"] + strength.alpha / strength.rank * (b @ a)
    merged.load_state_dict(state)
    ours = our_logits(merged, BATCH)
    assert worst(ours, their_logits(wrapped.eval(), BATCH), BATCH) < 6e-6 * ours.abs().max()
    assert worst(our_logits(base, BATCH), ours, BATCH) > 0.01


def test_the_config_holds_the_rank_of_the_packed_layers(tmp_path):
    adapted = tiny(lora=ALL)
    save_peft(adapters_of(adapted), adapted, tmp_path, "some/base")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    packed = [name for name in config["target_modules"] if name.endswith(".attn.qkv")]
    assert len(packed) == 4 and (config["r"], config["lora_alpha"]) == (3, 7)
    assert config["rank_pattern"] == dict.fromkeys(packed, 9)
    assert config["alpha_pattern"] == dict.fromkeys(packed, 21)


@pytest.mark.parametrize("builder", [lora_qwen2_5_vl_3b, lora_qwen2_5_vl_7b])
def test_the_published_sizes_fit_transformers_module_by_module(builder):
    output = builder is lora_qwen2_5_vl_7b
    with torch.device("meta"):
        model = builder(apply_lora_to_output=output, lora_rank=2, lora_parts=["vision", "decoder"])
        theirs = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**model.family.hf_config()))
    maps = linear_maps(theirs).items()
    linear = {name: shape for name, shape in maps if "merger" not in name and (output or name != "lm_head")}
    assert_fits(model, linear, rank=2, packed=".attn.qkv")


def test_names_of_older_transformers_are_read(tmp_path):
    adapted = tiny(lora=ALL)
    ours = adapters_of(adapted)
    new = adapted.family.adapters_to_peft(ours)
    old = {
        name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): t
        for name, t in new.items()
    }
    assert old.keys() != new.keys()
    again = adapted.family.adapters_from_peft(old)
    assert again.keys() == ours.keys() and all(torch.equal(again[key], ours[key]) for key in ours)


def test_what_is_no_adapter_of_the_model_is_refused():
    family = tiny().family
    good = tiny(lora=ALL).family.adapters_to_peft(adapters_of(tiny(lora=ALL)))
    name = "base_model.model.model.visual.blocks.0.attn.qkv.lora_A.weight"
    with pytest.raises(ModelError, match=r"qkv lacks one of its two tensors"):
        family.adapters_from_peft({key: value for key, value in good.items() if key != name})
    with pytest.raises(ModelError, match=r"has 12 outputs, the layer 144"):
        family.adapters_from_peft({**good, name.replace("lora_A", "lora_B"): torch.zeros(12, 9)})
    with pytest.raises(ModelError, match=r"1 tensors are no adapters"):
        family.adapters_from_peft({"base_model.model.model.visual.blocks.9.attn.qkv.lora_A.weight": torch.zeros(1, 1)})
