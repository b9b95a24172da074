"""The transform of Qwen2.5-VL: ids and pixels as the published code makes them, from a tiny tokenizer."""

import json
import pickle
import random

import pytest
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as their_resize

from medtune.data.features import EncodedPicture
from medtune.data.sample import Message, Sample
from medtune.errors import DataError, ModelError
from medtune.models.common.chat_template import SampleTooLong
from medtune.models.qwen2_5_vl import qwen2_5_vl_transform
from medtune.models.qwen2_5_vl._images import BlockCutter, smart_resize
from medtune.models.qwen2_5_vl._positions import decode_places
from tests.models.tiny_tokenizers import qwen2

IDS = {
    "<|endoftext|>": 151_643,
    "<|im_start|>": 151_644,
    "<|im_end|>": 151_645,
    "<|vision_start|>": 151_652,
    "<|vision_end|>": 151_653,
    "<|image_pad|>": 151_655,
}
# The chat template of Qwen2.5-VL, without videos and the option that numbers images.
TEMPLATE = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' }}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QUESTION = "What is the cell size?"
ANSWER = "small cell size, round"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny ``tokenizer.json`` whose special tokens have Qwen2.5-VL's ids."""
    folder = tmp_path_factory.mktemp("qwen2_5_vl")
    qwen2(folder)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    names = {"<img>": "<|vision_start|>", "</img>": "<|vision_end|>", "<IMG_CONTEXT>": "<|image_pad|>"}
    for entry in content["added_tokens"]:
        content["model"]["vocab"].pop(entry["content"], None)
        entry["content"] = names.get(entry["content"], entry["content"])
        entry["id"] = IDS.get(entry["content"], 151_600)
        content["model"]["vocab"][entry["content"]] = entry["id"]
    file.write_text(json.dumps(content), encoding="utf-8")
    return folder


def picture(width, height, seed=0):
    noise = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(noise.numpy())


def sample(images, *turns):
    return Sample("s1", tuple(f"{i}.png" for i in range(images)), tuple(Message(*turn) for turn in turns))


def their_ids(folder, messages, grids, generate=False):
    """transformers' ids: its template, then each pad token once per feature, as its processor does."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    text = tokenizer.apply_chat_template(
        messages, chat_template=TEMPLATE, tokenize=False, add_generation_prompt=generate
    )
    ids, waiting = [], iter(grids)
    for token in tokenizer(text, add_special_tokens=False).input_ids:
        ids += [token] * (next(waiting) if token == IDS["<|image_pad|>"] else 1)
    return ids


@pytest.mark.parametrize("generate", [False, True])
def test_ids_are_those_of_the_published_template(folder, generate):
    transform = qwen2_5_vl_transform(folder)
    asked = sample(2, ("user", f"<image><image>{QUESTION}"), ("assistant", ANSWER))
    pictures = [picture(90, 45), picture(200, 310)]
    item = transform(asked, pictures, inference=generate)
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": ANSWER}]
    counts = [transform.tile_count(*one.size) for one in pictures]
    assert item["tokens"] == their_ids(folder, messages[: 1 if generate else 2], counts, generate)
    assert item["tokens"].count(IDS["<|image_pad|>"]) == sum(counts) == sum(h * w for h, w in item["grids"])
    untagged = transform(sample(2, ("user", QUESTION), ("assistant", ANSWER)), pictures, inference=generate)
    assert untagged["tokens"] == item["tokens"]
    learned = [token for token, label in zip(item["tokens"], item["labels"], strict=True) if label != -100]
    assert transform.decode(learned) == ("" if generate else ANSWER)


def test_pixels_are_those_of_the_published_processor(folder):
    """The PIL processor's patches, in the order in which our tower cuts blocks into patches."""
    transform = qwen2_5_vl_transform(folder, min_pixels=3136, max_pixels=50_000)
    theirs = Qwen2VLImageProcessorPil(size={"shortest_edge": 3136, "longest_edge": 50_000})
    for size in ((300, 500), (57, 31), (20, 20), (640, 90)):
        image = picture(*size)
        given = theirs(image, return_tensors="pt")
        (blocks,) = transform(sample(1, ("user", QUESTION), ("assistant", ANSWER)), [image])["images"]
        patches = given["pixel_values"].view(-1, 4, 3, 2, 14, 14)
        assert torch.equal(patches[:, :, :, 0], patches[:, :, :, 1])
        ours = blocks.view(-1, 3, 2, 14, 2, 14).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        assert (ours - patches[:, :, :, 0]).abs().max() < 1e-6
        rows, columns = transform.tiler.grid(*size)
        assert given["image_grid_thw"].tolist() == [[1, 2 * rows, 2 * columns]]


