"""Weights go to the published layout and the authors', and back, bit for bit; transformers finds every tensor."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

from medtune.errors import ModelError
from medtune.models.common.names import expected_shapes
from medtune.models.llava import original_names
from medtune.models.llava._component_builders import LORA_PARTS, LoraOptions
from medtune.models.lora.merge import merge_adapters
from medtune.models.lora.options import ATTENTION
from medtune.models.weights import load_weights, save_hf
from tests.parity.llava_twin import IMAGE, SHAPE, batch_of, item, kept, our_logits, their_logits, tiny, twin, worst

BATCH = batch_of(item([1, *IMAGE, *range(3, 30)], 1, 1), item([1, *IMAGE, 4, *IMAGE, 5, 6], 2, 2))
CLIP = "model.vision_tower.vision_tower."


def authors(model, state=None):
    """A state of ours in the authors' names."""
    return original_names(model.family.tune_to_hf(state or model.state_dict()), SHAPE.image_id)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("shard_bytes", [10**9, 60_000])
def test_ours_to_published_and_back(tmp_path, shard_bytes):
    model = tiny()
    save_hf(model.state_dict(), model.family, tmp_path, shard_bytes=shard_bytes)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 3) == (shard_bytes < 10**6)
    assert same(load_weights(tmp_path, model), model.state_dict())


