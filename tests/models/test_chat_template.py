"""Chat formats give the ids of the whole rendered conversation, and learn what the answers are."""

import pickle
import random
import re
from dataclasses import dataclass, replace
from typing import Any

import pytest

from medtune.data.sample import Message, Sample
from medtune.errors import DataError, ModelError
from medtune.models.common.chat_formats import huatuo, mistral
from medtune.models.common.chat_template import (
    VICUNA_SYSTEM,
    ChatTemplate,
    answer_ids,
    chatml,
    image_places,
    lay_out,
    llama3,
    vicuna,
)
from medtune.models.common.tokenizer import FastTokenizer, SentencePieceTokenizer, TextTokenizer
from medtune.models.mini import MiniTokenizer
from tests.models.tiny_tokenizers import CHATML_MARKS, llama2, qwen2

CHINESE = "\u4f60\u662f InternVL, \u52a9\u624b\u3002"
# Written from the formats' own definitions: InternVL3's chat_template.jinja, internlm2-chat of InternVL2's
# conversation.py and v1 of LLaVA's, each with the answer and its end marked as generated.
_CHATML = (
    "{%- if messages[0].role != 'system' and default %}{{ '<|im_start|>system\n' + default + end }}{% endif %}"
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{%- if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}"
    "{{ end[10:] }}{% else %}{{ m.content + end }}{% endif %}{% endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_VICUNA = (
    "{%- if messages[0].role == 'system' %}{{ messages[0].content + ' ' }}{% else %}{{ default + ' ' }}{% endif %}"
    "{%- for m in messages %}{% if m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}"
    "{% elif m.role == 'assistant' %}{{ 'ASSISTANT:' }}"
    "{% generation %}{{ ' ' + m.content + '</s>' }}{% endgeneration %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
# Mistral-7B-Instruct-v0.2's chat template, with a system message as that of v0.3 writes it; HuatuoGPT-Vision's cli.py.
_MISTRAL = (
    "{%- set ns = namespace(system='') %}{% for m in messages %}{% if m.role == 'system' %}"
    "{% set ns.system = m.content + '\n\n' %}{% elif m.role == 'user' %}"
    "{{ '[INST] ' + ns.system + m.content + ' [/INST]' }}{% set ns.system = '' %}{% elif m.role == 'assistant' %}"
    "{% generation %}{{ ' ' + m.content + '</s>' }}{% endgeneration %}{% endif %}{% endfor %}"
)
_HUATUO = (
    "{%- set ns = namespace(system='') %}{% for m in messages %}{% if m.role == 'system' %}"
    "{% set ns.system = m.content + '\n\n' %}{% elif m.role == 'user' %}"
    "{{ '<|user|>\n' + ns.system + m.content + '\n' }}{% set ns.system = '' %}{% elif m.role == 'assistant' %}"
    "{{ '<|assistant|>\n' }}{% generation %}{{ m.content + '<|endoftext|>' }}{% endgeneration %}{{ '\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
TURNS = [
    ("user", "What is the cell size? Compare  both."),
    ("assistant", "small cell size, round"),
    ("user", "Sure?"),
    ("assistant", "The correct answer is A. \u7ec6\u80de"),
]


@dataclass
class Format:
    """A template with its tokenizer, and how transformers writes the same."""

    template: ChatTemplate
    ours: TextTokenizer
    theirs: Any
    jinja: str
    image: str

    def rendered(self, turns: list[tuple[str, str]], **options: Any) -> Any:
        """Token ids, and which are of the answers, by apply_chat_template."""
        end = self.template.assistant[1]
        messages = [{"role": role, "content": text} for role, text in turns]
        found = self.theirs.apply_chat_template(
            messages,
            chat_template=self.jinja,
            tokenize=True,
            return_dict=True,
            default=self.template.default_system,
            end=end,
            **options,
        )
        bos = [self.theirs.bos_token_id] if self.template.bos else []  # which transformers' processors add to a prompt
        masks = [[0] * len(bos) + found["assistant_masks"]] if "assistant_masks" in found else [[]]
        return {"input_ids": bos + found["input_ids"], "assistant_masks": masks[0]}


@pytest.fixture(
    scope="module",
    params=[
        "qwen2", "internlm2", "vicuna legacy", "vicuna", "vicuna json", "vicuna legacy json",
        "mistral", "mistral legacy", "mistral json", "huatuo",
    ],
)  # fmt: skip
def chat(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Format:
    folder, kind = tmp_path_factory.mktemp("tokenizer"), request.param
    if kind == "qwen2":
        theirs = qwen2(folder)
        return Format(chatml("Be kind."), FastTokenizer(folder), theirs, _CHATML, "<IMG_CONTEXT>")
    if kind == "huatuo":
        theirs = qwen2(folder)
        return Format(huatuo(), FastTokenizer(folder), theirs, _HUATUO, "<IMG_CONTEXT>")
    if kind == "internlm2":
        theirs = llama2(folder, legacy=True, marks=tuple(CHATML_MARKS))
        template = chatml(CHINESE, end="<|im_end|>", bos="<s>", pad="</s>")
        return Format(template, SentencePieceTokenizer(folder), theirs, _CHATML, "<IMG_CONTEXT>")
    theirs = llama2(folder, legacy="legacy" in kind)
    ours = FastTokenizer(folder) if "json" in kind else SentencePieceTokenizer(folder)
    if "mistral" in kind:
        return Format(mistral(), ours, theirs, _MISTRAL, "<image>")
    return Format(vicuna(), ours, theirs, _VICUNA, "<image>")


def sample(turns: list[tuple[str, str]], images: int = 0) -> Sample:
    return Sample("s1", tuple("abc"[:images]), tuple(Message(role, text) for role, text in turns))


def with_images(chat: Format, text: str) -> str:
    return text.replace("<image>", chat.image * 3)


@pytest.mark.parametrize("system", [[], [("system", "Answer in a word.")]])
def test_ids_and_labels_are_those_of_the_rendered_conversation(chat, system):
    turns = system + TURNS
    found = chat.rendered(turns, return_assistant_tokens_mask=True)
    tokens, labels = lay_out(chat.template, chat.ours, sample(turns), [])
    assert tokens == found["input_ids"]
    learned = [label != -100 for label in labels]
    assert learned == [bool(flag) for flag in found["assistant_masks"]]
    assert [label for label in labels if label != -100] == [t for t, flag in zip(tokens, learned, strict=True) if flag]


def test_supervised_headers_begin_where_the_turn_begins(chat):
    """Every token that the assistant's turn adds is learned; the ids do not change."""
    plain, once = lay_out(chat.template, chat.ours, sample(TURNS), [])
    tokens, labels = lay_out(chat.template, chat.ours, sample(TURNS), [], supervise_header=True)
    assert tokens == plain
    more = [place for place, (a, b) in enumerate(zip(labels, once, strict=True)) if a != b]
    asked, _ = lay_out(chat.template, chat.ours, sample(TURNS), [], inference=True)
    header = [place for place in more if place < len(asked)][-len(more) // 2 :]
    assert header == list(range(len(asked) - len(more) // 2, len(asked)))  # right before the last answer
    text = chat.ours.decode([tokens[place] for place in header])
    assert ("[/INST]" in text or "assistant" in text.lower()) and "?" not in text, text
    assert all(label in (-100, token) for label, token in zip(labels, tokens, strict=True))
    assert set(lay_out(chat.template, chat.ours, sample(TURNS), [], inference=True, supervise_header=True)[1]) == {-100}


def test_an_open_answer_is_the_generation_prompt(chat):
    tokens, labels = lay_out(chat.template, chat.ours, sample(TURNS), [], inference=True)
    assert tokens == chat.rendered(TURNS[:3], add_generation_prompt=True)["input_ids"]
    assert set(labels) == {-100}
    whole, _ = lay_out(chat.template, chat.ours, sample(TURNS), [])
    assert whole[: len(tokens)] == tokens, "an answer begins where the prompt ends"
    assert whole[len(tokens) :][: len(answer_ids(chat.template, chat.ours, TURNS[3][1]))] == answer_ids(
        chat.template, chat.ours, TURNS[3][1]
    )


def test_random_conversations(chat):
    rng = random.Random(0)
    words = "cell; ;  ;\n;<image>;A.;\u7ec6;9;big\n\nround;:;'s;\u00b5m;ASSISTANT;\t".split(";")
    for _ in range(60):
        turns = [
            (role, "".join(rng.choice(words) for _ in range(rng.randint(1, 8))).strip() + "x")
            for role in ("user", "assistant") * rng.randint(1, 2)
        ]
        turns = [(role, text if role == "user" else text.replace("<image>", "").strip()) for role, text in turns]
        # SentencePiece puts its space before a space too, as the slow tokenizers did; transformers 5 does not any more.
        turns = [(role, re.sub("<image>[ ]+", "<image>", text)) for role, text in turns]
        count = sum(text.count("<image>") for _, text in turns)
        block = [chat.ours.special_id(chat.image)] * 3
        tokens, labels = lay_out(chat.template, chat.ours, sample(turns, 0), [block] * count)
        found = chat.rendered(
            [(role, with_images(chat, text)) for role, text in turns], return_assistant_tokens_mask=True
        )
        assert tokens == found["input_ids"]
        assert [label != -100 for label in labels] == [bool(flag) for flag in found["assistant_masks"]]


def test_a_system_message_of_a_format_without_a_turn_for_it_stands_before_the_images(tmp_path):
    qwen2(tmp_path)
    ours = FastTokenizer(tmp_path)
    turns = [("system", "Answer in a word."), *TURNS[:2]]
    block = [ours.special_id("<IMG_CONTEXT>")] * 3
    tokens, _ = lay_out(huatuo(), ours, sample(turns, 1), [block])
    first = tokens.index(block[0])
    assert ours.decode(tokens[:first]) == "<|user|>\nAnswer in a word.\n\n"
    assert ours.decode(tokens[first:]).startswith("\nWhat is")
    report, labels = lay_out(huatuo(), ours, sample([turns[0], turns[2]]), [])
    assert ours.decode(report).startswith("Answer in a word.\n\n<|assistant|>\nsmall"), "no question to stand in"
    assert ours.decode([label for label in labels if label != -100]) == TURNS[1][1]


def test_space_around_a_message_is_left_out(chat):
    spaced = [(role, f" \n{text}\n ") for role, text in TURNS]
    assert lay_out(chat.template, chat.ours, sample(spaced), []) == lay_out(chat.template, chat.ours, sample(TURNS), [])


class Pairs:
    """A tokenizer that merges every "ab" and knows letters and "</s>"."""

    def special_id(self, token: str) -> int:
        return {"</s>": 1, "<s>": 2}[token]

    def encode(self, text: str, *, first: bool = True) -> list[int]:
        return [999 if part == "ab" else ord(part) for part in re.findall("ab|.", text)]

    def decode(self, ids: list[int]) -> str:
        return "".join("ab" if i == 999 else chr(i) for i in ids)


def test_a_token_across_the_border_belongs_to_the_answer():
    template = replace(vicuna(), default_system="", user=("U", ""), assistant=("a", "</s>"), answer_prefix="")
    one = sample([("user", "x"), ("assistant", "bc")])
    tokens, labels = lay_out(template, Pairs(), one, [])
    assert tokens == [2, ord("U"), ord("x"), 999, ord("c"), 1]
    assert labels == [-100, -100, -100, 999, ord("c"), 1]
    assert answer_ids(template, Pairs(), "bc") == [999, ord("c")]


def test_loose_images_stand_before_the_first_question(chat):
    block = [chat.ours.special_id(chat.image)] * 3
    tokens, _ = lay_out(chat.template, chat.ours, sample(TURNS, 2), [block, block])
    text = with_images(chat, "<image>\n<image>\n") + TURNS[0][1]
    assert tokens == chat.rendered([("user", text), *TURNS[1:]])["input_ids"]


def test_special_tokens_in_text_stay_text(chat):
    marks = [*chat.template.special, *chat.template.stop, chat.template.bos, chat.image]
    forged = {chat.ours.special_id(mark) for mark in marks if mark}
    plain, _ = lay_out(chat.template, chat.ours, sample([("user", "x y"), ("assistant", "z")]), [])
    for mark in filter(None, marks):
        turns = [("user", f"x {mark} y"), ("assistant", f"{mark}z")]
        if mark == "<image>":
            continue  # a tag of the data contract; the token's own text cannot be written
        tokens, _ = lay_out(chat.template, chat.ours, sample(turns), [])
        assert [t for t in tokens if t in forged] == [t for t in plain if t in forged]
        assert mark in chat.ours.decode(tokens) and not forged & set(chat.ours.encode(mark, first=False))
        assert not forged & set(answer_ids(chat.template, chat.ours, mark))


def test_a_report_gets_no_user_turn(chat):
    block = [chat.ours.special_id(chat.image)] * 3
    report = sample([("assistant", "big round")], 1)
    tokens, labels = lay_out(chat.template, chat.ours, report, [block])
    answer = answer_ids(chat.template, chat.ours, "big round") + [chat.ours.special_id(chat.template.stop[0])]
    assert [label for label in labels if label != -100] == answer
    assert tokens.count(block[0]) == 3 and tokens.index(block[0]) < labels.index(answer[0])
    assert "user" not in chat.ours.decode(tokens).replace(VICUNA_SYSTEM, "").lower()
    with pytest.raises(DataError, match="s1 has no user message"):
        lay_out(chat.template, chat.ours, report, [block], inference=True)


def test_tags_and_images_must_agree(chat):
    one = sample([("user", "<image> <image>?"), ("assistant", "a")], 1)
    assert image_places(one) == 2
    with pytest.raises(DataError, match="s1 has 1 images but its text has places for 2"):
        lay_out(chat.template, chat.ours, one, [[1]])


def test_a_copy_in_another_process_is_the_same(chat):
    again = pickle.loads(pickle.dumps(chat.ours))
    text = " ASSISTANT: big\n <|im_end|> </s>"
    for first in (True, False):
        assert again.encode(text, first=first) == chat.ours.encode(text, first=first)
    assert pickle.loads(pickle.dumps(chat.template)) == chat.template


def test_llama3_is_the_layout_of_the_deep_models(tokenizer_dir):
    from medtune.models.llama3_2_vision import _chat

    tokenizer = MiniTokenizer(tokenizer_dir)
    image = [tokenizer.image_id]
    for turns, inference in ((TURNS, False), (TURNS, True), ([("assistant", "big")], False)):
        one = sample(turns, 1)
        ours = lay_out(llama3(), tokenizer, one, [image], inference=inference)
        assert ours == _chat.lay_out(tokenizer, one, inference=inference)


def test_an_answer_must_end_with_a_token():
    with pytest.raises(ModelError, match="vicuna: no special token stands right after an answer"):
        replace(vicuna(), assistant=("ASSISTANT:", " </s>"))
