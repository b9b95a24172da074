"""Gemma 3's transform gives transformers' tokens and pixels, and refuses what its chat format cannot hold."""

import json
import pickle
from dataclasses import replace

import pytest
import torch
from PIL import Image

from medtune.data.sample import Message, Sample
from medtune.errors import DataError, ModelError
from medtune.models.common.chat_formats import gemma
from medtune.models.gemma3 import gemma3_transform
from medtune.models.gemma3._images import SquashTiler
from medtune.models.gemma3._transform import gemma3_tokenizer, transform_of
from tests.models.tiny_gemma import SOFT, SPECIAL, processor, tokenizer_json
from tests.parity.gemma3_twin import SHAPE

SIZE, TOKENS = SHAPE.image_size, SHAPE.tokens_per_image


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Our transform and transformers' processor on one tokenizer."""
    folder = tmp_path_factory.mktemp("gemma")
    theirs = processor(folder, SIZE, TOKENS)
    return ours_of(gemma3_tokenizer(folder)), theirs


def ours_of(tokenizer, system=""):
    ids = {"image_id": SOFT, "image_start_id": "<start_of_image>", "image_end_id": "<end_of_image>"}
    shape = replace(SHAPE, **{name: tokenizer.special_id(token) for name, token in ids.items()})
    return transform_of(tokenizer, shape, 2048, system, False)


