"""A sample's tokens, labels and tiles for models that read images as tokens, and batches of them."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from medtune.data.sample import Message, Sample
from medtune.errors import DataError, ModelError
from medtune.models.common.chat_template import SampleTooLong
from medtune.models.common.early_collate import existing_features
from tests.models.tiny_early import PER_TILE, SIZE, tiny_early_transform

USER = Message("user", "What is the cell size?")
BIG = Message("assistant", "big")


@pytest.fixture(scope="module")
def transform(tokenizer_dir):
    return tiny_early_transform(tokenizer_dir)


def sample(*messages, images=(), name="s1"):
    return Sample(name, tuple(images), tuple(messages))


def picture(width=8, height=8, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def block(transform, tiles):
    mark = transform.tokenizer.eom_id
    return [mark, *[transform.image_id] * (PER_TILE * tiles), mark]


def test_an_image_is_as_many_tokens_as_features(transform):
    item = transform(sample(USER, BIG, images=["a", "b"]), [picture(24, 8), picture()])
    t = transform.tokenizer
    head = [t.bos_id, t.start_header_id, *t.encode("user"), t.end_header_id, *t.encode("\n\n")]
    answer = [*t.encode("big"), t.eot_id]
    opened = [t.start_header_id, *t.encode("assistant"), t.end_header_id, *t.encode("\n\n")]
    question = [*t.encode("What is the cell size?"), t.eot_id]
    assert item["tokens"] == [*head, *block(transform, 3), *block(transform, 1), *question, *opened, *answer]
    assert item["labels"] == [-100] * (len(item["tokens"]) - len(answer)) + answer
    assert [tuple(tiles.shape) for tiles in item["images"]] == [(3, 3, SIZE, SIZE), (1, 3, SIZE, SIZE)]
    asked = transform(sample(USER, BIG, images=["a", "b"]), [picture(24, 8), picture()], inference=True)
    assert asked["tokens"] == item["tokens"][: -len(answer)] and set(asked["labels"]) == {-100}


def test_tags_place_the_images(transform):
    turns = [Message("user", "Compare <image> with <image>."), BIG]
    tokens = transform(sample(*turns, images=["a", "b"]), [picture(), picture(16, 8)])["tokens"]
    first, second = block(transform, 1), block(transform, 2)
    between = transform.tokenizer.encode(" with ")
    start = tokens.index(first[0])
    assert tokens[start : start + 16 + len(between)] == [*first, *between, *second]


@pytest.mark.parametrize(("text", "images"), [("A <image>.", 2), ("<image> <image>", 1), ("A <image>", 0)])
def test_images_and_places_must_agree(transform, text, images):
    one = sample(Message("user", text), BIG, images=["a"] * images)
    with pytest.raises(DataError, match=f"s1 has {images} images but its text has places for {text.count('<image>')}"):
        transform(one, [picture()] * images)
    assert transform.token_count(one) > 0
    with pytest.raises(DataError, match="s1 has 0 images but its text has places for 1"):
        transform(sample(USER, BIG, images=["a"]), [])


@pytest.mark.parametrize("sizes", [[], [(8, 8)], [(16, 8), (8, 40)], [(24, 9), (8, 8), (9, 8)]])
def test_token_count_is_the_length(transform, sizes):
    full = sample(USER, BIG, images=["a"] * len(sizes))
    length = len(transform(full, [picture(*size) for size in sizes])["tokens"])
    assert transform.token_count(full, sizes) == length
    most = [(SIZE * transform.tiler.max_tiles, SIZE)] * len(sizes)
    assert transform.token_count(full) == transform.token_count(full, most) >= length


def test_too_long_counts_image_tokens_and_cuts_nothing(tokenizer_dir):
    long = sample(USER, BIG, images=["a"], name="case-7")
    n = len(tiny_early_transform(tokenizer_dir)(long, [picture(16, 8)])["tokens"])
    with pytest.raises(SampleTooLong, match=f"case-7 has {n} tokens, 8 of them for its images; the limit is {n - 1}"):
        tiny_early_transform(tokenizer_dir, max_seq_len=n - 1)(long, [picture(16, 8)])
    assert tiny_early_transform(tokenizer_dir, max_seq_len=n - 1)(long, [picture()])["tokens"]


def test_nothing_to_learn_is_named(transform):
    with pytest.raises(DataError, match="s1 has no assistant message"):
        transform(sample(USER), [])


def test_the_placeholder_is_one_token_each(transform):
    prompt = sample(Message("user", transform.placeholder_text * 8), BIG, images=["a"])
    tokens = transform(prompt, [picture()])["tokens"]
    start = tokens.index(transform.placeholder_id)
    assert tokens[start : start + 8] == [transform.placeholder_id] * 8
    assert tokens.count(transform.placeholder_id) == 8


def test_a_placeholder_that_is_split_and_a_missing_token_are_refused(tokenizer_dir, transform):
    from medtune.models.common.chat_template import chatml
    from medtune.models.common.early_transform import EarlyFusionTransform

    options = {"image_id": 1, "tokens_per_tile": 4, "max_seq_len": 9}
    with pytest.raises(ModelError, match="placeholder '\u7ec6'"):
        EarlyFusionTransform(
            transform.tokenizer, transform.template, transform.tiler, placeholder_text="\u7ec6", **options
        )
    with pytest.raises(ModelError, match="has no token <|im_start|>"):
        EarlyFusionTransform(transform.tokenizer, chatml(), transform.tiler, placeholder_text="\u2460", **options)


def test_images_come_in_the_asked_dtype(transform):
    bf16 = pickle.loads(pickle.dumps(transform))
    bf16.dtype = torch.bfloat16
    full = sample(USER, BIG, images=["a"])
    exact, rounded = (t(full, [picture()])["images"][0] for t in (transform, bf16))
    assert torch.equal(exact.to(torch.bfloat16), rounded)
    assert bf16.collate([bf16(full, [picture()])])["vision"]["images"].dtype == torch.bfloat16


@pytest.mark.parametrize("pad_side", ["right", "left"])
def test_a_batch_of_different_rows(transform, pad_side):
    items = [
        transform(sample(USER, BIG, images=["a", "b"]), [picture(16, 8, 1), picture(8, 8, 2)]),
        transform(sample(USER, BIG), []),
        transform(sample(USER, BIG, images=["a"]), [picture(8, 32, 3)]),
    ]
    batch = transform.collate(items, pad_side=pad_side)
    assert batch["vision"]["tiles"].tolist() == [[2, 1], [0, 0], [4, 0]]
    assert batch["vision"]["images"].shape == (3, 2, 4, 3, SIZE, SIZE)
    for row, item in enumerate(items):
        assert batch["tokens"][row][batch["padding"][row]].tolist() == item["tokens"]
        assert batch["labels"][row][batch["padding"][row]].tolist() == item["labels"]
        assert batch["padding"][row, -1 if pad_side == "left" else 0]
        found = batch["vision"]["images"][row]
        for column, tiles in enumerate(item["images"]):
            assert torch.equal(found[column, : len(tiles)], tiles) and not found[column, len(tiles) :].any()
        exists = batch["vision_mask"][row].unflatten(0, (2, 4, PER_TILE))
        counts = [len(tiles) for tiles in item["images"]] + [0] * (2 - len(item["images"]))
        for column, count in enumerate(counts):
            assert exists[column, :count].all() and not exists[column, count:].any()
    assert (batch["tokens"] == transform.image_id).sum(1).tolist() == batch["vision_mask"].sum(1).tolist()
    assert batch["tokens"][~batch["padding"]].unique().tolist() == [transform.pad_id]
    assert batch["ids"] == ["s1"] * 3


def test_text_alone_has_a_zero_image_and_sizes_can_be_fixed(transform):
    item = transform(sample(USER, BIG), [])
    batch = transform.collate([item])
    assert batch["vision"]["images"].shape == (1, 1, 1, 3, SIZE, SIZE) and not batch["vision"]["images"].any()
    assert batch["vision_mask"].shape == (1, PER_TILE) and not batch["vision_mask"].any()
    assert transform.collate([item], min_images=2, min_tiles=3)["vision_mask"].shape == (1, 2 * 3 * PER_TILE)


def test_existing_features_by_hand():
    found = existing_features(torch.tensor([[2, 0], [1, 2]]), 2, 3).int().tolist()
    assert found == [[1] * 6 + [0] * 6, [1] * 3 + [0] * 3 + [1] * 6]
