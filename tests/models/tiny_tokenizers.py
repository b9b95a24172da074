"""Tiny tokenizers of the three kinds that published VLMs come with, as transformers reads them."""

import io
import json
from pathlib import Path

import transformers
from sentencepiece import SentencePieceTrainer
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer

from tests.models.conftest import SENTENCES

TEXTS = [
    *SENTENCES,
    "USER: What is this? ASSISTANT: It is a cell.",
    "A chat between a curious user and an artificial intelligence assistant.",
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
]
# The way in which Qwen2 parts words.
_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHATML_MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"]


def qwen2(folder: Path) -> transformers.PreTrainedTokenizerFast:
    """Byte-level BPE with ChatML's and InternVL's special tokens; writes ``tokenizer.json``."""
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = NFC()
    words = Split(Regex(_QWEN_WORDS), "isolated")
    tokenizer.pre_tokenizer = Sequence([words, ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = ByteLevelDecoder()
    alphabet = ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXTS, BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    tokenizer.add_tokens([AddedToken("\u2460", normalized=False)])
    tokenizer.add_special_tokens([AddedToken(mark, normalized=False) for mark in CHATML_MARKS])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def llama2(folder: Path, legacy: bool, marks: tuple[str, ...] = ("<image>",)) -> transformers.LlamaTokenizer:
    """SentencePiece BPE with byte fallback; writes ``tokenizer.model`` and ``tokenizer.json`` and what names marks."""
    folder.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 3),
        model_writer=model,
        vocab_size=460,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        required_chars="\u2460",
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    theirs = transformers.LlamaTokenizer.from_pretrained(str(folder), legacy=legacy)
    theirs.add_special_tokens({"additional_special_tokens": list(marks)})
    theirs.backend_tokenizer.save(str(folder / "tokenizer.json"))
    added = theirs.get_added_vocab()
    (folder / "added_tokens.json").write_text(json.dumps({mark: added[mark] for mark in marks}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"legacy": legacy}))
    return theirs
