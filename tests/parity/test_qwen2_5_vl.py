"""Logits equal transformers' Qwen2.5-VL, every weight randomised, for images of any size, and with tied embeddings."""

import json

import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from medtune.data.sample import Sample
from medtune.errors import ModelError
from medtune.generation.engine.batches import Plan, PromptBatch
from medtune.generation.engine.decoding import CachedDecoder
from medtune.generation.requests import Request
from medtune.models.common.names import expected_shapes
from medtune.models.lora.merge import merge_adapters
from medtune.models.lora.options import ATTENTION
from medtune.models.qwen2_5_vl import qwen2_5_vl_3b, qwen2_5_vl_7b
from medtune.models.qwen2_5_vl._component_builders import LoraOptions
from medtune.models.weights import load_weights, save_hf
from tests.parity.qwen2_5_vl_twin import (
    SHAPES,
    batch_of,
    item,
    our_logits,
    randomise,
    their_inputs,
    their_logits,
    tiny,
    twin,
    worst,
)

TOLERANCE = 6e-5  # measured: 1.6e-5 and 3.2e-5 (two CPUs); transformers' 3D convolution alone is 1e-5 off
LONG = [1, 2, None, *range(3, 30)]
SHORT = [1, None, *range(40, 52)]


@pytest.fixture(scope="module", params=SHAPES)
def pair(request, tmp_path_factory):
    ours = tiny(SHAPES[request.param])
    return ours, twin(ours, tmp_path_factory.mktemp("twin"))


CASES = {
    "one block": [item(LONG, [(1, 1)], 1)],
    "several windows with ragged edges": [item(LONG, [(5, 9)], 2)],
    "exactly one window": [item(LONG, [(4, 4)], 3)],
    "a strip": [item(LONG, [(1, 11)], 4)],
    "padding": [item(LONG, [(2, 3)], 5), item(SHORT, [(2, 3)], 6)],
    "sizes and lengths mixed": [item(LONG, [(3, 5)], 7), item(SHORT, [(6, 2)], 8), item(SHORT[:5], [(1, 1)], 9)],
    "two images of different sizes": [item([None, None, *range(3, 20)], [(2, 5), (6, 3)], 10)],
    "interleaved images": [item([None, *range(3, 9), None, *range(9, 20)], [(5, 5), (1, 4)], 11)],
    "ragged images": [item(LONG, [(7, 2)], 12), item([None, 5, None, 6, 7], [(2, 2), (3, 6)], 13)],
    "a sample without an image": [item(LONG, [(3, 2)], 14), item([*range(3, 12)], [], 15)],
    "text alone": [item([*range(3, 30)], [], 16)],
}


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(pair, case):
    ours, theirs = pair
    batch = batch_of(*CASES[case])
    assert worst(our_logits(ours, batch), their_logits(theirs, batch), batch) < TOLERANCE


def test_left_padding_equals_transformers(pair):
    """The way in which answers are generated: positions count real tokens, padding is masked."""
    ours, theirs = pair
    batch = batch_of(*CASES["ragged images"], *CASES["sizes and lengths mixed"], pad_side="left")
    real = batch["padding"]
    length = real.shape[1]
    positions = (real.cumsum(dim=1) - 1).clamp(min=0)
    mask = torch.ones(length, length, dtype=torch.bool).tril() & real[:, None] | torch.eye(length, dtype=torch.bool)
    mine = our_logits(ours, batch, mask=mask, input_pos=positions)
    assert worst(mine, their_logits(theirs, batch), batch) < TOLERANCE


def test_text_positions_alone_give_another_model(pair):
    """Should this fail, the parity above would not see an error in the positions."""
    ours, theirs = pair
    batch = batch_of(*CASES["several windows with ragged edges"])
    plain = torch.arange(batch["tokens"].shape[1])[None, :, None].expand(1, -1, 3)
    assert worst(our_logits(ours, batch, input_pos=plain), their_logits(theirs, batch), batch) > 0.01


