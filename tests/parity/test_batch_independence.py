"""A sample's output does not depend on its batch neighbours, and text is untouched by images that it cannot see."""

import pytest
import torch

from tests.parity.mllama_twin import IMAGE, batch_of, item, our_logits, tiny

SMALL = item([IMAGE, *range(3, 20)], [(1, 1)], 1)
LARGE = item([IMAGE, *range(3, 30)], [(2, 2)], 2)
TWO = item([IMAGE, IMAGE, *range(3, 12)], [(1, 2), (3, 1)], 3)
TEXT = item(list(range(3, 15)), [], 4)


@pytest.mark.parametrize("mode", ["strict", "checkpoint"])
def test_neighbours_do_not_matter(mode):
    model = tiny(encoder_mode=mode)
    together = our_logits(model, batch_of(SMALL, LARGE, TWO, TEXT))
    for row, alone in enumerate((SMALL, LARGE, TWO, TEXT)):
        n = len(alone["tokens"])
        assert (together[row, :n] - our_logits(model, batch_of(alone))[0]).abs().max() < 1e-5


def test_stock_encoder_depends_on_neighbours():
    model = tiny(encoder_mode="torchtune")
    together = our_logits(model, batch_of(SMALL, LARGE))
    assert (together[0, :18] - our_logits(model, batch_of(SMALL))[0]).abs().max() > 0.01


def test_strict_mode_ignores_empty_tiles_where_checkpoint_mode_cannot():
    strict, faithful = tiny(encoder_mode="strict"), tiny()
    narrow = tiny(pad_tiles=1)
    batch = batch_of(SMALL)
    assert (our_logits(strict, batch) - our_logits(strict, batch_of(SMALL, tiles=4))).abs().max() < 1e-5
    assert (our_logits(faithful, batch) - our_logits(narrow, batch)).abs().max() > 0.01


@pytest.mark.parametrize("mode", ["strict", "checkpoint", "torchtune"])
def test_a_text_sample_beside_images_equals_text_alone(mode):
    model = tiny(encoder_mode=mode)
    n = len(TEXT["tokens"])
    with torch.no_grad():
        alone = model.logits(model.hidden(torch.tensor([TEXT["tokens"]])))[0]
    assert (our_logits(model, batch_of(LARGE, TEXT))[1, :n] - alone).abs().max() < 1e-5
    assert torch.equal(our_logits(model, batch_of(TEXT))[0], alone)


def test_a_text_batch_gives_every_vision_parameter_a_gradient_of_zero():
    """All ranks of a sharded run must take the same graph; nothing may move for an image that is not there."""
    model = tiny()
    batch = batch_of(TEXT)
    features = model.encode(batch["vision"])
    model.logits(model.hidden(batch["tokens"], features, vision_mask=batch["vision_mask"])).sum().backward()
    for name, parameter in model.encoder.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name
