"""Batches of different lengths, images and tiles."""

import random

import pytest
import torch
from torchtune.modules.transforms import VisionCrossAttentionMask

from medtune.models.llama3_2_vision._collate import BatchLayout, attention_spans, collate

IMAGE = 50
LAYOUT = BatchLayout(pad_id=0, image_id=IMAGE, image_size=4, tokens_per_tile=5)


def item(tokens, tiles=()):
    return {
        "id": f"s{len(tokens)}",
        "tokens": tokens,
        "labels": [-100, *tokens[1:]],
        "images": [torch.full((n, 3, 4, 4), float(n)) for n in tiles],
        "aspect_ratio": [torch.tensor([1, n]) for n in tiles],
    }


def batch_of(*items, pad_side="right", images=1, tiles=1):
    return collate(list(items), LAYOUT, pad_side=pad_side, images=images, tiles=tiles, dtype=torch.float32)


def test_two_images_keep_their_own_columns():
    """The case that torchtune's collator scrambles."""
    mask = batch_of(item([IMAGE, IMAGE, 1, 2], (1, 1)))["vision_mask"][0]
    first, second = mask[:, :5], mask[:, 5:]
    assert first.all()
    assert not second[0].any() and second[1:].all()


def test_masks_equal_torchtunes_transform_per_image():
    stock = VisionCrossAttentionMask(tile_size=4, patch_size=2, image_token_id=IMAGE)
    rng = random.Random(0)
    for _ in range(200):
        tokens = [rng.choice([IMAGE, 1, 2]) for _ in range(rng.randint(1, 12))]
        tiles = [rng.randint(1, 3) for token in tokens if token == IMAGE]
        images = [torch.zeros(n, 3, 4, 4) for n in tiles]
        expected = stock({"tokens": tokens, "encoder_input": {"images": images}})["encoder_mask"]
        mask = batch_of(item(tokens, tiles))["vision_mask"][0].unflatten(1, (max(1, len(tiles)), -1))
        for i, per_image in enumerate(expected):
            assert torch.equal(mask[:, i, : per_image.shape[1]], per_image)
            assert not mask[:, i, per_image.shape[1] :].any()
        if not tiles:
            assert not mask.any()


def test_spans_end_at_the_next_group():
    assert attention_spans([IMAGE, IMAGE, 1, 1, IMAGE, 1], IMAGE) == [(0, 4), (1, 4), (4, 6)]


@pytest.mark.parametrize(("pad_side", "place"), [("right", slice(0, 3)), ("left", slice(2, 5))])
def test_short_rows_are_filled_on_the_asked_side(pad_side, place):
    batch = batch_of(item([IMAGE, 7, 8], (1,)), item([IMAGE, 1, 2, 3, 4], (2,)), pad_side=pad_side)
    assert batch["tokens"][0, place].tolist() == [IMAGE, 7, 8]
    assert batch["labels"][0, place].tolist() == [-100, 7, 8]
    assert batch["padding"][0].sum() == 3 and batch["padding"][0, place].all()
    assert (batch["tokens"][0][~batch["padding"][0]] == 0).all()
    assert (batch["labels"][0][~batch["padding"][0]] == -100).all()
    assert not batch["vision_mask"][0][~batch["padding"][0]].any()
    assert batch["vision_mask"][0, place, :5].all() and not batch["vision_mask"][0, :, 5:].any()


def test_missing_images_and_tiles_are_zeros_that_nobody_sees():
    batch = batch_of(item([1, 2]), item([IMAGE, 3, IMAGE, 4], (2, 1)))
    assert batch["vision"]["tiles"].tolist() == [[0, 0], [2, 1]]
    assert batch["vision"]["aspect_ratio"].tolist() == [[[1, 1], [1, 1]], [[1, 2], [1, 1]]]
    assert batch["vision"]["images"].shape == (2, 2, 2, 3, 4, 4)
    assert not batch["vision"]["images"][0].any() and not batch["vision"]["images"][1, 1, 1].any()
    assert not batch["vision_mask"][0].any()
    assert batch["ids"] == ["s2", "s4"]


def test_a_text_batch_has_one_zero_image():
    batch = batch_of(item([1, 2, 3]))
    assert batch["vision"]["images"].shape == (1, 1, 1, 3, 4, 4)
    assert batch["vision_mask"].shape == (1, 3, 5) and not batch["vision_mask"].any()


def test_sizes_can_be_fixed_for_caches():
    batch = batch_of(item([IMAGE, 1], (1,)), images=2, tiles=3)
    assert batch["vision"]["images"].shape == (1, 2, 3, 3, 4, 4)
    assert batch["vision_mask"].shape == (1, 2, 30)
