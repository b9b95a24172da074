"""An adapter folder of Gemma 3 is the same model in PEFT, and the other way round; tied weights are refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from medtune.errors import ModelError
from medtune.models.gemma3 import lora_gemma3_4b, lora_gemma3_27b
from medtune.models.gemma3._component_builders import LoraOptions
from medtune.models.lora.options import ATTENTION
from medtune.models.lora.peft import CONFIG_NAME, WEIGHTS_NAME, load_peft, read_peft, save_peft
from tests.parity.gemma3_twin import batch_of, item, our_logits, their_logits, tiny, twin, worst
from tests.parity.peft_twin import adapters_of, assert_fits, in_peft, linear_maps, torchao_passed_over  # noqa: F401

TOLERANCE = 3e-5
BATCH = batch_of(item([1, None, *range(3, 30)], 1), item([1, None, 5, None, *range(3, 9)], 2))
ALL = LoraOptions(ATTENTION, ("vision", "decoder"), mlp=True, rank=3, alpha=7.0)
PLACES = {
    "decoder": LoraOptions(ATTENTION, ("decoder",), rank=4),
    "vision": LoraOptions(("q_proj", "v_proj"), ("vision",), mlp=True, rank=2),
    "all": ALL,
    "all, of unlike ranks": LoraOptions(ATTENTION, {"vision": {"rank": 2}, "decoder": {"alpha": 9}}, mlp=True, rank=3),
}


@pytest.mark.parametrize("place", PLACES)
def test_logits_equal_peft(place, tmp_path):
    adapted = tiny(lora=PLACES[place])
    loaded = in_peft(adapted, tiny(), twin, tmp_path)
    ours = our_logits(adapted, BATCH)
    assert worst(ours, their_logits(loaded, BATCH), BATCH) < TOLERANCE
    with loaded.disable_adapter():
        assert worst(ours, their_logits(loaded, BATCH), BATCH) > 0.01


def test_what_peft_saves_reads_back_bit_for_bit(tmp_path):
    adapted = tiny(lora=ALL)
    in_peft(adapted, tiny(), twin, tmp_path).save_pretrained(tmp_path / "theirs")
    again, ours = load_peft(tmp_path / "theirs", adapted), adapters_of(adapted)
    assert again.keys() == ours.keys() and all(torch.equal(again[key], ours[key]) for key in ours)


def test_names_of_older_versions_are_read(tmp_path):
    adapted = tiny(lora=ALL)
    save_peft(adapters_of(adapted), adapted, tmp_path, "some/base")
    old = {
        name.replace("model.language_model.layers", "language_model.model.layers").replace(
            "model.vision_tower.encoder", "vision_tower.vision_model.encoder"
        ): tensor
        for name, tensor in load_file(tmp_path / WEIGHTS_NAME).items()
    }
    assert not any(name.startswith("base_model.model.model.") for name in old)
    save_file(old, tmp_path / WEIGHTS_NAME)
    again, ours = load_peft(tmp_path, adapted), adapters_of(adapted)
    assert again.keys() == ours.keys() and all(torch.equal(again[key], ours[key]) for key in ours)


@pytest.mark.parametrize("builder", [lora_gemma3_4b, lora_gemma3_27b])
def test_the_published_sizes_fit_transformers_module_by_module(builder):
    with torch.device("meta"):
        model = builder(lora_rank=2, lora_parts=["vision", "decoder"])
        theirs = Gemma3ForConditionalGeneration(Gemma3Config(**model.family.hf_config()))
    linear = {name: shape for name, shape in linear_maps(theirs).items() if name != "lm_head"}
    assert_fits(model, linear, rank=2)


def test_the_projection_that_was_trained_beside_the_adapters_is_in_peft_too(tmp_path):
    """PEFT saves modules: weight and norm of the projection are two of them."""
    adapted = tiny(lora=PLACES["decoder"])
    whole = {key: value for key, value in adapted.state_dict().items() if key.startswith("encoder.projection.")}
    save_peft(adapters_of(adapted), adapted, tmp_path, "some/base", whole=whole)
    assert json.loads((tmp_path / CONFIG_NAME).read_text())["modules_to_save"] == ["model.multi_modal_projector"]
    again = load_peft(tmp_path, adapted)
    assert all(torch.equal(again[key], value) for key, value in whole.items())


def test_trained_embeddings_are_not_written_because_they_are_the_output_layer_too(tmp_path):
    adapted = tiny(lora=PLACES["decoder"])
    whole = {"decoder.tok_embeddings.weight": adapted.state_dict()["decoder.tok_embeddings.weight"]}
    with pytest.raises(ModelError, match=r"output layer too \(tied weights\).*--to hf"):
        save_peft(adapters_of(adapted), adapted, tmp_path, "some/base", whole=whole)


@pytest.mark.parametrize("module", ["lm_head", "model.language_model.embed_tokens"])
def test_an_adapter_that_holds_one_of_two_tied_layers_is_refused(module, tmp_path):
    adapted = tiny(lora=PLACES["decoder"])
    save_peft(adapters_of(adapted), adapted, tmp_path, "some/base")
    tensors = load_file(tmp_path / WEIGHTS_NAME)
    tensors[f"base_model.model.{module}.weight"] = torch.zeros(101, 60)
    save_file(tensors, tmp_path / WEIGHTS_NAME)
    config = json.loads((tmp_path / CONFIG_NAME).read_text()) | {"modules_to_save": [module]}
    (tmp_path / CONFIG_NAME).write_text(json.dumps(config))
    with pytest.raises(
        ModelError, match=rf"modules_to_save hold {module}.weight; tiny has one tensor .*merge it in PEFT"
    ):
        read_peft(tmp_path, adapted.family)
