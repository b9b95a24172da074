"""The text that the mini family's tokenizer is trained on: all words that its prompts and answers need."""

from collections.abc import Iterator
from pathlib import Path

from medtune.data.multiple_choice import LETTERS, multiple_choice_prompt
from medtune.datasets.cells import rendered_cells_dataset
from medtune.datasets.cells.attributes import ATTRIBUTES
from medtune.datasets.cells.wording import BRIEF_QUESTIONS, DESCRIBE, LIST_ATTRIBUTES, OPEN_QUESTIONS
from medtune.datasets.cells.words import GENERAL, WORDS

_SHARE = {"reports": 1, "questions": 1, "attributes": 1, "instructions": 3, "text": 3}


def tokenizer_corpus(size: int = 400, seed: int = 0) -> Iterator[str]:
    """Yield the texts that the tokenizer learns its merges from.

    Args:
        size: number of cells of the rarest kind; conversations come three times as often.
        seed: seed of the rendered cells.
    """
    for kind, share in _SHARE.items():
        source = rendered_cells_dataset(size * share, seed, kind)
        for index in range(len(source)):
            yield from (message.content for message in source[index].messages)
    # Fixed repeats: values become one token with and without a space before them, other words with it.
    values = {word for listed in ATTRIBUTES.values() for text in listed for word in text.split()}
    others = {word for text in (*ATTRIBUTES, *WORDS, *GENERAL.split()) for word in text.split()}
    for word in sorted(values | others):
        yield from [f" {word}"] * 80
    for word in sorted(values):
        yield from [word] * 80
    # The words of the chat template occur in every turn.
    for word in ("user", "assistant", "system", "\n\n"):
        yield from [word] * 400
    for text in (*OPEN_QUESTIONS, *BRIEF_QUESTIONS, *DESCRIBE, *LIST_ATTRIBUTES):
        yield from [text] * 40
    for count in range(2, 11):
        yield from [multiple_choice_prompt("What is the cell size?", [f"{n} {LETTERS[n]}" for n in range(count)])] * 10


def build_tokenizer(out_dir: Path, vocab_size: int = 1024, seed: int = 0) -> None:
    """Train the mini tokenizer on `tokenizer_corpus` and write its files to `out_dir`."""
    # Imported here because the models' layer imports torch, which drawing cells does not need.
    from medtune.models.mini._tokenizer import train_mini_tokenizer

    train_mini_tokenizer(tokenizer_corpus(seed=seed), vocab_size, out_dir)
