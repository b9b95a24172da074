"""Logits equal transformers' Mllama, every weight randomised."""

import pytest
import torch

from tests.parity.mllama_twin import IMAGE, batch_of, item, our_logits, their_logits, tiny, twin, worst

TOLERANCE = 1e-5
LONG = [IMAGE, *range(3, 30)]
SHORT = [IMAGE, *range(40, 52)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    ours = tiny()
    return ours, twin(ours, tmp_path_factory.mktemp("twin"))


CASES = {
    "one tile": [item(LONG, [(1, 1)], 1)],
    "four tiles": [item(LONG, [(2, 2)], 2)],
    "a row of three": [item(LONG, [(1, 3)], 3)],
    "a column of two": [item(LONG, [(2, 1)], 4)],
    "padding": [item(LONG, [(1, 1)], 5), item(SHORT, [(1, 1)], 6)],
    "tiles and lengths mixed": [item(LONG, [(1, 1)], 7), item(SHORT, [(4, 1)], 8), item(SHORT[:5], [(1, 2)], 9)],
    "two images": [item([IMAGE, IMAGE, *range(3, 20)], [(1, 2), (2, 1)], 10)],
    "interleaved images": [item([IMAGE, *range(3, 9), IMAGE, *range(9, 20)], [(1, 1), (1, 4)], 11)],
    "ragged images": [item(LONG, [(1, 1)], 12), item([IMAGE, 5, IMAGE, 6, 7], [(1, 2), (2, 2)], 13)],
}


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(pair, case):
    ours, theirs = pair
    batch = batch_of(*CASES[case])
    assert worst(our_logits(ours, batch), their_logits(theirs, batch), batch) < TOLERANCE


def test_forward_is_the_same_model(pair):
    ours, _ = pair
    batch = batch_of(*CASES["tiles and lengths mixed"])
    with torch.no_grad():
        stock = ours(batch["tokens"], encoder_input=batch["vision"], encoder_mask=batch["vision_mask"])
    assert torch.equal(stock, our_logits(ours, batch))


def test_one_tile_model_equals_a_one_tile_mllama(tmp_path):
    ours = tiny(table_tiles=1)
    theirs = twin(ours, tmp_path)
    batch = batch_of(*CASES["padding"])
    assert worst(our_logits(ours, batch), their_logits(theirs, batch), batch) < TOLERANCE


def test_text_alone_equals_transformers(pair):
    ours, theirs = pair
    tokens = torch.arange(3, 30)[None]
    with torch.no_grad():
        difference = (ours.logits(ours.hidden(tokens)) - theirs(input_ids=tokens).logits).abs().max()
    assert difference < TOLERANCE


def test_text_before_the_image_equals_transformers_with_its_row_rule(tmp_path):
    """The features of padding tiles are read by those rows in transformers, so they must be kept."""
    ours = tiny(hf_rows=True)
    theirs = twin(ours, tmp_path)
    batch = batch_of(
        item([1, 2, 3, *LONG], [(1, 1)], 1), item([1, 2, *SHORT], [(1, 2)], 2), item(LONG[1:9], [], 3), tiles=4
    )
    # transformers lets a sample without an image attend to the features of an absent one; that row is left out
    assert worst(our_logits(ours, batch)[:2], their_logits(theirs, batch)[:2], _rows(batch, 2)) < TOLERANCE


def test_text_before_the_image_is_untouched_by_it_without_that_rule(pair):
    """Meta's rule, the default: a row that sees nothing passes the fusion layers unchanged."""
    ours, theirs = pair
    tokens = [1, 2, 3, *LONG]
    one, other = batch_of(item(tokens, [(1, 1)], 1)), batch_of(item(tokens, [(1, 1)], 2))
    a, b = our_logits(ours, one), our_logits(ours, other)
    assert torch.equal(a[:, :3], b[:, :3])
    assert (a[:, 3:] - b[:, 3:]).abs().max() > 0.1
    assert worst(a, their_logits(theirs, one), one) > 0.1


def test_stock_encoder_is_not_equal():
    """Why the checkpoint mode exists; should this fail, torchtune has changed and the mode can go."""
    batch = batch_of(item(LONG, [(1, 1)], 1))
    difference = our_logits(tiny(), batch) - our_logits(tiny(encoder_mode="torchtune"), batch)
    assert difference.abs().max() > 0.01


def _rows(batch, n):
    return {"padding": batch["padding"][:n]}
