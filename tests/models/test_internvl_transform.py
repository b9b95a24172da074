"""The transforms of InternVL2 and InternVL3: ids and pixels as the published code makes them, from tiny tokenizers."""

import json
import pickle
import re

import pytest
import torch
from PIL import Image
from sentencepiece import SentencePieceProcessor
from transformers import InternVLProcessor, PreTrainedTokenizerFast
from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor
from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor

from medtune.data.sample import Message, Sample
from medtune.errors import ModelError
from medtune.models.common.chat_template import SampleTooLong
from medtune.models.internvl import internvl2_transform, internvl3_transform
from medtune.models.internvl._images import IMAGENET_MEAN, IMAGENET_STD
from medtune.models.internvl._transform import INTERNVL2_SYSTEM, INTERNVL3_SYSTEM
from tests.models.tiny_tokenizers import CHATML_MARKS, llama2, qwen2

QWEN_IDS = {
    "<|endoftext|>": 151_643,
    "<|im_start|>": 151_644,
    "<|im_end|>": 151_645,
    "<img>": 151_665,
    "</img>": 151_666,
    "<IMG_CONTEXT>": 151_667,
}
INTERNLM_IDS = {
    "<|im_end|>": 92_542,
    "<|im_start|>": 92_543,
    "<img>": 92_544,
    "</img>": 92_545,
    "<IMG_CONTEXT>": 92_546,
}
# The chat template of OpenGVLab/InternVL3-8B-hf, which writes no system message of its own.
HF_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'image' %}{{ '<IMG_CONTEXT>\n' }}{% else %}{{ part.text }}"
    "{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def qwen_folder(tmp_path_factory):
    """A tiny ``tokenizer.json`` whose special tokens have InternVL3's ids."""
    folder = tmp_path_factory.mktemp("internvl3")
    qwen2(folder)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    for entry in content["added_tokens"]:
        entry["id"] = QWEN_IDS.get(entry["content"], 151_600)
        content["model"]["vocab"][entry["content"]] = entry["id"]
    file.write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def internlm_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("internvl2")
    llama2(folder, legacy=True, marks=tuple(CHATML_MARKS))
    (folder / "added_tokens.json").write_text(json.dumps(INTERNLM_IDS))
    return folder


def picture(width, height):
    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


def sample(images, *turns):
    return Sample("s1", tuple(f"{i}.png" for i in range(images)), tuple(Message(*turn) for turn in turns))


QUESTION = sample(2, ("user", "<image>\n<image>\nWhat is the cell size?"), ("assistant", "small cell size, round"))
PICTURES = [picture(900, 450), picture(300, 310)]


def test_internvl3_gives_the_ids_and_pixels_of_transformers_processor(qwen_folder):
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(qwen_folder / "tokenizer.json"),
        extra_special_tokens={**names, "video_token": "<|endoftext|>"},
        clean_up_tokenization_spaces=False,
    )
    size = {"height": 448, "width": 448}
    theirs = InternVLProcessor(
        GotOcr2ImageProcessor(size=size, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD),
        tokenizer,
        InternVLVideoProcessor(),
        chat_template=HF_TEMPLATE,
    )
    user = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "What is the cell size?"}]
    text = theirs.apply_chat_template([{"role": "user", "content": user}], add_generation_prompt=True, tokenize=False)
    expected = theirs(text=text, images=PICTURES, max_patches=6, return_tensors="pt")

    ours = internvl3_transform(qwen_folder, max_num_tiles=6, system="")
    found = ours(QUESTION, PICTURES, inference=True)
    assert found["tokens"] == expected["input_ids"][0].tolist()
    pixels = torch.cat(found["images"])
    assert pixels.shape == expected["pixel_values"].shape == (4, 3, 448, 448)
    assert (pixels - expected["pixel_values"]).abs().max() < 3 / 255 / min(IMAGENET_STD)  # torchvision's rounding


@pytest.mark.parametrize("system", ["", "A system message.", None])
def test_an_answer_is_asked_for_with_the_very_tokens_that_training_showed(system, qwen_folder):
    """ME-VLIP's own code adds an empty system turn and another line break when it asks."""
    transform = internvl3_transform(qwen_folder, max_num_tiles=1, max_seq_len=2048, system=system)
    for question in (QUESTION, sample(2, ("user", "What is the cell size?"), ("assistant", "small cell size, round"))):
        trained, asked = transform(question, PICTURES), transform(question, PICTURES, inference=True)["tokens"]
        first = next(place for place, label in enumerate(trained["labels"]) if label != -100)
        assert asked == trained["tokens"][:first] and asked.count(151_667) == 2 * 256
        assert transform.decode(trained["tokens"][first:]).startswith("small cell size, round")
        assert (151_644 in asked[:1]) and transform.decode(asked).count("assistant") == 1


