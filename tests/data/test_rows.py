"""Rows in the layouts in circulation."""

import pytest

from medtune.data.rows import sample_of
from medtune.data.sample import Message
from medtune.errors import DataError

ANSWER = {"role": "assistant", "content": "A cell."}
TEXT, PLACE = {"type": "text", "text": "Compare "}, {"type": "image"}


def asked(content, **more):
    return {"messages": [{"role": "user", "content": content}, ANSWER], **more}


def read(row, **options):
    return sample_of(row, "f.json, item 3", "f:3", **options)


@pytest.mark.parametrize("given", [{}, {"id": None}])
def test_a_row_without_an_id_gets_that_of_its_place(given):
    assert read({"messages": [ANSWER], **given}).id == "f:3"


def test_parts_with_places_of_images_as_in_hugging_face():
    content = [TEXT, PLACE, {"type": "text", "text": " with "}, PLACE, {"type": "text", "text": "."}]
    sample = read(asked(content, images=["1.png", "2.png"]))
    assert sample.messages[0] == Message("user", "Compare <image> with <image>.")
    assert sample.images == ("1.png", "2.png")


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "a/1.png", "detail": "high"}},
        {"type": "input_image", "image_url": "a/1.png"},
        {"type": "image", "image": "a/1.png"},
        {"type": "image", "path": "a/1.png"},
        {"type": "image", "url": "a/1.png"},
    ],
)
def test_parts_that_name_their_image_as_in_openai(part):
    sample = read(asked([part, TEXT]))
    assert (sample.images, sample.messages[0].content) == (("a/1.png",), "<image>Compare ")


def test_parts_of_an_answer_and_of_a_llava_turn():
    row = {"conversations": [{"from": "human", "value": [TEXT, PLACE]}, {"from": "gpt", "value": [TEXT, TEXT]}]}
    sample = read({**row, "image": "1.png"})
    assert [turn.content for turn in sample.messages] == ["Compare <image>", "Compare Compare "]


def test_the_words_of_llava_med_and_openai():
    assert read({"conversatons": [{"from": "gpt", "value": "x"}], "domain": {"mri": True}}).messages[0].content == "x"
    assert read({"messages": [{"role": "developer", "content": "Be brief."}, ANSWER]}).messages[0].role == "system"


@pytest.mark.parametrize("key", ["system", "system_prompt"])
def test_a_system_message_beside_the_turns(key):
    assert read(asked("Q", **{key: "Be brief."})).messages[0] == Message("system", "Be brief.")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            asked([{"type": "image_url", "image_url": {"url": "https://x/1.png"}}]),
            "message 1: an image part holds an add",
        ),
        (asked([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]), "or the image itself"),
        (asked([{"type": "image", "path": "1.png", "url": "2.png"}]), "must name one path"),
        (asked([{"type": "image", "image": {"bytes": "AA"}}]), "must name one path"),
        (asked([{"type": "input_audio", "data": "AA"}]), "message 1: a part of 'content' must be"),
        (asked([7]), "message 1: a part of 'content' must be"),
        (asked([{"type": "text", "text": "<image>"}]), "a text part holds <image>"),
        (asked([PLACE]), "1 <image> tags for 0 images"),
        (asked([{"type": "image", "path": "1.png"}], images=["1.png"]), "named twice, by images and parts"),
        (asked("Q", images=["1.png"], image="2.png"), "named twice, by image and images"),
        (asked("Q", system="a", system_prompt="b"), "'system' and another system message"),
        ({"messages": [{"role": "system", "content": "a"}, ANSWER], "system": "b"}, "another system message"),
        ({"messages": [ANSWER], "conversations": []}, "'messages' and 'conversations'"),
        ({"messages": [{**ANSWER, "tool_calls": [1]}]}, "message 1: .*'tool_calls' is not read"),
        ({"messages": [{**ANSWER, "weight": 0}]}, "message 1: .*'weight' is not read"),
        ({"conversations": [{"from": ["human"], "value": "x"}]}, "a turn needs 'value' and a 'from'"),
        ({"conversations": [{"from": "gpt", "value": "x", "thought": "y"}]}, "'thought' is not read"),
        ({"messages": [ANSWER], "caption": "x"}, "unknown field 'caption'"),
        (
            asked([{**PLACE, "index": 1}, {**PLACE, "index": 0}], images=["1.png", "2.png"]),
            "the 'index' of image parts",
        ),
    ],
)
def test_a_row_with_something_that_is_not_read_is_refused_by_name(row, said):
    with pytest.raises(DataError, match=said) as caught:
        read(row)
    assert str(caught.value).startswith("f.json, item 3")


@pytest.mark.parametrize("value", ["a text", ["1.png"], {"text": "x"}])
def test_a_key_of_a_llava_row_that_could_hold_text_is_refused_by_name(value):
    row = {"conversations": [{"from": "gpt", "value": "x"}], "fig_caption": value}
    with pytest.raises(DataError, match=r"the key 'fig_caption' is not read.*ignore_keys: \[fig_caption\]"):
        read(row)
    assert read(row, ignored=["fig_caption"]).messages[0].content == "x"


def test_a_key_of_a_message_may_be_ignored_by_name():
    named = {"role": "user", "content": "Q", "name": "x"}
    with pytest.raises(DataError, match=r"message 1: .*'name' is not read.*ignore_keys: \[name\]"):
        read({"messages": [named, ANSWER]})
    assert read({"messages": [named, ANSWER]}, ignored=["name"]).messages[0].content == "Q"


def test_indices_of_image_parts_that_count_them():
    content = [{**PLACE, "index": 0, "text": None}, {**TEXT, "index": None}, {**PLACE, "index": 1, "text": None}]
    assert read(asked(content, images=["1.png", "2.png"])).messages[0].content == "<image>Compare <image>"


@pytest.mark.parametrize("value", [7, 0.5, True, None, "", []])
def test_numbers_beside_a_llava_row_hold_neither_text_nor_images(value):
    assert read({"conversations": [{"from": "gpt", "value": "x", "loss": None}], "score": value}).id == "f:3"
