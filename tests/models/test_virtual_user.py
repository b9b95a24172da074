"""A virtual user's turns in every chat format: token for token, supervised like answers, and opened for generation."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from medtune.data.sample import VIRTUAL_USER, Message, Sample
from medtune.errors import DataError, ModelError
from medtune.generation.chat import chat_turns
from medtune.models.common.chat_template import (
    VICUNA_SYSTEM,
    VIRTUAL_USER_SYSTEM,
    ChatTemplate,
    chatml,
    lay_out,
    llama3,
    vicuna,
)
from medtune.models.common.tokenizer import FastTokenizer, SentencePieceTokenizer
from medtune.models.llama3_2_vision import _chat
from medtune.models.mini import MiniTokenizer
from tests.models.tiny_tokenizers import llama2, qwen2
from tests.objectives.tiny_vitask import family

TURNS = [
    ("user", "What is it?"),
    ("assistant", "A cell."),
    (VIRTUAL_USER, "Is it big?"),
    ("assistant", "Yes."),
    ("user", "Sure?"),
    ("assistant", "No."),
]
IMAGE = 7


class Characters:
    """Every character is a token, and so is every special token."""

    def __init__(self, template: ChatTemplate) -> None:
        marks = dict.fromkeys([*template.special, *template.stop, template.pad, template.bos])
        self.marks = {mark: 1_000_000 + i for i, mark in enumerate(filter(None, marks))}

    def special_id(self, token: str) -> int:
        return self.marks[token]

    def encode(self, text: str, *, first: bool = True) -> list[int]:
        return [ord(character) for character in text]

    def decode(self, ids: list[int]) -> str:
        names = {i: mark for mark, i in self.marks.items()} | {IMAGE: "<image>"}
        return "".join(names.get(i) or chr(i) for i in ids)


def sample(turns: list[tuple[str, str]] = TURNS, images: int = 1) -> Sample:
    return Sample("s1", tuple("abc"[:images]), tuple(Message(role, text) for role, text in turns))


# Each piece of the conversation as it is written, and whether it is learned.
GOLDEN: dict[str, tuple[ChatTemplate, list[tuple[str, bool]]]] = {
    "vicuna": (
        vicuna(),
        [
            (f"<s>{VICUNA_SYSTEM} {VIRTUAL_USER_SYSTEM} USER: <image>\nWhat is it? ASSISTANT:", False),
            (" A cell.</s>", True),
            ("VUSER:", False),
            (" Is it big?</s>", True),
            (" ASSISTANT:", False),
            (" Yes.</s>", True),
            ("USER: Sure? ASSISTANT:", False),
            (" No.</s>", True),
        ],
    ),
    "chatml": (
        chatml("Be kind."),
        [
            (f"<|im_start|>system\nBe kind. {VIRTUAL_USER_SYSTEM}<|im_end|>\n", False),
            ("<|im_start|>user\n<image>\nWhat is it?<|im_end|>\n<|im_start|>assistant\n", False),
            ("A cell.<|im_end|>", True),
            ("\n<|im_start|>virtual_user\n", False),
            ("Is it big?<|im_end|>", True),
            ("\n<|im_start|>assistant\n", False),
            ("Yes.<|im_end|>", True),
            ("\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n", False),
            ("No.<|im_end|>", True),
            ("\n", False),
        ],
    ),
    "llama3": (
        llama3(),
        [
            (f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{VIRTUAL_USER_SYSTEM}<|eot_id|>", False),
            ("<|start_header_id|>user<|end_header_id|>\n\n<image>What is it?<|eot_id|>", False),
            ("<|start_header_id|>assistant<|end_header_id|>\n\n", False),
            ("A cell.<|eot_id|>", True),
            ("<|start_header_id|>virtual_user<|end_header_id|>\n\n", False),
            ("Is it big?<|eot_id|>", True),
            ("<|start_header_id|>assistant<|end_header_id|>\n\n", False),
            ("Yes.<|eot_id|>", True),
            ("<|start_header_id|>user<|end_header_id|>\n\nSure?<|eot_id|>", False),
            ("<|start_header_id|>assistant<|end_header_id|>\n\n", False),
            ("No.<|eot_id|>", True),
        ],
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_tokens_and_labels_written_by_hand(name: str) -> None:
    template, pieces = GOLDEN[name]
    tokenizer = Characters(template)
    tokens, labels = lay_out(template, tokenizer, sample(), [[IMAGE]])
    assert tokenizer.decode(tokens) == "".join(text for text, _ in pieces)
    learned = [
        tokenizer.decode([token]) if label == token else None for token, label in zip(tokens, labels, strict=True)
    ]
    expected: list[str | None] = []
    for text, flag in pieces:
        marks = template.split(text)
        units = [unit for part in marks for unit in ([part] if part in template.special else list(part))]
        expected += units if flag else [None] * len(units)
    # the beginning token and the image are one token, but several letters of the text above
    assert [unit for unit in learned if unit] == [unit for unit in expected if unit]
    assert set(labels) - set(tokens) == {-100}
    assert len([label for label in labels if label == -100]) == len(tokens) - len([unit for unit in expected if unit])


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("kind", ["model", "json"])
def test_vicuna_with_a_virtual_user_is_the_text_of_sq_llava(tmp_path: Any, legacy: bool, kind: str) -> None:
    """Its conversation format joins role, ": ", text and a separator; the question's end is part of its text."""
    theirs = llama2(tmp_path, legacy=legacy)
    ours: Any = FastTokenizer(tmp_path) if kind == "json" else SentencePieceTokenizer(tmp_path)
    text = f"{VICUNA_SYSTEM} {VIRTUAL_USER_SYSTEM} "
    for place, (role, words) in enumerate(TURNS):
        name = {"user": "USER", "assistant": "ASSISTANT", VIRTUAL_USER: "VUSER"}[role]
        text += f"{name}: {words}{'</s>' if role == VIRTUAL_USER else ''}{(' ', '</s>')[place % 2]}"
    tokens, _ = lay_out(vicuna(), ours, sample(images=0), [])
    expected = [1, *theirs(text, add_special_tokens=False)["input_ids"]]
    if kind == "model" and legacy:  # the slow tokenizers of SQ-LLaVA put a space before this space too
        ends = [place for place, token in enumerate(expected) if token == theirs.eos_token_id]
        expected.insert(ends[1] + 1, theirs.convert_tokens_to_ids("\u2581"))
    assert tokens == expected