def test_internvl2_writes_its_published_conversation(internlm_folder):
    """``conversation.py`` (internlm2-chat): no line break after ``<|im_end|>``, ``<s>`` before all."""
    transform = internvl2_transform(internlm_folder, max_num_tiles=1)
    image = "<img>" + "<IMG_CONTEXT>" * 256 + "</img>"
    prompt = (
        f"<|im_start|>system\n{INTERNVL2_SYSTEM}<|im_end|><|im_start|>user\n{image}\n{image}\n"
        "What is the cell size?<|im_end|><|im_start|>assistant\n"
    )
    pieces = SentencePieceProcessor(str(internlm_folder / "tokenizer.model"))
    expected = [1]
    for part in re.split(
        "(" + "|".join(map(re.escape, INTERNLM_IDS)) + ")", prompt + "small cell size, round<|im_end|>"
    ):
        expected += [INTERNLM_IDS[part]] if part in INTERNLM_IDS else pieces.encode(part)
    found = transform(QUESTION, PICTURES)
    assert found["tokens"] == expected
    learned = [token for token in found["labels"] if token != -100]
    # SentencePiece joins no text across the end of the header, so that the answer is encoded with it
    whole, header = pieces.encode("assistant\nsmall cell size, round"), pieces.encode("assistant\n")
    assert learned == [*whole[len(header) :], INTERNLM_IDS["<|im_end|>"]]
    assert found["tokens"].count(92_546) == 512 and [len(tiles) for tiles in found["images"]] == [1, 1]


@pytest.mark.parametrize("version", [2, 3])
def test_system_message_stop_and_padding(version, qwen_folder, internlm_folder):
    if version == 2:
        build, folder, system, stop, pad = internvl2_transform, internlm_folder, INTERNVL2_SYSTEM, [92_542, 2], 2
    else:
        build, folder, system = internvl3_transform, qwen_folder, INTERNVL3_SYSTEM
        stop, pad = [151_645, 151_643], 151_643
    transform = build(folder)
    assert (transform.stop_ids, transform.pad_id) == (stop, pad)
    tokens = transform(sample(0, ("user", "a"), ("assistant", "b")), [])["tokens"]
    assert system in transform.decode(tokens)
    assert system not in transform.decode(build(folder, system="")(QUESTION, PICTURES)["tokens"])
    own = sample(0, ("system", "Answer in a word."), ("user", "a"), ("assistant", "b"))
    text = transform.decode(transform(own, [])["tokens"])
    assert "Answer in a word." in text and system not in text


def test_tiles_are_counted_without_opening_an_image(qwen_folder):
    transform = pickle.loads(pickle.dumps(internvl3_transform(qwen_folder, max_num_tiles=4)))
    item = transform(QUESTION, PICTURES)
    sizes = [image.size for image in PICTURES]
    assert transform.token_count(QUESTION, sizes) == len(item["tokens"])
    assert [transform.tile_count(*size) for size in sizes] == [len(tiles) for tiles in item["images"]] == [3, 1]
    assert transform.token_count(QUESTION) == len(item["tokens"]) + 256 * (
        2 + 4
    )  # two images of 4 tiles and a thumbnail
    with pytest.raises(SampleTooLong, match="1024 of them for its images"):
        internvl3_transform(qwen_folder, max_num_tiles=4, max_seq_len=900)(QUESTION, PICTURES)


def test_a_placeholder_that_merges_is_passed_over(qwen_folder, tmp_path):
    assert internvl3_transform(qwen_folder).placeholder_text == "\u2460"
    content = json.loads((qwen_folder / "tokenizer.json").read_text(encoding="utf-8"))
    for entry in content["added_tokens"]:
        if entry["content"] == "\u2460":
            entry["content"] = "\u2605"
    content["model"]["vocab"]["\u2605"] = content["model"]["vocab"].pop("\u2460")
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    transform = internvl3_transform(tmp_path)
    assert (transform.placeholder_text, transform.placeholder_id) == ("\u2605", 151_600)


def test_the_tokenizer_of_another_model_is_refused(tmp_path):
    qwen2(tmp_path)  # its special tokens have ids of their own
    with pytest.raises(ModelError, match="151667 of the model; take the tokenizer of the checkpoint"):
        internvl3_transform(tmp_path)