def test_sizes_are_those_of_the_published_code():
    rng = random.Random(3)
    for _ in range(2000):
        width, height = (round(10 ** rng.uniform(1, 3.7)) for _ in range(2))
        least = rng.choice([784, 3136, 200_704])
        most = rng.choice([200_704, 1_003_520, 12_845_056])
        if max(width, height) > 200 * min(width, height):
            continue
        high, wide = their_resize(height, width, 28, least, most)
        assert smart_resize(width, height, 28, least, most) == (wide, high)


def test_an_image_of_too_long_sides_is_refused_with_its_size(folder):
    transform = qwen2_5_vl_transform(folder)
    assert transform.tile_count(2000, 10) > 0
    for size in ((2001, 10), (10, 2001)):
        with pytest.raises(DataError, match=f"{size[0]} x {size[1]} pixels.*200 times.*skip"):
            transform(sample(1, ("user", QUESTION), ("assistant", ANSWER)), [Image.new("RGB", size)])


def test_an_image_of_16384_tokens_is_refused_with_a_remedy(folder):
    """At the published max_pixels; no pixel is read before."""
    transform = qwen2_5_vl_transform(folder, max_pixels=12_845_056)
    assert transform.tiler.max_tiles == 16_384
    with pytest.raises(SampleTooLong, match=r"16384 of them for its images.*lower max_pixels.*28 x 28.*one token"):
        transform(sample(1, ("user", QUESTION), ("assistant", ANSWER)), [Image.new("L", (3584, 3584))])
    assert qwen2_5_vl_transform(folder).tile_count(5000, 5000) <= 1280


@pytest.mark.parametrize(("least", "most"), [(0, 3136), (3136, 784), (100, 783), (3136, 10**9)])
def test_impossible_limits_of_pixels_are_refused(least, most):
    with pytest.raises(ModelError, match="max_pixels"):
        BlockCutter(28, least, most)


def test_a_tokenizer_of_another_vocabulary_is_refused(folder, tmp_path):
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    for entry in content["added_tokens"]:
        if entry["content"] == "<|image_pad|>":
            entry["id"] = content["model"]["vocab"]["<|image_pad|>"] = 151_700
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ModelError, match=r"image_pad\|> is token 151700.*151655"):
        qwen2_5_vl_transform(tmp_path)


def test_images_of_different_sizes_in_a_batch_keep_their_places(folder):
    transform = qwen2_5_vl_transform(folder)
    one = transform(sample(1, ("user", QUESTION), ("assistant", ANSWER)), [picture(84, 140)])
    two = transform(sample(2, ("user", QUESTION), ("assistant", ANSWER)), [picture(56, 56), picture(112, 84)])
    text = transform(sample(0, ("user", QUESTION), ("assistant", ANSWER)), [])
    batch = transform.collate([one, two, text], min_tiles=20)
    assert batch["vision"]["grid"].tolist() == [[[5, 3], [0, 0]], [[2, 2], [3, 4]], [[0, 0], [0, 0]]]
    assert batch["vision"]["tiles"].tolist() == [[15, 0], [4, 12], [0, 0]]
    places = decode_places(batch["vision_mask"].unflatten(1, (2, 20)))
    assert (batch["vision_mask"] > 0).sum(1).tolist() == [15, 16, 0]
    assert places.row[1, 1, :12].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert places.column[1, 1, :12].tolist() == [0, 1, 2, 3] * 3
    assert places.saved[0, 0].tolist() == [0] * 14 + [10] + [0] * 5


def test_an_encoded_image_of_another_resolution_is_refused(folder):
    transform = qwen2_5_vl_transform(folder)
    question = sample(1, ("user", QUESTION), ("assistant", ANSWER))
    item = transform(question, [EncodedPicture((84, 140), torch.zeros(15, 1, 8))])
    assert item["grids"] == [(5, 3)]
    transform.feature_width = 8
    assert transform.collate([item])["features"].shape == (1, 15, 8)
    wrong = transform(question, [EncodedPicture((84, 140), torch.zeros(6, 1, 8))])
    with pytest.raises(DataError, match=r"sample s1: image 1 has 6 blocks, but 5 x 3.*max_pixels"):
        transform.collate([item, wrong])


def test_counted_tokens_are_those_of_the_transform(folder):
    transform = qwen2_5_vl_transform(folder, max_pixels=20_000)
    asked = sample(2, ("user", QUESTION), ("assistant", ANSWER))
    sizes = [(90, 45), (400, 310)]
    item = transform(asked, [picture(*size) for size in sizes])
    assert transform.token_count(asked, sizes) == len(item["tokens"]) <= transform.token_count(asked)


def test_the_transform_can_be_sent_to_workers(folder):
    transform = qwen2_5_vl_transform(folder, system="")
    again = pickle.loads(pickle.dumps(transform))
    asked = sample(1, ("user", QUESTION), ("assistant", ANSWER))
    assert again(asked, [picture(50, 60)])["tokens"] == transform(asked, [picture(50, 60)])["tokens"]
    assert transform.tiler.settings()["max_pixels"] == 1_003_520
