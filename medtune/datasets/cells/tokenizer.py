"""The text that the mini family's tokenizer is trained on: all words that its prompts and answers need."""

from collections.abc import Iterator
from pathlib import Path

from medtune.data.multiple_choice import LETTERS, multiple_choice_prompt
from medtune.datasets.cells import rendered_cells_dataset
from medtune.datasets.cells.attributes import ATTRIBUTES
from medtune.datasets.cells.text_tasks import WORDS
from medtune.datasets.cells.wording import BRIEF_QUESTIONS, DESCRIBE, LIST_ATTRIBUTES, OPEN_QUESTIONS

#: Common words of instructions about images, in addition to those in the conversations about cells.
GENERAL = """
a about all also am an analysis analyze and any are area as ask assessment at attached attributes be below between body
brief briefly by can care carefully case cells change characteristics clear clinical colour common complete concise
content could create degree depicted detail detailed details determine diagnosis did different display do does during
each examine explain expert features few find findings first following for from full generate give given has have help
how if illustrate impression in include information inspect interpret is it its key kind large less list look made main
make may medical microscope microscopy more most morphology my name no not notable note observations observe observed
of on one only or other our out overview parts patient photo photograph picture please present presented provide
question read region report result review same sample say scan section see seen sentence sentences should show shown
shows side slide smear some specimen stain stained state structure study such summarize summary tell that the their
them there these they this those to type under up use visible visual was we were what when where which white who why
will with word words would write yes you your
"""

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
