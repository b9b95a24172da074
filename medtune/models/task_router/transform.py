"""From a question and labels to the tokens that GLiClass reads."""

from collections.abc import Sequence
from typing import Any

import torch

from medtune.data.items import Sizes
from medtune.data.sample import IMAGE_TAG, Sample, last_question
from medtune.errors import ConfigError, DataError, ModelError
from medtune.models.common.tokenizer import FastTokenizer

PROMPT_TOKENS = LABEL_TOKEN, TEXT_TOKEN = "<<LABEL>>", "<<SEP>>"
"""GLiClass's own tokens. A tokenizer that lacks them gets them as its next ids, in this order."""
_ENDS = (("[CLS]", "[SEP]"), ("<s>", "</s>"))
_DEBERTA_TOKENS = 128_001
_PADS = ("[PAD]", "<pad>", "<|finetune_right_pad_id|>")


class QuestionTransform:
    """Writes labels and question as ``[CLS]<<LABEL>>label 1<<LABEL>>label 2...<<SEP>>question[SEP]``. Picklable.

    A special token that a question spells out stays text, so that no question can add a label. Underscores of a
    label are read as spaces. In a training run this class takes the place of a language model's transform.

    Args:
        tokenizer: ``tokenizer.json`` of the encoder, or the folder that holds it.
        labels: names of the tasks.
        max_seq_len: most tokens of labels and question together.

    Attributes:
        dtype: set by the trainer; tokens have none.

    Raises:
        ConfigError: if there are fewer than two labels or one is repeated, or they leave no room for a question.
        ModelError: if the tokenizer is missing or unreadable, or its ids have gaps.
    """

    def __init__(self, tokenizer: str, labels: Sequence[str], max_seq_len: int = 512) -> None:
        names = tuple(labels)
        blank = any(not isinstance(name, str) or not name.strip() for name in names)
        if len(names) < 2 or blank or len(set(names)) < len(names):
            raise ConfigError(f"labels: two or more different names of tasks are needed, not {list(names)}")
        self.tokenizer = FastTokenizer(tokenizer)
        self.labels, self.max_seq_len = names, max_seq_len
        self.dtype = torch.float32
        ids = self.tokenizer.vocabulary()
        for token in PROMPT_TOKENS:
            ids.setdefault(token, max(ids.values()) + 1)
        self.vocab_size = max(ids.values()) + 1
        if self.vocab_size != len(ids):
            raise ModelError(
                f"tokenizer: {tokenizer} has {len(ids)} tokens with ids up to {self.vocab_size - 1}, a gap"
            )
        self.label_id, self.text_id = (ids[token] for token in PROMPT_TOKENS)
        self.start, self.end = next(
            (([ids[first]], [ids[last]]) for first, last in _ENDS if first in ids and last in ids), ([], [])
        )
        self.pad_id = next((ids[token] for token in _PADS if token in ids), 0)
        self._label_ids = [self.tokenizer.encode(name.replace("_", " "), first=False) for name in names]
        room = max_seq_len - len(self.tokens("", range(len(names))))
        if room < 1:
            raise ConfigError(
                f"max_seq_len {max_seq_len} leaves no room for a question beside {len(names)} labels; raise it by "
                f"more than {-room}"
            )

    @classmethod
    def planned(cls, labels: Sequence[str], max_seq_len: int) -> "QuestionTransform":
        """A transform without a tokenizer, of DeBERTa-v3's vocabulary; enough to plan a run, not to read a question."""
        made = cls.__new__(cls)
        made.labels, made.max_seq_len, made.dtype = tuple(labels), max_seq_len, torch.float32
        made.label_id, made.text_id, made.vocab_size = _DEBERTA_TOKENS, _DEBERTA_TOKENS + 1, _DEBERTA_TOKENS + 2
        made.start, made.end, made.pad_id = [], [], 0
        return made

    def tokens(self, question: str, order: Sequence[int], cut: bool = False) -> list[int]:
        """Tokens of a question with the labels in an order.

        Args:
            question: its text; tags of images are left out.
            order: the numbers of the labels; their scores have this order.
            cut: leave out the end of a question that is too long.
        """
        text = self.tokenizer.encode(_plain(question), first=False)
        prompt = [token for number in order for token in (self.label_id, *self._label_ids[number])]
        before = [*self.start, *prompt, self.text_id]
        if cut:
            text = text[: self.max_seq_len - len(before) - len(self.end)]
        return [*before, *text, *self.end]

    def token_counts(self, sample: Sample, sizes: Sizes | None = None) -> tuple[int, int]:
        """Tokens of a sample's question with all labels; one of them counts as supervised, the task."""
        return len(self.tokens(question_of(sample), range(len(self.labels)))), 1

    def tile_count(self, width: int, height: int) -> int:
        """0: the router sees no image."""
        return 0

    def collate_tokens(self, rows: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        """``tokens`` [b, s], and ``padding`` [b, s], True at real tokens; short rows are filled at the right."""
        length = max(map(len, rows))
        tokens = torch.tensor([[*row, *[self.pad_id] * (length - len(row))] for row in rows])
        padding = torch.arange(length) < torch.tensor([len(row) for row in rows])[:, None]
        return {"tokens": tokens, "padding": padding}

    def tokenizer_json(self) -> str:
        """The tokenizer with GLiClass's tokens among its special ones."""
        return self.tokenizer.with_special_tokens(PROMPT_TOKENS)

    def tokenizer_config(self) -> dict[str, Any]:
        """What transformers reads beside ``tokenizer.json``."""
        ids = {number: token for token, number in self.tokenizer.vocabulary().items()}
        named = {"cls_token": self.start, "sep_token": self.end, "pad_token": [self.pad_id]}
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self.max_seq_len,
            **{name: ids[found[0]] for name, found in named.items() if found},
        }

    def settings(self) -> dict[str, Any]:
        """What the tokens of a question depend on, beside the tokenizer."""
        return {"labels": list(self.labels), "max_seq_len": self.max_seq_len}


def _plain(question: str) -> str:
    """The text of a question without the tags of images, and without tokens that would begin a label or a text."""
    question = question.replace(IMAGE_TAG, " ")
    for token in PROMPT_TOKENS:
        question = question.replace(token, token.replace("<<", "< <"))
    return question.strip()


def question_of(sample: Sample) -> str:
    """The question of a sample: the text of its last user turn, which is what is routed.

    Raises:
        DataError: if it has none, or an empty one.
    """
    text = last_question(sample)
    if not text:
        raise DataError(f"sample {sample.id!r}: it has no question, so it has no task; leave it out or give it a text")
    return text