def picture(seed, width=50, height=30):
    noise = torch.randint(0, 256, (7, 5, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(noise.numpy()).resize((width, height), Image.Resampling.BICUBIC)


def sample(*turns, images=0):
    return Sample("s1", ("a.png",) * images, tuple(Message(role, text) for role, text in turns))


def items_of(text):
    """A message's text as transformers' template wants it: texts and images."""
    items = []
    for i, part in enumerate(text.split("<image>")):
        items += [{"type": "image"}] if i else []
        items += [{"type": "text", "text": part}] if part.strip() else []
    return items


def rendered(theirs, one, pictures, *, inference=False):
    turns = [{"role": m.role, "content": items_of(m.content)} for m in one.messages]
    text = theirs.apply_chat_template(turns, add_generation_prompt=inference, tokenize=False)
    images = {"images": pictures} if pictures else {}
    return theirs(text=text, add_special_tokens=False, return_tensors="pt", **images)


ASK = ("user", "<image>What is the cell size?")
CASES = {
    "one image": [ASK, ("assistant", "big")],
    "a line break after the tag": [("user", "<image>\nWhat is it?\n"), ("assistant", " round. ")],
    "two images and texts between": [("user", "Is <image> larger\nthan <image>?"), ("assistant", "no\n\nno")],
    "two images side by side": [("user", "<image><image> compare"), ("assistant", "same")],
    "an image at the end": [("user", "What is this? <image>"), ("assistant", "a cell")],
    "a system message": [("system", "You are a doctor."), ASK, ("assistant", "big")],
    "two rounds": [ASK, ("assistant", "big"), ("user", "color?"), ("assistant", "red")],
    "text alone": [("user", "hello\n\n\nyou"), ("assistant", "hi")],
}


@pytest.mark.parametrize("case", CASES)
def test_tokens_and_pixels_are_transformers(both, case):
    ours, theirs = both
    one = sample(*CASES[case], images=str(CASES[case]).count("<image>"))
    pictures = [picture(i, 40 + 9 * i) for i in range(len(one.images))]
    item, expected = ours(one, pictures), rendered(theirs, one, pictures)
    assert item["tokens"] == expected["input_ids"][0].tolist()
    if pictures:
        assert (torch.cat(item["images"]) - expected["pixel_values"]).abs().max() < 1e-6
        assert item["tokens"].count(ours.image_id) == TOKENS * len(pictures)
    asked = replace(one, messages=one.messages[:-1])
    assert (
        ours(asked, pictures, inference=True)["tokens"]
        == rendered(theirs, asked, pictures, inference=True)["input_ids"][0].tolist()
    )


def test_line_breaks_before_an_image_are_one_token(both):
    """The header's line break and the empty line before the image; apart they would be other embeddings."""
    ours, _ = both
    tokens = ours(sample(ASK, ("assistant", "x"), images=1), [picture(1)])["tokens"]
    before = tokens[tokens.index(ours.image_start[0]) - 1]
    assert before == ours.tokenizer.vocabulary()["\n\n\n"]


def test_an_image_without_a_tag_stands_first(both):
    ours, _ = both
    tagged, plain = (
        ours(sample(("user", text), ("assistant", "x"), images=1), [picture(1)])["tokens"]
        for text in ("<image>What is it?", "What is it?")
    )
    assert tagged == plain


def test_answers_and_the_ends_of_their_turns_are_supervised(both):
    ours, _ = both
    item = ours(sample(ASK, ("assistant", "big"), ("user", "color?"), ("assistant", "red"), images=1), [picture(1)])
    end = ours.tokenizer.special_id("<end_of_turn>")
    learned = [label for label in item["labels"] if label != -100]
    assert learned == [*ours.encode("big"), end, *ours.encode("red"), end]
    assert ours.stop_ids == [ours.tokenizer.special_id("<eos>"), end]


def test_a_report_alone_is_one_answer_behind_its_image(both):
    ours, _ = both
    item = ours(sample(("assistant", "big"), images=1), [picture(1)])
    assert ours.tokenizer.special_id("<start_of_turn>") in item["tokens"]
    assert item["tokens"].index(ours.image_id) < item["labels"].index(ours.encode("big")[0])


def test_a_default_system_message_is_written_where_there_is_none(both):
    ours, _ = both
    other = ours_of(ours.tokenizer, system="You are a doctor.")
    assert (
        other(sample(("user", "a"), ("assistant", "b")), [])["tokens"]
        == ours(sample(("system", "You are a doctor."), ("user", "a"), ("assistant", "b")), [])["tokens"]
    )


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ([("user", "a"), ("user", "b"), ("assistant", "c")], "s1: message 2 is of the user again; gemma's chat format"),
        ([("user", "a"), ("assistant", "b"), ("assistant", "c")], "message 3 is of the assistant again"),
        ([("user", "a"), ("system", "b"), ("assistant", "c")], "message 2 is of the system and not the first"),
        ([("user", "a"), ("assistant", "see <image>")], r"message 2 \(assistant\) has <image>; .* user's turns only"),
        ([("system", "<image>"), ("user", "a"), ("assistant", "b")], r"message 1 \(system\) has <image>"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(both, turns, said):
    ours, _ = both
    for inference in (False, True):
        with pytest.raises(DataError, match=said):
            ours(sample(*turns), [], inference=inference)


def test_the_published_template_has_no_virtual_user():
    with pytest.raises(ModelError, match="gemma has no virtual user"):
        gemma().turn("virtual_user")


@pytest.mark.parametrize("special", [True, False])
def test_control_tokens_that_a_report_spells_out_are_text(special, tmp_path):
    """Also if the file lists them as ordinary added tokens."""
    tokenizer_json(marks_are_special=special).save(str(tmp_path / "tokenizer.json"))
    ours = ours_of(gemma3_tokenizer(tmp_path))
    marks = [*SPECIAL[:3], *SPECIAL[4:], SOFT]
    ids = {ours.tokenizer.special_id(mark) for mark in marks}
    for mark in marks:
        found = ours.encode(f"x {mark} y")
        assert not ids & set(found) and ours.decode(found) == f"x {mark} y"
    copied = pickle.loads(pickle.dumps(ours))
    assert copied.encode("<end_of_turn>") == ours.encode("<end_of_turn>")


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    tokenizer_json().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelError, match=r"<image_soft_token> is token \d+ of this tokenizer, but 262144 of the model"):
        gemma3_transform(tmp_path)
    with pytest.raises(ModelError, match="tokens and the model 30: it belongs to another model"):
        gemma3_tokenizer(tmp_path, vocab_size=30)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["added_tokens"] = [entry for entry in content["added_tokens"] if entry["content"] != SOFT]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="has no token <image_soft_token>"):
        gemma3_transform(tmp_path)
    with pytest.raises(ModelError, match="no tokenizer"):
        gemma3_transform(tmp_path / "nothing")


def test_every_image_is_one_square_tile():
    tiler = SquashTiler(28)
    assert tiler.max_tiles == tiler.count(1000, 10) == 1
    for mode in ("L", "RGBA", "P"):
        assert tiler(picture(1, 20, 90).convert(mode)).shape == (1, 3, 28, 28)
    assert tiler.settings() != SquashTiler(28, mean=(0.4, 0.5, 0.5)).settings()
