"""The mini tokenizer: small, lossless, one token for every word that an answer turns on."""

from pathlib import Path

import pytest

from medtune.datasets.cells import KINDS, rendered_cells_dataset
from medtune.datasets.cells.__main__ import main
from medtune.datasets.cells.attributes import ATTRIBUTES
from medtune.datasets.cells.tokenizer import build_tokenizer
from medtune.errors import ModelError
from medtune.models.mini._tokenizer import MiniTokenizer

_ASSET = Path(__file__).parents[3] / "medtune" / "assets" / "mini_tokenizer"
_WORDS = sorted({word for values in ATTRIBUTES.values() for text in values for word in text.split()})


@pytest.fixture(scope="module")
def shipped() -> MiniTokenizer:
    return MiniTokenizer(_ASSET)


def test_the_shipped_file_is_what_the_command_makes(tmp_path: Path) -> None:
    main(["tokenizer", "--out", str(tmp_path)])
    assert (tmp_path / "tokenizer.json").read_bytes() == (_ASSET / "tokenizer.json").read_bytes()


def test_it_is_small() -> None:
    assert (_ASSET / "tokenizer.json").stat().st_size < 100_000
    assert MiniTokenizer(_ASSET).vocab_size == 1024


@pytest.mark.parametrize(
    "text",
    ["", " ", "a  b\t\n\n\nc ", "Ünïcödé 漢字 🙂", 'The "A." [B or C]?', "x-ray-like, 3.5 %", "<|eot_id|> stays text"],
)
def test_any_text_survives(shipped: MiniTokenizer, text: str) -> None:
    assert shipped.decode(shipped.encode(text)) == text


@pytest.mark.parametrize("kind", KINDS)
def test_every_sample_survives(shipped: MiniTokenizer, kind: str) -> None:
    source = rendered_cells_dataset(50, 77, kind)
    for index in range(50):
        for message in source[index].messages:
            assert shipped.decode(shipped.encode(message.content)) == message.content


@pytest.mark.parametrize("word", _WORDS)
def test_value_words_are_single_tokens(shipped: MiniTokenizer, word: str) -> None:
    assert len(shipped.encode(word)) == len(shipped.encode(f" {word}")) == 1


def test_attribute_and_template_words_are_single_tokens(shipped: MiniTokenizer) -> None:
    for name in ATTRIBUTES:
        assert len(shipped.encode(f" {name}")) == len(name.split())
    assert [len(shipped.encode(text)) for text in ("user", "assistant", "\n\n")] == [1, 1, 1]


def test_an_options_letter_is_one_token_wherever_it_stands(shipped: MiniTokenizer) -> None:
    for letter in "ABCDEF":
        (token,) = shipped.encode(letter)
        for text in (f"\n{letter}. big", f"starting with [A or {letter}].", f"The correct answer is {letter}."):
            assert token in shipped.encode(text)


def test_too_small_a_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="100"):
        build_tokenizer(tmp_path, vocab_size=100)


def test_preview_command_writes_a_picture(tmp_path: Path) -> None:
    main(["preview", "--out", str(tmp_path / "a" / "sheet.png"), "--columns", "2"])
    assert (tmp_path / "a" / "sheet.png").stat().st_size > 1000
