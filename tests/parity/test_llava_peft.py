"""An adapter folder of a LLaVA is the same model in PEFT, and one of PEFT's is the same model here."""

import json
import warnings

import pytest
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

from medtune.errors import ModelError
from medtune.models.llava import lora_llava1_5_7b, lora_llava1_5_13b
from medtune.models.llava._component_builders import LORA_PARTS, LoraOptions
from medtune.models.llava._peft import module_names
from medtune.models.lora.merge import merge_adapters
from medtune.models.lora.options import ATTENTION
from medtune.models.lora.peft import CONFIG_NAME, load_peft, save_peft
from tests.parity.llava_twin import IMAGE, SHAPE, batch_of, item, our_logits, their_logits, tiny, twin, worst
from tests.parity.peft_twin import adapters_of, assert_fits, in_peft, linear_maps, torchao_passed_over  # noqa: F401

TOLERANCE = 1e-5
BATCH = batch_of(item([1, *IMAGE, *range(3, 30)], 1, 1), item([1, *IMAGE, 4, *IMAGE, 5, 6], 2, 2))
ALL = LoraOptions(ATTENTION, LORA_PARTS, mlp=True, output=True, rank=3, alpha=2.5)
PLACES = {
    "decoder": LoraOptions(ATTENTION, rank=4, alpha=4.0),
    "projection": LoraOptions(ATTENTION, ("projection",), rank=2, alpha=1.5),
    "vision": LoraOptions(("q_proj", "v_proj"), ("vision",), mlp=True, rank=2, alpha=4.0),
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
        assert (ours - theirs[key]).abs().max() < 1e-6, key


def test_without_the_row_order_of_rotary_heads_it_is_another_model(tmp_path, monkeypatch):
    """Should this fail, the parity above would not see an error in the permutation."""
    monkeypatch.setattr("medtune.models.llava._peft.reorder", lambda key, tensor, shape, published: tensor)
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


def test_names_of_other_layouts_are_read():
    """transformers before 4.52, and the authors' modules; anything else is refused by name."""
    adapted = tiny(lora=ALL)
    ours = adapters_of(adapted)
    names = adapted.family.adapters_to_peft(ours)
    for prefix, old, new in (
        ("older", "model.language_model.", "language_model.model."),
        ("authors", "model.language_model.", "model."),
        ("older", "model.vision_tower.", "vision_tower.vision_model."),
        ("authors", "model.vision_tower.", "model.vision_tower.vision_tower.vision_model."),
        ("authors", "model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
    ):
        renamed = {name.replace(f"base_model.model.{old}", f"base_model.model.{new}"): t for name, t in names.items()}
        assert renamed.keys() != names.keys(), (prefix, old)
        again = adapted.family.adapters_from_peft(renamed)
        assert again.keys() == ours.keys() and all(torch.equal(again[key], ours[key]) for key in ours)
    with pytest.raises(ModelError, match=r"layers\.3\."):  # the unused layer of the tower carries none
        name = next(iter(n for n in names if "vision_tower.encoder.layers.0." in n))
        adapted.family.adapters_from_peft({name.replace("layers.0.", "layers.3."): torch.ones(1)})


@pytest.mark.parametrize("builder", [lora_llava1_5_7b, lora_llava1_5_13b])
def test_the_published_sizes_fit_transformers_module_by_module(builder):
    with torch.device("meta"):
        model = builder(
            list(ATTENTION), apply_lora_to_mlp=True, apply_lora_to_output=True, lora_rank=2, lora_parts=LORA_PARTS
        )
        linear = linear_maps(LlavaForConditionalGeneration(LlavaConfig(**model.family.hf_config())))
    unused = {name for name in linear if name.startswith("model.vision_tower.encoder.layers.23.")}
    assert len(unused) == 6
    assert_fits(model, {name: shape for name, shape in linear.items() if name not in unused}, rank=2)


def test_the_config_names_every_module_in_full(tmp_path):
    adapted = tiny(lora=ALL)
    save_peft(adapters_of(adapted), adapted, tmp_path, "some/base")
    config = json.loads((tmp_path / CONFIG_NAME).read_text())
    # last parts of names cannot tell the tower from the language model
    assert config["target_modules"] == sorted(module_names(SHAPE).values())
    assert all(name.startswith(("model.", "lm_head")) for name in config["target_modules"])
