"""Logits equal transformers' Gemma 3, every weight randomised; names and sizes equal its of the real models."""

import dataclasses
import warnings

import pytest
import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from medtune.models.gemma3 import gemma3_4b, gemma3_27b, medgemma_4b
from medtune.models.gemma3._component_builders import LoraOptions
from medtune.models.gemma3._convert_weights import tensor_names
from medtune.models.lora.merge import merge_adapters
from medtune.models.lora.options import ATTENTION
from medtune.models.weights import load_weights, save_hf
from tests.parity.gemma3_twin import (
    SHAPE,
    batch_of,
    item,
    left_padded,
    load,
    our_logits,
    randomise,
    their_logits,
    tiny,
    twin,
    worst,
)

TOLERANCE = 1e-5
LONG = [1, 2, None, *range(3, 40)]  # beyond the window of 12
SHORT = [1, None, *range(40, 47)]
TWO = [1, None, 5, 6, None, *range(60, 75)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    ours = tiny()
    return ours, twin(ours, tmp_path_factory.mktemp("twin"))


CASES = {
    "text of 7 tokens": [item([*range(3, 10)], 1)],
    "text of 60 tokens": [item([*range(3, 63)], 2)],
    "one image": [item(SHORT, 3)],
    "one image and a long text": [item(LONG, 4)],
    "two images": [item(TWO, 5)],
    "two images side by side": [item([None, None, *range(3, 20)], 6)],
    "images behind a long text": [item([*range(3, 30), None, 7, None], 7)],
    "two, one and no image": [item(TWO, 8), item(LONG, 9), item([*range(3, 20)], 10)],
}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(pair, case, side):
    """Padding on the left is the way in which answers are generated: positions count real tokens."""
    ours, theirs = pair
    batch = batch_of(*CASES[case], pad_side=side)
    own = left_padded(batch) if side == "left" else {}
    positions = {"position_ids": own["input_pos"]} if own else {}
    assert worst(our_logits(ours, batch, **own), their_logits(theirs, batch, **positions), batch) < TOLERANCE


@pytest.mark.parametrize(
    "change",
    [{"rope_factor": 1.0}, {"window": 500}, {"pattern": 2}, {"query_scale": 14.0}, {"local_rope_base": 1e6}],
    ids=lambda change: next(iter(change)),
)
def test_each_choice_of_the_shape_is_seen_in_the_logits(pair, change):
    """Should this fail, the parity above would not see an error in it."""
    _, theirs = pair
    batch = batch_of(*CASES["one image and a long text"])
    assert worst(our_logits(tiny(**change), batch), their_logits(theirs, batch), batch) > 0.01


@pytest.mark.parametrize("change", [{"rope_factor": 1.0}, {"window": 500}, {"pattern": 2}], ids=str)
def test_another_shape_is_equal_too(change, tmp_path):
    ours = tiny(**change)
    batch = batch_of(*CASES["two, one and no image"])
    assert worst(our_logits(ours, batch), their_logits(twin(ours, tmp_path), batch), batch) < TOLERANCE


def test_a_sample_does_not_depend_on_its_neighbours(pair):
    ours, _ = pair
    first = item(LONG, 20)
    alone, beside = batch_of(first), batch_of(first, item([None, *TWO, None], 21), images=5)
    n = len(first["tokens"])
    assert (our_logits(ours, alone)[0, :n] - our_logits(ours, beside)[0, :n]).abs().max() < TOLERANCE


def test_the_tokens_of_an_image_see_the_rest_of_it(pair):
    """The last patch changes the state of the image's first token, and of no token before the image."""
    ours, _ = pair
    batch = batch_of(item([1, 2, 3, None, 4], 22))
    before = our_logits(ours, batch)
    batch["vision"]["images"][..., -7:, -7:] += 1
    change = (our_logits(ours, batch) - before).abs().amax(dim=-1)[0]
    assert change[:4].max() == 0 and change[4] > 1e-3


def test_bfloat16_weights_are_those_of_transformers(pair, tmp_path):
    ours, _ = pair
    save_hf({key: value.bfloat16() for key, value in ours.state_dict().items()}, ours.family, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = Gemma3ForConditionalGeneration.from_pretrained(tmp_path, attn_implementation="sdpa").eval()
    assert theirs.dtype == torch.bfloat16
    half = tiny().bfloat16()
    batch = batch_of(*CASES["one image"])
    batch["vision"]["images"] = batch["vision"]["images"].bfloat16()
    assert worst(our_logits(half, batch), their_logits(theirs, batch).float(), batch) < 0.15


# -- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("builder", "parts"),
    [
        (gemma3_4b, {"vision": 416_866_032, "projection": 2_950_272, "decoder": 3_880_263_168}),
        (medgemma_4b, {"vision": 416_866_032, "projection": 2_950_272, "decoder": 3_880_263_168}),
        (gemma3_27b, {"vision": 416_866_032, "projection": 6_194_304, "decoder": 27_009_346_304}),
    ],
)
def test_the_published_models_are_transformers_tensor_by_tensor(builder, parts):
    with torch.device("meta"):
        model = builder()
        theirs = Gemma3ForConditionalGeneration(Gemma3Config(**model.family.hf_config()))
    sizes = dict(model.named_parameters())
    assert {part: sum(sizes[name].numel() for name in names) for part, names in model.parts().items()} == parts
    published = {model.family.live_name(name): value.shape for name, value in model.family.tune_to_hf(sizes).items()}
    assert published == {name: value.shape for name, value in theirs.named_parameters()}


# -- weights there and back -------------------------------------------------------------------------------------------


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_ours_to_published_and_back(tmp_path):
    model = tiny()
    state = dict(model.state_dict())
    save_hf(state, model.family, tmp_path, shard_bytes=40_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    assert same(load_weights(tmp_path, model), state)
    published = model.family.tune_to_hf(state)
    assert published.keys() == tensor_names(SHAPE).keys()
    assert same(model.family.tune_to_hf(model.family.hf_to_tune(published)), published)


def test_names_of_a_live_module_and_of_newer_files_convert_too(pair, tmp_path):
    ours, theirs = pair
    live = theirs.state_dict()
    assert any(name.startswith("model.vision_tower.encoder.") for name in live) and "lm_head.weight" in live
    assert same(ours.family.hf_to_tune(dict(live)), dict(ours.state_dict()))
    theirs.save_pretrained(tmp_path)
    assert same(load_weights(tmp_path, ours), dict(ours.state_dict()))
    again = load(tmp_path)
    batch = batch_of(*CASES["two images"])
    assert worst(our_logits(ours, batch), their_logits(again, batch), batch) < TOLERANCE


def test_merged_adapters_are_the_adapted_model_also_in_transformers(tmp_path):
    adapted = tiny(lora=LoraOptions(ATTENTION, ("vision", "decoder"), mlp=True, rank=3, alpha=7.0))
    merged = merge_adapters(adapted.state_dict(), adapted)
    plain = tiny()
    assert merged.keys() == plain.state_dict().keys()
    plain.load_state_dict(merged)
    batch = batch_of(*CASES["two, one and no image"])
    ours = our_logits(adapted, batch)
    assert worst(our_logits(plain, batch), ours, batch) < TOLERANCE
    assert worst(our_logits(tiny(), batch), ours, batch) > 0.1
    assert worst(ours, their_logits(twin(plain, tmp_path), batch), batch) < TOLERANCE


def test_randomising_leaves_no_parameter_at_its_start():
    """The parity above would hide an error behind a zero bias or a norm of one."""
    for name, parameter in randomise(tiny()).named_parameters():
        assert parameter.abs().max() > 1e-3 and (parameter - 1).abs().max() > 1e-3, name


def test_the_tiny_shape_is_odd():
    """Widths that follow from one another would hide an error in which of them is taken."""
    sizes = dataclasses.asdict(SHAPE)
    assert SHAPE.dim != SHAPE.heads * SHAPE.head_dim and SHAPE.query_scale != SHAPE.head_dim
    assert sizes["window"] < len(LONG) < sizes["max_seq_len"]
