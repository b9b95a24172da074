"""LLaVA's pictures and prompts, beside transformers' own and the written Vicuna format."""

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from medtune.data.sample import Message, Sample
from medtune.errors import DataError, ModelError
from medtune.models.common.chat_template import SampleTooLong
from medtune.models.llava import SquareTiler, llava1_5_transform
from medtune.models.mini import mini_llava_transform
from tests.models.tiny_tokenizers import llama2

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
IMAGE, PAD, TOKENS = 32_000, 32_001, 576
# Vicuna v1.1 as a template of transformers, images as llava-hf's own writes them.
VICUNA = (
    "{{ bos_token }}{% if messages[0].role != 'system' %}" + SYSTEM + " {% endif %}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ m.content }} {% elif m.role == 'user' %}USER: {{ m.content }} "
    "{% else %}ASSISTANT: {{ m.content }}</s>{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def picture(width, height, mode="RGB"):
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


# -- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["pad", "crop"])
@pytest.mark.parametrize("size", [(40, 40), (61, 37), (33, 70), (28, 28), (200, 90)])
def test_pixels_equal_transformers(mode, size):
    theirs = LlavaImageProcessorPil(
        do_pad=mode == "pad", size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    )
    expected = theirs(picture(*size), return_tensors="pt")["pixel_values"]
    found = SquareTiler(28, mode)(picture(*size))
    assert found.shape == (1, 3, 28, 28) and found.dtype == torch.float32
    assert (found - expected).abs().max() < 1e-6


def test_padding_is_of_the_mean_colour_and_in_the_middle():
    found = SquareTiler(28)(Image.new("RGB", (28, 14), (255, 255, 255)))[0]
    assert found[:, :6].abs().max() < 0.02 and found[:, -6:].abs().max() < 0.02  # normalised mean
    assert found[:, 9:19].min() > 1.8


def test_grey_pictures_are_read_as_colour():
    assert torch.equal(SquareTiler(28)(picture(40, 30, "L")), SquareTiler(28)(picture(40, 30, "L").convert("RGB")))


def test_an_unknown_mode_is_refused():
    with pytest.raises(ModelError, match="resize must be pad or crop, got 'squash'"):
        SquareTiler(28, "squash")


# -- prompts ----------------------------------------------------------------------------------------------------------


def llama_like(folder, *, image=True):
    """A ``tokenizer.json`` in Llama-2's format with 32,000 tokens, most of them unused, and llava-hf's two more."""
    text = SYSTEM + "USER ASSISTANT: What is shown? A cell, round and blue.\nDescribe it\u25cf\u2581"
    letters = sorted(set(text) - {" "})
    pairs = [
        "\u2581 a",
        "\u2581 A",
        "o u",
        "\u2581 c",
        "e l",
        "el l",
        "\u2581c ell",
        "E R",
        "U S",
        "US ER",
        "\u2581 USER",
    ]
    words = [pair.replace(" ", "") for pair in pairs]
    merges = [tuple(pair.split()) for pair in pairs]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *letters, *words]
    tokens += [f"unused{i}" for i in range(32_000 - len(tokens))]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", *(["<image>", "<pad>"] if image else [])])
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return llama_like(tmp_path_factory.mktemp("llava"))


def sample(*turns, images=1):
    messages = tuple(Message(role, content) for role, content in turns)
    return Sample("7", tuple(f"{i}.png" for i in range(images)), messages)


TURNS = {
    "one turn": ([("user", "What is shown?"), ("assistant", "A cell, round.")], 1),
    "two turns": (
        [("user", "What is shown?"), ("assistant", "A cell."), ("user", "Describe it"), ("assistant", "It is blue.")],
        1,
    ),
    "two images": ([("user", "Is it a cell?"), ("assistant", "A cell.")], 2),
    "no image": ([("user", "Is it a cell?"), ("assistant", "A cell.")], 0),
    "system": ([("system", "A cell is round."), ("user", "Describe it"), ("assistant", "It is blue.")], 1),
    "tags": ([("user", "What is <image>\nand <image>?"), ("assistant", "A cell.")], 2),
}