@pytest.mark.parametrize("name", GOLDEN)
def test_an_open_question_is_the_beginning_of_the_conversation(name: str) -> None:
    template, _ = GOLDEN[name]
    tokenizer = Characters(template)
    whole, labels = lay_out(template, tokenizer, sample(), [[IMAGE]])
    prompt, none = lay_out(template, tokenizer, sample([*TURNS[:2], (VIRTUAL_USER, "")]), [[IMAGE]], inference=True)
    assert whole[: len(prompt)] == prompt and set(none) == {-100}
    written = "".join(tokenizer.decode([token]) for token in whole[len(prompt) :])
    assert written.lstrip().startswith("Is it big?") and labels[len(prompt)] == whole[len(prompt)]
    answer, _ = lay_out(template, tokenizer, sample(TURNS[:3]), [[IMAGE]], inference=True)
    assert whole[: len(answer)] == answer and tokenizer.decode(whole[len(answer) :]).lstrip().startswith("Yes.")


@pytest.mark.parametrize("name", GOLDEN)
def test_a_conversation_without_a_virtual_user_stays_as_it_was(name: str) -> None:
    template, _ = GOLDEN[name]
    turns = [turn for turn in TURNS if turn[0] != VIRTUAL_USER]
    plain = replace(template, virtual_user=None)
    assert lay_out(template, Characters(template), sample(turns), [[IMAGE]]) == lay_out(
        plain, Characters(template), sample(turns), [[IMAGE]]
    )
    with pytest.raises(ModelError, match=f"chat template {plain.name} has no virtual user"):
        lay_out(plain, Characters(template), sample(), [[IMAGE]])


def test_a_system_message_of_the_sample_is_extended() -> None:
    turns = [("system", "Answer in a word. "), *TURNS]
    tokens, _ = lay_out(vicuna(), Characters(vicuna()), sample(turns, 0), [])
    assert Characters(vicuna()).decode(tokens).startswith(f"<s>Answer in a word. {VIRTUAL_USER_SYSTEM} USER: What")


def test_llama3_is_the_layout_of_the_deep_models(tokenizer_dir: Any) -> None:
    tokenizer = MiniTokenizer(tokenizer_dir)
    asking = [*TURNS[:2], (VIRTUAL_USER, "")]
    for turns, inference in ((TURNS, False), (TURNS[:3], True), (asking, True), ([("system", "S."), *TURNS], False)):
        one = sample(turns)
        ours = lay_out(llama3(), tokenizer, one, [[tokenizer.image_id]], inference=inference)
        assert ours == _chat.lay_out(tokenizer, one, inference=inference)


def test_byte_level_chatml_gives_the_ids_of_the_whole_text(tmp_path: Any) -> None:
    theirs = qwen2(tmp_path)
    pieces = GOLDEN["chatml"][1]
    text = "".join(text for text, _ in pieces).replace("<image>\n", "")
    tokens, labels = lay_out(chatml("Be kind."), FastTokenizer(tmp_path), sample(images=0), [])
    assert tokens == theirs(text)["input_ids"]
    learned = theirs.decode([label for label in labels if label != -100])
    assert learned == "".join(text for text, flag in pieces if flag)


@pytest.mark.parametrize("name", ["cross-attention", "internvl", "llava"])
def test_a_batch_tells_questions_from_answers(name: str) -> None:
    """``asked`` marks the question and its end, on either side of padding; rows without a virtual user have none."""
    _, transform = family(name)
    picture = [Image.new("RGB", (16, 16), "red")]
    plain = [turn for turn in TURNS if turn[0] != VIRTUAL_USER]
    items = [transform(sample(turns), picture) for turns in (TURNS, plain)]
    assert "asked" in items[0] and "asked" not in items[1]
    assert "asked" not in transform.collate([items[1]])
    for side in ("right", "left"):
        batch = transform.collate(items, pad_side=side)
        assert batch["asked"].dtype == torch.bool and batch["asked"].shape == batch["labels"].shape
        assert not batch["asked"][1].any()
        asked = batch["labels"][0][batch["asked"][0]].tolist()
        assert asked[:-1] == transform.encode("Is it big?") and asked[-1] in transform.stop_ids
    assert "asked" not in transform(sample([*TURNS[:2], (VIRTUAL_USER, "")]), picture, inference=True)


def test_other_programs_cannot_write_a_virtual_users_turn() -> None:
    with pytest.raises(DataError, match="s1 has a virtual user"):
        chat_turns(sample(images=0), [])


def test_no_file_may_hold_a_virtual_users_turn() -> None:
    row = {"id": "1", "images": [], "messages": [{"role": VIRTUAL_USER, "content": "x"}]}
    with pytest.raises(DataError, match="unknown role"):
        Sample.from_dict(row, "rows.jsonl, line 1")