def test_published_names_are_those_of_the_hub(tmp_path):
    """vLLM and older versions of transformers read these."""
    model = tiny()
    save_hf(model.state_dict(), model.family, tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert {
        "vision_tower.vision_model.embeddings.class_embedding",
        "vision_tower.vision_model.pre_layrnorm.weight",
        "vision_tower.vision_model.encoder.layers.3.mlp.fc2.bias",  # the last layer, which nothing reads
        "vision_tower.vision_model.post_layernorm.bias",
        "multi_modal_projector.linear_2.bias",
        "language_model.model.embed_tokens.weight",
        "language_model.model.layers.2.self_attn.o_proj.weight",
        "language_model.lm_head.weight",
    } <= names


def test_names_of_a_live_module_convert_like_those_on_disk(tmp_path):
    model = tiny()
    live = twin(model, tmp_path).state_dict()
    assert any(name.startswith("model.vision_tower.encoder.") for name in live) and "lm_head.weight" in live
    assert same(model.family.hf_to_tune(dict(live)), dict(model.state_dict()))


def test_what_transformers_saves_loads_here(tmp_path):
    model = tiny()
    twin(model, tmp_path / "a").save_pretrained(tmp_path / "b")
    assert same(load_weights(tmp_path / "b", tiny()), dict(model.state_dict()))


def test_the_unused_layer_travels_through_an_export(tmp_path):
    model, other = tiny(), tiny()
    for tensor in kept(model).values():
        tensor.mul_(3)
    save_hf(model.state_dict(), model.family, tmp_path)
    other.load_state_dict(load_weights(tmp_path, other))
    assert same(kept(other), kept(model)) and len(kept(model)) == 18


def test_an_export_opens_in_transformers_as_it_is(tmp_path):
    model = tiny()
    save_hf(model.state_dict(), model.family, tmp_path, shard_bytes=100_000)
    theirs, info = LlavaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert theirs.config.vision_config.hidden_act == "quick_gelu"
    assert theirs.config.text_config.rope_parameters["rope_theta"] == 10_000.0
    assert theirs.config.image_token_id == SHAPE.image_id


# -- the authors' own layout ------------------------------------------------------------------------------------------


@pytest.fixture
def original(tmp_path):
    """A folder as the authors save it, the vision tower in a file of CLIP's own, and the state that it holds."""
    state = authors(tiny())
    tower = {name: tensor for name, tensor in state.items() if name.startswith(CLIP)}
    folder = tmp_path / "llava-v1.5"
    folder.mkdir()
    save_file({n: t.contiguous() for n, t in state.items() if n not in tower}, folder / "model.safetensors")
    clip = {name.removeprefix(CLIP): tensor.contiguous() for name, tensor in tower.items()}
    other_half = {"text_model.final_layer_norm.bias": torch.ones(4), "logit_scale": torch.ones(())}
    positions = {"vision_model.embeddings.position_ids": torch.arange(17)[None]}
    save_file({**clip, **other_half, **positions}, tmp_path / "clip.safetensors")
    config = {"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, state


def test_original_to_ours_and_back(original):
    folder, state = original
    assert state["model.embed_tokens.weight"].shape[0] == state["lm_head.weight"].shape[0] == SHAPE.image_id
    assert {"model.mm_projector.0.weight", "model.mm_projector.2.bias", "model.norm.weight"} <= state.keys()
    ours = tiny().family.hf_to_tune(state)
    assert ours.keys() == expected_shapes(tiny()).keys()
    assert same(authors(tiny(), ours), state)


def test_an_original_folder_needs_the_tower_beside_it(original):
    folder, state = original
    model = tiny()
    with pytest.raises(ModelError, match="without the vision tower.*llava-hf/llava-1.5-7b-hf.*clip-vit-large-patch14"):
        load_weights(folder, model)
    (folder.parent / "clip.safetensors").rename(folder / "vision_tower.safetensors")
    (folder / "config.json").write_text('{"model_type": "llava_llama"}')  # as later files call it
    found = load_weights(folder, model)
    assert same(authors(model, found), state)
    model.load_state_dict(found)
    real, words = BATCH["padding"], slice(SHAPE.image_id)
    difference = our_logits(model, BATCH)[real][:, words] - our_logits(tiny(), BATCH)[real][:, words]
    assert difference.abs().max() < 1e-5


def test_two_towers_are_one_too_many(original):
    """One of the checkpoint and one of CLIP's: neither is chosen silently."""
    _, state = original
    clip = "vision_model.embeddings.class_embedding"
    with pytest.raises(ModelError, match=f"holds vision_tower.{clip} twice"):
        tiny().family.hf_to_tune({**state, clip: torch.ones(32)})


def test_rows_beyond_the_original_vocabulary_are_the_mean(original):
    _, state = original
    ours = tiny().family.hf_to_tune(state)
    rows = ours["decoder.tok_embeddings.weight"]
    assert rows.shape[0] == SHAPE.vocab_size
    assert torch.equal(rows[SHAPE.image_id :], rows[: SHAPE.image_id].mean(0).expand(4, -1))


def test_an_export_from_the_original_layout_opens_in_transformers(original, tmp_path):
    """The authors' config is not copied: it would describe other names."""
    folder, _ = original
    (folder.parent / "clip.safetensors").rename(folder / "vision_tower.safetensors")
    model = tiny()
    model.load_state_dict(load_weights(folder, model))
    save_hf(model.state_dict(), model.family, tmp_path / "out", folder)
    assert json.loads((tmp_path / "out/config.json").read_text())["model_type"] == "llava"
    theirs = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    assert worst(our_logits(model, BATCH), their_logits(theirs, BATCH), BATCH) < 1e-5


def test_a_published_config_is_copied(tmp_path):
    model = tiny()
    save_hf(model.state_dict(), model.family, tmp_path / "a")
    config = json.loads((tmp_path / "a/config.json").read_text()) | {"note": "theirs"}
    (tmp_path / "a/config.json").write_text(json.dumps(config))
    save_hf(model.state_dict(), model.family, tmp_path / "b", tmp_path / "a")
    assert json.loads((tmp_path / "b/config.json").read_text()) == config


def test_tensors_of_another_model_are_named(tmp_path):
    model = tiny()
    save_hf(model.state_dict(), model.family, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["language_model.model.layers.9.mlp.up_proj.weight"] = torch.ones(2)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="1 tensors that the model does not have.*layers.9.mlp.up_proj"):
        load_weights(tmp_path, model)


def test_a_folder_of_another_model_type_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mllama"}')
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="'mllama', but tiny needs 'llava'"):
        load_weights(tmp_path, tiny())


# -- adapters ---------------------------------------------------------------------------------------------------------


def test_merged_adapters_are_the_adapted_model_also_in_transformers(tmp_path):
    adapted = tiny(lora=LoraOptions(ATTENTION, LORA_PARTS, mlp=True, output=True, rank=3, alpha=2.0))
    merged = merge_adapters(adapted.state_dict(), adapted)
    plain = tiny()
    assert merged.keys() == plain.state_dict().keys()
    plain.load_state_dict(merged)
    ours = our_logits(adapted, BATCH)
    assert worst(our_logits(plain, BATCH), ours, BATCH) < 1e-5
    assert (our_logits(tiny(), BATCH) - ours).abs().max() > 0.1
    assert worst(ours, their_logits(twin(plain, tmp_path), BATCH), BATCH) < 1e-5


def test_a_base_checkpoint_loads_into_an_adapted_model(tmp_path):
    plain, adapted = tiny(), tiny(lora=LoraOptions(("q_proj",), LORA_PARTS))
    save_hf(plain.state_dict(), plain.family, tmp_path)
    state = load_weights(tmp_path, adapted)
    assert state.keys() == expected_shapes(plain).keys() < expected_shapes(adapted).keys()
    missing, unexpected = adapted.load_state_dict(state, strict=False)
    assert missing and all(".lora_" in name for name in missing) and not unexpected