def theirs(folder, turns, images, **kwargs):
    """transformers' ids of the whole conversation as one string, an image token grown to its features."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = VICUNA
    messages = [{"role": role, "content": content} for role, content in turns]
    if images and not any("<image>" in content for _, content in turns):
        first = next(message for message in messages if message["role"] == "user")
        first["content"] = "<image>\n" * images + first["content"]
    ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **kwargs)
    assert ids.count(IMAGE) == images
    return [i for token in ids for i in ([token] * (TOKENS if token == IMAGE else 1))]


@pytest.mark.parametrize("case", TURNS)
def test_tokens_equal_transformers(folder, case):
    turns, images = TURNS[case]
    item = llava1_5_transform(folder, max_seq_len=4096)(sample(*turns, images=images), [picture(20, 10)] * images)
    assert item["tokens"] == theirs(folder, turns, images)
    assert item["tokens"].count(IMAGE) == TOKENS * images and 0 not in item["tokens"]


@pytest.mark.parametrize("case", TURNS)
def test_prompts_equal_transformers(folder, case):
    turns, images = TURNS[case]
    item = llava1_5_transform(folder, max_seq_len=4096)(
        sample(*turns, images=images), [picture(20, 10)] * images, inference=True
    )
    assert item["tokens"] == theirs(folder, turns[:-1], images, add_generation_prompt=True)


def test_answers_and_their_ends_are_learned(folder):
    turns, images = TURNS["two turns"]
    transform = llava1_5_transform(folder)
    item = transform(sample(*turns), [picture(20, 10)])
    learned = [label for label in item["labels"] if label != -100]
    end = transform.tokenizer.special_id("</s>")
    assert learned[-1] == end and learned.count(end) == 2
    cut = learned.index(end)
    answers = [transform.decode(part).strip() for part in (learned[:cut], learned[cut:])]
    assert answers == ["A cell.", "It is blue."]
    assert transform.stop_ids == [end]


def test_the_system_sentence_can_be_left_out(folder):
    turns, _ = TURNS["one turn"]
    plain = llava1_5_transform(folder, system="")(sample(*turns), [picture(20, 10)])
    assert len(plain["tokens"]) < len(llava1_5_transform(folder)(sample(*turns), [picture(20, 10)])["tokens"])
    assert "curious" not in llava1_5_transform(folder).decode([i for i in plain["tokens"] if i < IMAGE])


def test_a_tokenizer_without_the_image_token_serves_too(tmp_path, folder):
    """The authors' own files: the image token is not in them."""
    turns, images = TURNS["two images"]
    pictures = [picture(20, 10)] * images
    other = llava1_5_transform(llama_like(tmp_path / "own", image=False))
    assert other(sample(*turns, images=2), pictures)["tokens"] == theirs(folder, turns, images)


def test_a_sentencepiece_file_gives_the_same_tokens(tmp_path):
    """The authors' files hold no other tokenizer."""
    llama2(tmp_path, legacy=True, marks=())
    turns, images = TURNS["two turns"]
    found = [
        llava1_5_transform(tmp_path / name)(sample(*turns), [picture(20, 10)])
        for name in ("tokenizer.model", "tokenizer.json")
    ]
    assert found[0]["tokens"] == found[1]["tokens"] and found[0]["labels"] == found[1]["labels"]
    assert found[0]["tokens"].count(IMAGE) == TOKENS * images


def test_an_image_token_elsewhere_is_refused(tmp_path, folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    for token in content["added_tokens"]:
        if token["content"] in ("<image>", "<pad>"):
            token["content"] = {"<image>": "<pad>", "<pad>": "<image>"}[token["content"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=f"<image> has the id {PAD}, the model's is {IMAGE}"):
        llava1_5_transform(tmp_path)


def test_counts_lengths_and_limits(folder):
    transform = llava1_5_transform(folder, max_seq_len=800)
    turns, images = TURNS["one turn"]
    item = transform(sample(*turns), [picture(20, 10)])
    assert transform.token_count(sample(*turns), [(20, 10)]) == len(item["tokens"]) == len(item["labels"])
    assert item["images"][0].shape == (1, 3, 336, 336) and transform.tile_count(4000, 20) == 1
    with pytest.raises(SampleTooLong, match="1152 of them for its"):
        transform(sample(*turns, images=2), [picture(20, 10)] * 2)
    with pytest.raises(DataError, match="has 0 images but its text has places for 1"):
        transform(sample(*turns), [])


def test_placeholders_are_one_token_each(folder):
    transform = llava1_5_transform(folder)
    assert transform.placeholder_text == "\u25cf"  # the first candidate is no token of this tokenizer
    ids = transform.tokenizer.encode("What" + "\u25cf" * 5 + "is", first=False)
    assert ids.count(transform.placeholder_id) == 5


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(ModelError, match="no tokenizer at .*tokenizer.model"):
        llava1_5_transform(tmp_path)


# -- the mini model's -------------------------------------------------------------------------------------------------


def test_the_mini_transform_counts_as_the_model_does(tokenizer_dir):
    transform = pickle.loads(pickle.dumps(mini_llava_transform(tokenizer_dir, image_size=32)))
    turns, images = TURNS["two images"]
    item = transform(sample(*turns, images=2), [picture(20, 10), picture(9, 9)])
    assert item["tokens"].count(transform.image_id) == 2 * 16
    batch = transform.collate([item, transform(sample(*turns, images=0), [])])
    assert batch["vision"]["images"].shape == (2, 2, 1, 3, 32, 32)
    assert batch["vision_mask"].sum(1).tolist() == [32, 0]