def test_a_sample_does_not_depend_on_its_neighbours(pair):
    ours, _ = pair
    first = item(SHORT, [(3, 5)], 20)
    alone, beside = batch_of(first), batch_of(first, item([None, *LONG], [(6, 5), (1, 1)], 21), tiles=40, images=3)
    n = len(first["tokens"])
    assert (our_logits(ours, alone)[0, :n] - our_logits(ours, beside)[0, :n]).abs().max() < TOLERANCE
    other = {**beside, "vision": {**beside["vision"], "images": beside["vision"]["images"].clone()}}
    other["vision"]["images"][1] = 5.0
    assert torch.equal(our_logits(ours, beside)[0], our_logits(ours, other)[0])


def test_features_without_their_places_are_refused(pair):
    ours, _ = pair
    batch = batch_of(*CASES["padding"])
    features = ours.encode(batch["vision"])
    with pytest.raises(ModelError, match="vision_mask"):
        ours.hidden(batch["tokens"], features)
    with pytest.raises(ModelError, match=r"place of each image feature.*type bool"):
        ours.hidden(batch["tokens"], features, vision_mask=batch["vision_mask"] > 0)


def test_a_grid_that_does_not_fit_its_blocks_is_refused(pair):
    ours, _ = pair
    batch = batch_of(*CASES["ragged images"])
    batch["vision"]["grid"][1, 1] = torch.tensor([3, 5])
    with pytest.raises(ModelError, match=r"image 1 of row 1 of the batch has 18 blocks.*3 x 5"):
        ours.encode(batch["vision"])


def test_randomising_leaves_no_parameter_at_its_start():
    """The parity above would hide an error behind a zero bias or a norm of one."""
    for name, parameter in randomise(tiny()).named_parameters():
        assert parameter.abs().max() > 1e-3 and (parameter - 1).abs().max() > 1e-3, name


# -- answers ----------------------------------------------------------------------------------------------------------


def test_greedy_answers_equal_transformers_generate(pair):
    """With the cache, left-padded, images of several sizes and text alone; 12 tokens each."""
    ours, theirs = pair
    items = [*CASES["ragged images"], *CASES["sizes and lengths mixed"], *CASES["text alone"]]
    batch = batch_of(*items, pad_side="left")
    expected = theirs.generate(**their_inputs(batch), max_new_tokens=12, do_sample=False, pad_token_id=99)
    expected = expected[:, batch["tokens"].shape[1] :]
    requests = [Request(one["id"], Sample(one["id"], (), ()), None) for one in items]
    parts = (batch[name] for name in ("tokens", "padding", "vision", "vision_mask"))
    prompts = PromptBatch(Plan(requests, frozenset()), requests, *parts)
    decoder = CachedDecoder(ours, torch.device("cpu"), torch.float32)
    try:
        with torch.inference_mode():
            logits = [decoder.prefill(prompts, ours.encode(batch["vision"]), 12)]
            for _ in range(11):
                logits.append(decoder.step(logits[-1].argmax(dim=1).tolist()))
    finally:
        decoder.close()
    found = torch.stack([step.argmax(dim=1) for step in logits], dim=1)
    for row, ids in enumerate(expected.tolist()):
        end = ids.index(98) + 1 if 98 in ids else len(ids)  # transformers stops there
        assert found[row, :end].tolist() == ids[:end]
    assert len({tuple(row) for row in found.tolist()}) == len(items)


