"""An adapter folder of ours is the same model in PEFT, and one of PEFT's is the same model here."""

import json
import warnings

import peft.tuners.lora.torchao
import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import MllamaConfig, MllamaForConditionalGeneration

from medtune.models.adapters import merge_adapters
from medtune.models.llama3_2_vision import lora_llama3_2_vision_11b, lora_llama3_2_vision_90b
from medtune.models.llama3_2_vision._component_builders import LoraOptions
from medtune.models.llama3_2_vision._peft import module_names
from medtune.models.names import expected_shapes, is_adapter_key
from medtune.models.peft import CONFIG_NAME, WEIGHTS_NAME, load_peft, save_peft
from tests.parity.mllama_twin import IMAGE, SHAPE, batch_of, item, our_logits, their_logits, tiny, twin, worst

TOLERANCE = 1e-5
BATCH = batch_of(item([IMAGE, *range(3, 30)], [(1, 2)], 1), item([IMAGE, *range(3, 9)], [(2, 2)], 2))
ATTENTION = ("q_proj", "k_proj", "v_proj", "output_proj")
ALL = LoraOptions(ATTENTION, mlp=True, output=True, rank=3, alpha=7.0)


@pytest.fixture(autouse=True)
def torchao_passed_over(monkeypatch):
    """PEFT raises an ImportError at torchao below 0.16, which torchtune needs; the path it guards is not taken here."""
    monkeypatch.setattr(peft.tuners.lora.torchao, "is_torchao_available", lambda: False)


def adapters_of(model):
    return {key: tensor for key, tensor in model.state_dict().items() if is_adapter_key(key)}


def plain_of(adapted):
    """The same base weights without adapters."""
    plain = tiny()
    state = {key: tensor for key, tensor in adapted.state_dict().items() if not is_adapter_key(key)}
    plain.load_state_dict(state)
    return plain


def in_peft(adapted, folder):
    """Our base and our adapter folder, loaded by transformers and PEFT; every tensor must find its place."""
    theirs = twin(plain_of(adapted), folder / "base")
    save_peft(adapters_of(adapted), adapted, folder / "adapter", str(folder / "base"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT only warns of adapter keys that are missing
        loaded = PeftModel.from_pretrained(theirs, folder / "adapter")
    with safe_open(folder / "adapter" / WEIGHTS_NAME, "pt") as file:
        written = {name.replace(".weight", ".default.weight") for name in file.keys()}
    live = {name: value for name, value in loaded.state_dict().items() if ".lora_" in name}
    assert live.keys() == written
    assert all(value.abs().max() > 0 for value in live.values())  # a lora_B that did not land would be zero
    return loaded.eval()


PLACES = {
    "decoder": LoraOptions(ATTENTION, ("decoder",), rank=4),
    "fusion": LoraOptions(ATTENTION, ("fusion",), mlp=True, output=True, rank=2, alpha=1.5),
    "vision": LoraOptions(("q_proj", "v_proj"), ("vision",), mlp=True, rank=2),
    "all": ALL,
}


@pytest.mark.parametrize("place", PLACES)
def test_logits_equal_peft(place, tmp_path):
    adapted = tiny(lora=PLACES[place])
    loaded = in_peft(adapted, tmp_path)
    ours = our_logits(adapted, BATCH)
    difference = worst(ours, their_logits(loaded, BATCH), BATCH)
    assert difference < TOLERANCE
    with loaded.disable_adapter():
        assert worst(ours, their_logits(loaded, BATCH), BATCH) > 0.01
    print(f"{place}: {difference:.1e}")


def test_merging_in_peft_gives_our_merged_weights(tmp_path):
    adapted = tiny(lora=ALL)
    loaded = in_peft(adapted, tmp_path)
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
    assert worst(our_logits(adapted, BATCH), their_logits(in_peft(adapted, tmp_path), BATCH), BATCH) > 0.01


def test_what_peft_saves_reads_back_bit_for_bit(tmp_path):
    adapted = tiny(lora=ALL)
    in_peft(adapted, tmp_path).save_pretrained(tmp_path / "theirs")
    again = load_peft(tmp_path / "theirs", adapted)
    ours = adapters_of(adapted)
    assert again.keys() == ours.keys() and all(torch.equal(again[key], ours[key]) for key in ours)


def test_every_module_is_a_linear_map_of_transformers():
    with torch.device("meta"):
        linear = _linear(MllamaConfig(**tiny().family.hf_config()))
    assert set(module_names(SHAPE).values()) == linear.keys()


@pytest.mark.parametrize("builder", [lora_llama3_2_vision_11b, lora_llama3_2_vision_90b])
def test_the_published_sizes_fit_transformers_module_by_module(builder):
    with torch.device("meta"):
        model = builder(list(ATTENTION), apply_lora_to_mlp=True, apply_lora_to_output=True, lora_rank=2)
        linear = _linear(MllamaConfig(**model.family.hf_config()))
    shapes = {key: torch.empty(size, device="meta") for key, size in expected_shapes(model).items()}
    published = model.family.adapters_to_peft({key: value for key, value in shapes.items() if is_adapter_key(key)})
    seen = {}
    for name, tensor in published.items():
        module, _, side = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
        seen.setdefault(module, {})[side] = tensor.shape
    assert seen.keys() == linear.keys()
    for module, sides in seen.items():
        out, wide = linear[module]
        assert sides == {"lora_A": (2, wide), "lora_B": (out, 2)}, module


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


def _linear(config):
    model = MllamaForConditionalGeneration(config)
    return {
        name: tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
