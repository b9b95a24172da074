"""A question is asked in its whole conversation, in the layout of training."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from medtune.config import PACKAGE
from medtune.data.sample import Message, Sample
from medtune.errors import DataError
from medtune.evaluation.protocols.registry import build_protocol, plan_queries
from medtune.evaluation.swapped import contrast_images, swap_images
from medtune.models.mini import mini_internvl_transform, mini_llava_transform, mini_transform
from medtune.recipes.predict import main
from tests.datasets.owners import write_picture

META = {"attribute": "size", "options": ["big", "small"], "answer": "big"}
SYSTEM = Message("system", "Be brief.")
TURNS = (SYSTEM, Message("user", "Is it round?"), Message("assistant", "It is."), Message("user", "Is it big?"))
FAMILIES = [mini_transform, mini_internvl_transform, mini_llava_transform]
OWN_QUESTION = ["open", "multiple_choice", "letter_likelihood", "response_likelihood"]


def asked(messages, images=("1.png",), answer="big"):
    return Sample("q", images, (*messages, Message("assistant", answer)), META)


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda build: build.__name__)
def transform(request):
    return request.param(PACKAGE / "assets/mini_tokenizer")


def test_the_whole_conversation_is_the_prompt_and_the_last_user_turn_is_answered():
    (query,) = build_protocol("open").plan(asked(TURNS))
    assert query.sample.messages == TURNS and query.prompt == "Is it big?"


@pytest.mark.parametrize("name", OWN_QUESTION)
def test_protocols_that_ask_the_question_of_the_sample_keep_what_came_before(name):
    (query,) = build_protocol(name).plan(asked(TURNS))
    assert query.sample.messages[:-1] == TURNS[:-1] and query.prompt.startswith("Is it big?")


@pytest.mark.parametrize("name", ["yes_no", "description"])
def test_protocols_with_a_question_of_their_own_keep_the_system_message(name):
    (query,) = build_protocol(name).plan(asked((*TURNS[:-1], Message("user", "<image> Is it big?"))))
    assert [message.role for message in query.sample.messages] == ["system", "user"]
    assert query.sample.messages[0] == SYSTEM and "<image>" not in query.prompt


def test_classification_keeps_the_system_message():
    meta = {"protocol": "classification", "set": "s", "task": "multi_class", "classes": ["a", "b"]}
    sample = Sample("q", ("1.png",), TURNS, {**meta, "label": "a", "label_index": 0})
    (query,) = build_protocol("classification").plan(sample)
    assert query.sample.messages == TURNS


CONVERSATIONS = {
    "tags between words": ((Message("user", "Before: <image> after: <image> What changed?"),), ("1.png", "2.png")),
    "tag in an earlier turn": (
        (Message("user", "<image>\nIs it round?"), Message("assistant", "It is."), Message("user", "Is it big?")),
        ("1.png",),
    ),
    "history without tags": (TURNS, ("1.png",)),
    "tag after the question": ((SYSTEM, Message("user", "Is it big? <image>")), ("1.png",)),
}


@pytest.mark.parametrize("case", CONVERSATIONS)
def test_the_tokens_of_the_prompt_are_those_of_training(transform, case):
    messages, images = CONVERSATIONS[case]
    sample = asked(messages, images)
    pictures = [Image.new("RGB", (64, 64))] * len(images)
    (query,) = build_protocol("open").plan(sample)
    prompt = transform(query.sample, pictures, inference=True)["tokens"]
    trained = transform(sample, pictures)
    unlearned = [place for place, label in enumerate(trained["labels"]) if label == -100]
    assert prompt == trained["tokens"][: unlearned[-1] + 1], "all before the last answer, which ends the row"


def test_a_turn_of_tags_alone_keeps_them_before_the_usual_question():
    sample = asked((Message("user", "<image>"),))
    assert build_protocol("open").plan(sample)[0].prompt == "<image>\nWhat is the size?"
    assert build_protocol("open").plan(asked(()))[0].prompt == "What is the size?"


def test_images_are_swapped_only_for_as_many_as_the_question_has_tags():
    two = asked((Message("user", "<image> or <image>?"),), ("1.png", "2.png"))
    samples = [
        replace(
            two,
            id=f"q{n}",
            images=(f"{n}a.png", f"{n}b.png")[: 1 + n % 2],
            messages=(Message("user", "<image>" * (1 + n % 2)),),
            meta={**META, "answer": ["big", "small"][n // 2 % 2]},
        )
        for n in range(8)
    ]
    for shown in (*swap_images(samples), *contrast_images(samples)):
        assert len(shown.images) == shown.messages[0].content.count("<image>")
    with pytest.raises(DataError, match="or a question has <image> tags for more or fewer images"):
        swap_images([samples[0], samples[1]])
    plan_queries(samples, ["open"], swapped=["open"])


def test_predict_asks_the_last_question_of_a_conversation(tmp_path, capsys):
    write_picture(tmp_path / "images/1.png", 1)
    turns = [{"role": message.role, "content": message.content} for message in TURNS]
    row = {"id": "q", "images": ["1.png"], "messages": turns, "meta": META}
    (tmp_path / "test.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "training_majority.json").write_text(json.dumps({"size": "big"}))
    call = ["--config", "predict/mini", f"questions.source={tmp_path / 'test.jsonl'}"]
    call += [f"questions.image_root={tmp_path / 'images'}", "protocols=[open]", "swapped=[]", "max_new_tokens=2"]
    assert main([*call, f"output_dir={tmp_path / 'out'}"]) == 0, capsys.readouterr().err
    (answer,) = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    assert answer["prompt"] == "Is it big?"
