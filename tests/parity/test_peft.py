"""An adapter folder of ours is the same model in PEFT, and one of PEFT's is the same model here."""

import json
import warnings

import pytest
import torch
from transformers import MllamaConfig, MllamaForConditionalGeneration

from medtune.models.llama3_2_vision import lora_llama3_2_vision_11b, lora_llama3_2_vision_90b
from medtune.models.llama3_2_vision._component_builders import LoraOptions
from medtune.models.llama3_2_vision._peft import module_names
from medtune.models.lora.merge import merge_adapters
from medtune.models.lora.peft import CONFIG_NAME, load_peft, save_peft
from tests.parity.mllama_twin import IMAGE, SHAPE, batch_of, item, our_logits, their_logits, tiny, twin, worst
from tests.parity.peft_twin import adapters_of, assert_fits, in_peft, linear_maps, torchao_passed_over  # noqa: F401

TOLERANCE = 1e-5
BATCH = batch_of(item([IMAGE, *range(3, 30)], [(1, 2)], 1), item([IMAGE, *range(3, 9)], [(2, 2)], 2))
ATTENTION = ("q_proj", "k_proj", "v_proj", "output_proj")
ALL = LoraOptions(ATTENTION, mlp=True, output=True, rank=3, alpha=7.0)


PLACES = {
    "decoder": LoraOptions(ATTENTION, ("decoder",), rank=4),
    "fusion": LoraOptions(ATTENTION, ("fusion",), mlp=True, output=True, rank=2, alpha=1.5),
    "vision": LoraOptions(("q_proj", "v_proj"), ("vision",), mlp=True, rank=2),
    "all": ALL,
}


@pytest.mark.parametrize("place", PLACES)
def test_logits_equal_peft(place, tmp_path):
    adapted = tiny(lora=PLACES[place])
    loaded = in_peft(adapted, tiny(), twin, tmp_path)
    ours = our_logits(adapted, BATCH)
    difference = worst(ours, their_logits(loaded, BATCH), BATCH)
    assert difference < TOLERANCE
    with loaded.disable_adapter():
        assert worst(ours, their_logits(loaded, BATCH), BATCH) > 0.01
    print(f"{place}: {difference:.1e}")


def test_merging_in_peft_gives_our_merged_weights(tmp_path):
    adapted = tiny(lora=ALL)
    loaded = in_peft(adapted, tiny(), twin, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = adapted.family.hf_to_tune(loaded.merge_and_unload().state_dict())
    for key, ours in merge_adapters(adapted.state_dict(), adapted).items():
        if "pos_embed" not in key:  # the tables hold rows that the published layout has no place for
            assert (ours - theirs[key]).abs().max() < 1e-6, key


def test_without_the_row_order_of_rotary_heads_it_is_another_model(tmp_path, monkeypatch):
    """Should this fail, the parity above would not see an error in the permutation."""
    monkeypatch.setattr("medtune.models.llama3_2_vision._peft._reorder", lambda key, tensor, shape, published: tensor)
    adapted = tiny(lora=PLACES["decoder"])
    assert (
        worst(our_logits(adapted, BATCH), their_logits(in_peft(adapted, tiny(), twin, tmp_path), BATCH), BATCH) > 0.01
    )


def test_what_peft_saves_reads_back_bit_for_bit(tmp_path):
    adapted = tiny(lora=ALL)
    in_peft(adapted, tiny(), twin, tmp_path).save_pretrained(tmp_path / "theirs")
    again = load_peft(tmp_path / "theirs", adapted)
    ours = adapters_of(adapted)
    assert again.keys() == ours.keys() and all(torch.equal(again[key], ours[key]) for key in ours)


def test_every_module_is_a_linear_map_of_transformers():
    with torch.device("meta"):
        linear = linear_maps(MllamaForConditionalGeneration(MllamaConfig(**tiny().family.hf_config())))
    assert set(module_names(SHAPE).values()) == linear.keys()


@pytest.mark.parametrize("builder", [lora_llama3_2_vision_11b, lora_llama3_2_vision_90b])
def test_the_published_sizes_fit_transformers_module_by_module(builder):
    with torch.device("meta"):
        model = builder(list(ATTENTION), apply_lora_to_mlp=True, apply_lora_to_output=True, lora_rank=2)
        linear = linear_maps(MllamaForConditionalGeneration(MllamaConfig(**model.family.hf_config())))
    assert_fits(model, linear, rank=2)


def test_the_config_says_what_peft_and_servers_need(tmp_path):
    adapted = tiny(lora=ALL)
    save_peft(adapters_of(adapted), adapted, tmp_path, "some/base")
    config = json.loads((tmp_path / CONFIG_NAME).read_text())
    assert {key: config[key] for key in ("peft_type", "task_type", "r", "lora_alpha", "base_model_name_or_path")} == {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 3,
        "lora_alpha": 7,
        "base_model_name_or_path": "some/base",
    }
    # last parts of names cannot tell self- from cross-attention
    assert all(name.startswith(("model.", "lm_head")) for name in config["target_modules"])
    assert config["target_modules"] == sorted(module_names(SHAPE).values())
