"""Weights go to the published layout and back bit for bit, and transformers finds every tensor it wants."""

import pytest
import torch
from transformers import MllamaForConditionalGeneration

from medtune.models.common.names import expected_shapes
from medtune.models.llama3_2_vision._component_builders import LoraOptions
from medtune.models.lora.merge import merge_adapters
from medtune.models.weights import load_weights, save_hf
from tests.parity.mllama_twin import IMAGE, batch_of, item, our_logits, randomise, their_logits, tiny, twin, worst

BATCH = batch_of(item([IMAGE, *range(3, 30)], [(1, 2)], 1), item([IMAGE, *range(3, 9)], [(1, 1)], 2))


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("table_tiles", [1, 2, 4])
@pytest.mark.parametrize("shard_bytes", [10**9, 60_000])
def test_ours_to_published_and_back(tmp_path, table_tiles, shard_bytes):
    model = tiny(table_tiles=table_tiles)
    state = _consistent(model)
    save_hf(state, model.family, tmp_path, shard_bytes=shard_bytes)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 3) == (shard_bytes < 10**6)
    assert same(load_weights(tmp_path, model), state)


def test_published_to_ours_and_back(tmp_path):
    model = tiny()
    published = model.family.tune_to_hf(model.state_dict())
    assert same(model.family.tune_to_hf(model.family.hf_to_tune(published)), published)


def test_names_of_a_live_module_convert_like_those_on_disk(tmp_path):
    model = tiny()
    theirs = twin(model, tmp_path)
    live = theirs.state_dict()
    assert any(name.startswith("model.language_model.") for name in live) and "lm_head.weight" in live
    assert same(model.family.hf_to_tune(dict(live)), _consistent(model))


def test_what_transformers_saves_loads_here(tmp_path):
    model = tiny()
    theirs = twin(model, tmp_path / "a")
    theirs.save_pretrained(tmp_path / "b")
    assert same(load_weights(tmp_path / "b", tiny()), _consistent(model))


def test_an_export_opens_in_transformers_as_it_is(tmp_path):
    model = tiny()
    save_hf(model.state_dict(), model.family, tmp_path, shard_bytes=100_000)
    theirs, info = MllamaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert theirs.config.text_config.rope_parameters["rope_type"] == "llama3"
    assert theirs.config.text_config.rope_parameters["rope_theta"] == 500_000.0


def test_merged_adapters_are_the_adapted_model_also_in_transformers(tmp_path):
    lora = LoraOptions(("q_proj", "k_proj", "v_proj", "output_proj"), mlp=True, output=True, rank=3, alpha=7.0)
    adapted = tiny(lora=lora)
    merged = merge_adapters(adapted.state_dict(), adapted)
    plain = tiny()
    assert merged.keys() == plain.state_dict().keys()
    plain.load_state_dict(merged)
    ours = our_logits(adapted, BATCH)
    assert (our_logits(plain, BATCH) - ours).abs().max() < 1e-5
    assert (our_logits(tiny(), BATCH) - ours).abs().max() > 0.1
    theirs = twin(plain, tmp_path)
    assert worst(ours, their_logits(theirs, BATCH), BATCH) < 1e-5


def test_a_base_checkpoint_loads_into_an_adapted_model(tmp_path):
    plain, adapted = tiny(), tiny(lora=LoraOptions(("q_proj",)))
    save_hf(plain.state_dict(), plain.family, tmp_path)
    state = load_weights(tmp_path, adapted)
    assert state.keys() == expected_shapes(plain).keys() < expected_shapes(adapted).keys()
    missing, unexpected = adapted.load_state_dict(state, strict=False)
    assert missing and all(".lora_" in name for name in missing) and not unexpected


def _consistent(model):
    """The state, with positions only where some grid of tiles has them: the published layout has no place for more."""
    state = dict(model.state_dict())
    n = state["encoder.clip.pre_tile_pos_embed.embedding"].shape[0]
    unused = [(r, c) for r in range(n) for c in range(n) if (r + 1) * (c + 1) > n]
    for key in state:
        if "tile_pos_embed.embedding" in key or "global_token_positional" in key:
            state[key] = state[key].clone()
            for r, c in unused:
                state[key][r, c] = 0
    return state


def test_randomising_leaves_no_parameter_at_its_start():
    """The parity above would hide an error behind a closed gate."""
    for name, parameter in randomise(tiny()).named_parameters():
        assert parameter.abs().max() > 1e-3, name
