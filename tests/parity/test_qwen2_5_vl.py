"""Logits equal transformers' Qwen2.5-VL, every weight randomised, for images of any size, and with tied embeddings."""

import pytest
import torch

from medtune.errors import ModelError
from tests.parity.qwen2_5_vl_twin import SHAPES, batch_of, item, our_logits, randomise, their_logits, tiny, twin, worst

TOLERANCE = 3e-5  # measured: 1.6e-5 on logits of about 5; transformers' 3D convolution alone is 1e-5 off
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
