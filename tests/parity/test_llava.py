"""Logits equal transformers' LLaVA, every weight randomised; the tower equals CLIP's layer -2."""

from dataclasses import replace

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from tests.parity.llava_twin import (
    IMAGE,
    SHAPE,
    batch_of,
    item,
    kept,
    our_logits,
    randomise,
    their_logits,
    tiny,
    twin,
    worst,
)

TOLERANCE = 1e-5
LONG, SHORT = list(range(3, 30)), list(range(40, 52))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    ours = tiny()
    return ours, twin(ours, tmp_path_factory.mktemp("twin"))


CASES = {
    "one image": [item([1, 2, *IMAGE, *LONG], 1, 1)],
    "image at the end": [item([1, *LONG, *IMAGE], 1, 2)],
    "two images": [item([1, *IMAGE, 5, *IMAGE, *LONG], 2, 3)],
    "two images side by side": [item([1, *IMAGE, *IMAGE, *LONG], 2, 4)],
    "ragged": [item([1, *IMAGE, *LONG], 1, 5), item([1, 4, *IMAGE, *SHORT], 1, 6), item([*IMAGE, 7], 1, 7)],
    "ragged images": [
        item([1, *IMAGE, *SHORT], 1, 8),
        item(LONG, 0, 9),
        item([1, *IMAGE, 4, 5, *IMAGE, 6, *IMAGE, *LONG], 3, 10),
    ],
    "text alone": [item(LONG, 0, 11)],
}


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(pair, case):
    ours, theirs = pair
    batch = batch_of(*CASES[case])
    difference = worst(our_logits(ours, batch), their_logits(theirs, batch), batch)
    print(f"{case}: {difference:.1e}")
    assert difference < TOLERANCE


def test_grouped_heads_equal_transformers(tmp_path):
    """As Mistral has them."""
    ours = tiny(replace(SHAPE, kv_heads=2))
    batch = batch_of(*CASES["ragged"])
    assert worst(our_logits(ours, batch), their_logits(twin(ours, tmp_path), batch), batch) < TOLERANCE


def test_the_image_is_read(pair):
    ours, _ = pair
    one, other = (batch_of(item([1, 2, *IMAGE, *LONG], 1, seed)) for seed in (1, 2))
    a, b = our_logits(ours, one), our_logits(ours, other)
    assert torch.equal(a[:, :2], b[:, :2])
    assert (a[:, 2:] - b[:, 2:]).abs().max() > 0.1


def test_neighbours_do_not_matter(pair):
    ours, _ = pair
    items = CASES["ragged images"]
    together = our_logits(ours, batch_of(*items))
    for row, alone in enumerate(items):
        n = len(alone["tokens"])
        assert (together[row, :n] - our_logits(ours, batch_of(alone))[0]).abs().max() < TOLERANCE


def test_left_padding_does_not_matter_under_a_mask(pair):
    """As prompts of different length are answered together."""
    ours, _ = pair
    items = CASES["ragged images"]
    batch = batch_of(*items, pad_side="left")
    real, length = batch["padding"], batch["tokens"].shape[1]
    mask = torch.ones(length, length, dtype=torch.bool).tril() & real[:, None] | torch.eye(length, dtype=torch.bool)
    with torch.no_grad():
        h = ours.hidden(
            batch["tokens"],
            ours.encode(batch["vision"]),
            vision_mask=batch["vision_mask"],
            mask=mask,
            input_pos=(real.cumsum(1) - 1).clamp(min=0),
        )
        together = ours.logits(h)
    for row, alone in enumerate(items):
        n = len(alone["tokens"])
        assert (together[row, length - n :] - our_logits(ours, batch_of(alone))[0]).abs().max() < TOLERANCE


def clip_of(model):
    """Our tower's weights in transformers' vision transformer."""
    prefix = "vision_tower.vision_model."
    published = model.family.tune_to_hf(model.state_dict())
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, image_size=28, patch_size=7
    )
    theirs = CLIPVisionModel(config).eval()
    state = {name.removeprefix(prefix): tensor for name, tensor in published.items() if name.startswith(prefix)}
    theirs.load_state_dict(state)
    return theirs


def test_the_tower_is_the_last_layer_but_one_of_clip(pair):
    ours, _ = pair
    images = torch.randn(3, 3, 28, 28)
    with torch.no_grad():
        states = clip_of(ours)(images, output_hidden_states=True).hidden_states
        found = ours.encoder.vision(images)
    assert states[-2].abs().max() > 1
    assert (found - states[-2][:, 1:]).abs().max() < TOLERANCE
    assert (found - states[-1][:, 1:]).abs().max() > 0.1


def test_what_is_not_used_has_no_influence_and_no_gradient(pair):
    ours, _ = pair
    batch = batch_of(*CASES["one image"])
    before = our_logits(ours, batch)
    other = tiny()
    with torch.no_grad():
        for tensor in kept(other).values():
            tensor.add_(1)
    assert len(kept(other)) == 18 and torch.equal(our_logits(other, batch), before)
    features = other.encode(batch["vision"])
    other.logits(other.hidden(batch["tokens"], features, vision_mask=batch["vision_mask"])).square().mean().backward()
    without = [name for name, p in other.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_a_text_batch_gives_every_vision_parameter_a_gradient_of_zero():
    """All ranks of a sharded run must take the same graph; nothing may move for an image that is not there."""
    model = tiny()
    batch = batch_of(*CASES["text alone"])
    features = model.encode(batch["vision"])
    model.logits(model.hidden(batch["tokens"], features, vision_mask=batch["vision_mask"])).sum().backward()
    for name, parameter in model.encoder.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name


def test_randomising_leaves_no_tensor_at_its_start():
    """The parity above would hide an error behind a norm of ones or a bias of zeros."""
    model = randomise(tiny())
    for name, tensor in model.state_dict().items():
        assert (tensor - tensor.round()).abs().max() > 1e-3, name
