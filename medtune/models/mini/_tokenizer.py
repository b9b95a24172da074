"""A small byte-level BPE tokenizer with Llama-3's special tokens, and its training."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer

from medtune.errors import ModelError
from medtune.models.common.tokenizer import SPECIAL_TOKENS, JsonTokenizer
from medtune.models.llama3_2_vision._transform import PLACEHOLDER

_IMAGE = "<|image|>"
_BYTES = 256
# A hyphenated word is one piece. A single capital letter is a piece without the space before it, so that the letter of
# an option is the same token in "\nA. big", "[A or B]" and "is A.", and a model can copy it.
_WORDS = r" ?[A-Za-z]{2,}(?:-[A-Za-z]+)*| ?[a-z]|[A-Z]| ?[0-9]| ?[^\sA-Za-z0-9]|\n+|\s"


class MiniTokenizer(JsonTokenizer):
    """The tokenizer of a mini model: a ``tokenizer.json`` made by :func:`train_mini_tokenizer`.

    ``image_id`` equals the decoder's ``vocab_size``: the image token is in the second embedding table, as in
    Llama-3.2-Vision.

    Args:
        path: the file, or its folder.

    Raises:
        ModelError: if the file cannot be read, or has tokens beyond the image token.
    """

    def _load(self, text: str, source: str) -> None:
        super()._load(text, source)
        if self._tokenizer.get_vocab_size() != self.image_id + 1:
            raise ModelError(f"{source}: {_IMAGE} must be the last token, so that its id is the model's vocab_size")


def train_mini_tokenizer(texts: Iterable[str], vocab_size: int, out_dir: str | Path) -> MiniTokenizer:
    """Learn a byte-level BPE from texts. The same texts give the same file.

    Ids: bytes and merges, reserved tokens if the texts yield fewer merges than requested, the placeholder character,
    seven special tokens, and at ``vocab_size`` the image token.

    Args:
        texts: texts that the tokenizer shall encode in few tokens; any other text is encoded too, byte by byte if
            needed.
        vocab_size: size of the decoder's vocabulary, including special tokens but not the image token.
        out_dir: folder for ``tokenizer.json``.

    Raises:
        ModelError: if ``vocab_size`` is too small for the bytes and special tokens.
    """
    in_vocab = [token for token in SPECIAL_TOKENS if token != _IMAGE]
    room = vocab_size - len(in_vocab) - 1
    if room < _BYTES:
        raise ModelError(f"vocab_size must be at least {_BYTES + vocab_size - room}, got {vocab_size}")
    tokenizer = Tokenizer(BPE())
    words = Split(Regex(_WORDS), "isolated")
    tokenizer.pre_tokenizer = Sequence([words, ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(vocab_size=room, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    reserved = [f"<|reserved_special_token_{i}|>" for i in range(room - tokenizer.get_vocab_size())]
    tokenizer.add_special_tokens(reserved)
    # an added token is split off before BPE runs, so that its neighbours never merge with it
    tokenizer.add_tokens([AddedToken(PLACEHOLDER, normalized=False)])
    tokenizer.add_special_tokens([*in_vocab, _IMAGE])
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return MiniTokenizer(folder)