# -- weights there and back -------------------------------------------------------------------------------------------


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_ours_to_published_and_back(pair, tmp_path):
    ours, _ = pair
    state = dict(ours.state_dict())
    save_hf(state, ours.family, tmp_path, shard_bytes=40_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    assert same(load_weights(tmp_path, ours), state)
    published = ours.family.tune_to_hf(state)
    assert any(".attn.qkv.weight" in name for name in published)
    assert ("lm_head.weight" in published) != ours.family.hf_config()["tie_word_embeddings"]
    assert same(ours.family.tune_to_hf(ours.family.hf_to_tune(published)), published)


def test_names_of_a_live_module_convert_like_those_on_disk(pair, tmp_path):
    """What transformers saves is read too, with its own spelling of config.json."""
    ours, theirs = pair
    live = dict(theirs.state_dict())
    assert any(name.startswith("model.visual.") for name in live)
    assert same(ours.family.hf_to_tune(live), dict(ours.state_dict()))
    assert set(map(ours.family.live_name, ours.family.tune_to_hf(ours.state_dict()))) <= set(live)
    theirs.save_pretrained(tmp_path)
    assert "text_config" in json.loads((tmp_path / "config.json").read_text())
    assert same(load_weights(tmp_path, ours), dict(ours.state_dict()))


def test_what_does_not_fit_is_refused(pair):
    ours, _ = pair
    published = ours.family.tune_to_hf(ours.state_dict())
    with pytest.raises(ModelError, match=r"1 tensors are not of this model.*model\.layers\.9\.x"):
        ours.family.hf_to_tune({**published, "model.layers.9.x": torch.zeros(1)})
    with pytest.raises(ModelError, match=r"blocks\.0\.attn\.qkv\.weight has 12 rows, the model 144"):
        ours.family.hf_to_tune({**published, "visual.blocks.0.attn.qkv.weight": torch.zeros(12, 48)})
    state = dict(ours.state_dict())
    del state["decoder.norm.scale"]
    with pytest.raises(ModelError, match=r"1 tensors of the model are missing.*decoder\.norm\.scale"):
        ours.family.tune_to_hf(state)


def test_an_output_layer_of_its_own_is_refused_where_embeddings_are_tied():
    model = tiny(SHAPES["tied"])
    published = model.family.tune_to_hf(model.state_dict())
    words = published["model.embed_tokens.weight"]
    assert same(model.family.hf_to_tune({**published, "lm_head.weight": words}), dict(model.state_dict()))
    with pytest.raises(ModelError, match="lm_head.weight is not the embedding table"):
        model.family.hf_to_tune({**published, "lm_head.weight": words + 1})


@pytest.mark.parametrize(("builder", "tensors"), [(qwen2_5_vl_3b, 824), (qwen2_5_vl_7b, 729)])
def test_the_published_sizes_have_the_tensors_of_transformers(builder, tensors):
    with torch.device("meta"):
        ours = builder()
        theirs = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**ours.family.hf_config()))
    published = ours.family.tune_to_hf(
        {key: torch.empty(size, device="meta") for key, size in expected_shapes(ours).items()}
    )
    expected = {name: tuple(value.shape) for name, value in theirs.named_parameters()}
    assert {ours.family.live_name(name): tuple(value.shape) for name, value in published.items()} == expected
    assert len(published) == tensors
    own, other = (sum(p.numel() for p in model.parameters()) for model in (ours, theirs))
    assert own == other == {824: 3_754_622_976, 729: 8_292_166_656}[tensors]


@pytest.mark.parametrize("shape", SHAPES)
def test_merged_adapters_are_the_adapted_model_also_in_transformers(tmp_path, shape):
    tied = shape == "tied"
    lora = LoraOptions(ATTENTION, ("vision", "decoder"), mlp=True, output=not tied, rank=3, alpha=7.0)
    adapted = tiny(SHAPES[shape], lora=lora)
    plain = tiny(SHAPES[shape])
    plain.load_state_dict(merge_adapters(adapted.state_dict(), adapted))
    batch = batch_of(*CASES["ragged images"])
    ours = our_logits(adapted, batch)
    tolerance = 6e-6 * ours.abs().max()  # measured: 4e-5 on logits of up to 18
    assert worst(our_logits(plain, batch), ours, batch) < tolerance
    assert worst(our_logits(tiny(SHAPES[shape]), batch), ours, batch) > 0.1
    assert worst(ours, their_logits(twin(plain, tmp_path), batch), batch) < tolerance


def test_an_adapter_of_a_tied_output_layer_is_refused():
    with pytest.raises(ModelError, match="embedding table.*apply_lora_to_output"):
        tiny(SHAPES["tied"], lora=LoraOptions(ATTENTION, output=True))
