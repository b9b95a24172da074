"""What the generator is shown, and how strictly its replies are read."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medtune.clients.prompt_files import CUT, shortened
from medtune.curation.demonstrations import Demonstration, Demonstrations
from medtune.curation.figures import Figure
from medtune.curation.parsing import REASONS, Turn, read_conversation, written
from medtune.curation.prompts import Requests, Writing
from medtune.errors import ConfigError

PICTURE = Image.fromarray(np.full((3, 4, 3), 7, dtype=np.uint8))
FIGURE = Figure("a", "a.png", ("mri",), "A {mentions} knee.", ("It is shown .", "Twice ."))
EXAMPLE = Demonstration(Figure("d", "d.png", ("mri",), "A hip."), (("What?", "A hip."), ("Left?", "Yes.")))


class Fixed(Demonstrations):
    def drawn(self, figure: Figure) -> list[Demonstration]:
        return list(self.pool)


def asked(figure: Figure = FIGURE, **how) -> list:
    request = Requests(Writing(**how), Fixed((EXAMPLE,), 0)).of(figure, lambda: PICTURE)
    assert request.id == figure.id and [turn["role"] for turn in request.messages] == ["user"]
    return request.messages[0]["content"]


def test_the_image_is_attached_and_examples_are_text() -> None:
    image, text = asked()
    assert image == {"type": "image", "image": PICTURE}
    example = "<example_1>\nCaption: A hip.\nSentences that mention it: (none)\nUser: What?\nAssistant: A hip.\nUser: "
    assert example + "Left?\nAssistant: Yes.\n</example_1>" in text["text"]
    assert "Caption: A {mentions} knee.\nSentences that mention it: It is shown . Twice .\n" in text["text"]
    assert "Write 4 or 5 questions" in text["text"] and '"Assistant:"' in text["text"]


def test_a_prompt_without_images_opens_none() -> None:
    def gone() -> Image.Image:
        raise AssertionError("the image must not be opened")

    writing = Writing(prompt="conversation_text-v1", temperature=0)
    request = Requests(writing, Fixed((), 0)).of(FIGURE, gone)
    assert isinstance(request.messages[0]["content"], str) and request.sampling is None
    assert "caption only.\n(none)\n" in request.messages[0]["content"]


def test_a_caption_of_20000_characters_is_cut_before_a_word_and_leaves_room_for_the_rest() -> None:
    long = Figure("a", "a.png", (), "word " * 4000, ("x" * 20_000,))
    text = asked(long, text_limit=1000)[1]["text"]
    assert "word [...]\nSentences" in text and "x" * 994 + CUT in text and "x" * 995 not in text
    assert len(text) < 5000 and text.endswith("after them.")
    assert Requests(Writing(text_limit=1000), Fixed((), 0)).cuts(long)
    assert not Requests(Writing(), Fixed((), 0)).cuts(FIGURE)


@given(st.text(max_size=300), st.integers(10, 120))
def test_a_shortened_text_is_a_beginning_and_no_longer_than_allowed(text: str, limit: int) -> None:
    short = shortened(text, limit)
    assert len(short) <= limit and text.startswith(short.removesuffix(CUT) if len(text) > limit else short)


def test_a_prompt_must_say_how_many_answers(tmp_path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("# images: no\n{demonstrations}{caption}{mentions}")
    with pytest.raises(ConfigError, match="# answers: 1"):
        Writing(prompt=str(path))
    path.write_text("# images: no\n# answers: 1\n{demonstrations}{caption}")
    with pytest.raises(ConfigError, match="does not contain {mentions}"):
        Writing(prompt=str(path))
    with pytest.raises(ConfigError, match="did you mean 'conversation-v1'"):
        Writing(prompt="conversation-v2")


@pytest.mark.parametrize("change", [{"temperature": -1}, {"top_p": 0}, {"max_tokens": 0}, {"text_limit": 9}])
def test_numbers_out_of_range_are_refused(change: dict) -> None:
    with pytest.raises(ValueError, match="must"):
        Writing(**change)


TWO = (Turn("What?", ("A knee.",)), Turn("Which side?", ("The left one.\n\n- as marked",)))


@pytest.mark.parametrize(
    "text",
    [
        "User: What?\nAssistant: A knee.\nUser: Which side?\nAssistant: The left one.\n\n- as marked",
        "```\nUser: What?\r\nAssistant: A knee.\n\nUser: Which side?\nAssistant:The left one.\n\n- as marked\n```",
        "**User:** What?\n**Assistant:** A knee.\n**User**: Which side?\n**Assistant**: The left one.\n\n- as marked",
        "<think>User: hm</think>\nUser:\nWhat?\nAssistant: A knee.\nUser: Which side?\n"
        "Assistant:\nThe left one.\n\n- as marked\n",
    ],
)
def test_a_conversation_is_read(text: str) -> None:
    assert read_conversation(text).turns == TWO and read_conversation(written(TWO)).turns == TWO


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("I am sorry, I cannot help with medical images.", "prose"),
        ("Assistant: A knee.", "prose"),
        ("Here it is:\nUser: What?\nAssistant: A knee.", "text_before"),
        ("Assistant: Hello.\nUser: What?\nAssistant: A knee.", "order"),
        ("User: What?\nUser: Where?\nAssistant: A knee.", "order"),
        ("User: What?\nAssistant: A.\nAssistant: B.", "order"),
        ("User: What?\nAssistant 1: A.\nAssistant 2: B.", "order"),
        ("User: What?\nAssistant: A knee.\nUser: And", "unanswered"),
        ("User: What?\nAssistant:", "empty_turn"),
        ("User:\nAssistant: A knee.", "empty_turn"),
        ("User: <image> What?\nAssistant: A knee.", "tag"),
        ("The user: asks.", "prose"),
    ],
)
def test_what_is_no_conversation_is_named(text: str, reason: str) -> None:
    assert read_conversation(text) == read_conversation(text + "\n") and reason in REASONS
    assert read_conversation(text).reason == reason and read_conversation(text).turns == ()


def test_a_reply_that_was_cut_off_is_kept_aside_although_its_beginning_could_be_read() -> None:
    whole = written(TWO)
    assert read_conversation(whole, finish_reason="length").reason == "cut_off"
    assert read_conversation("", finish_reason="length").reason == "cut_off"
    assert read_conversation(whole, finish_reason="content_filter").reason == "declined"
    assert read_conversation(whole, min_turns=3).reason == "too_few_turns"


def test_two_answers_to_each_question_are_read() -> None:
    text = "User: What?\nAssistant 1: A.\nAssistant 2: B.\nUser: Why?\n**Assistant 1:** C.\nmore\nAssistant 2: D."
    assert read_conversation(text, 2).turns == (Turn("What?", ("A.", "B.")), Turn("Why?", ("C.\nmore", "D.")))
    for wrong, reason in (
        ("User: What?\nAssistant 2: A.\nAssistant 1: B.", "order"),
        ("User: What?\nAssistant: A.", "order"),
        ("User: What?\nAssistant 1: A.", "unanswered"),
        ("User: What?\nAssistant 1: A.\nAssistant 2:", "empty_turn"),
    ):
        assert read_conversation(wrong, 2).reason == reason


words = st.text(st.characters(exclude_characters="\n\r"), min_size=1, max_size=30).map(lambda text: f"w{text}".strip())


@given(st.lists(st.tuples(words, words, words), min_size=1, max_size=5), st.sampled_from([1, 2]))
def test_every_conversation_that_is_written_is_read_as_it_was(said: list, answers: int) -> None:
    turns = tuple(Turn(question, tuple(rest[:answers])) for question, *rest in said)
    if not any("<image>" in text for row in said for text in row):
        assert read_conversation(written(turns), answers).turns == turns
