"""Gemma 3's transform: its tokenizer, its chat format, and one square tile per image."""

from collections.abc import Sequence
from pathlib import Path

from medtune.errors import ModelError
from medtune.models.common.chat_formats import gemma
from medtune.models.common.early_transform import EarlyFusionTransform
from medtune.models.common.folder_tokenizer import folder_tokenizer
from medtune.models.common.tokenizer import FastTokenizer, SentencePieceTokenizer, TextTokenizer, placeholder
from medtune.models.gemma3._images import SIGLIP_MEAN, SIGLIP_STD, SquashTiler
from medtune.models.gemma3._model_builders import GEMMA3_4B
from medtune.models.gemma3._shape import Gemma3Shape

IMAGE_START, IMAGE_END, IMAGE_TOKEN = "<start_of_image>", "<end_of_image>", "<image_soft_token>"
_MARKS = ("<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>", IMAGE_START, IMAGE_END, IMAGE_TOKEN)


class _GuardedTokenizer(FastTokenizer):
    """A ``tokenizer.json`` whose control tokens are special, so that a report that spells one out gets plain text.

    Some exports list ``<start_of_turn>`` and its like as ordinary added tokens.
    """

    def _load(self, text: str, source: str) -> None:
        super()._load(text, source)
        ids = {mark: self.special_id(mark) for mark in _MARKS}
        if any(number in self.encode(mark) for mark, number in ids.items()):
            super()._load(self.with_special_tokens(_MARKS), source)


def gemma3_tokenizer(path: str | Path, vocab_size: int = GEMMA3_4B.vocab_size) -> TextTokenizer:
    """Read the tokenizer of a Gemma 3 checkpoint.

    Args:
        path: ``tokenizer.json``, ``tokenizer.model`` (with ``added_tokens.json`` and ``tokenizer_config.json`` next to
            it), or the folder of the checkpoint.
        vocab_size: rows of the model's embedding table.

    Raises:
        ModelError: if there is none, or it has more tokens than the model.
    """
    file = Path(path)
    if file.is_dir() and not (file / "tokenizer.json").is_file():
        return folder_tokenizer(file, vocab_size)
    if file.suffix == ".model":
        return SentencePieceTokenizer(file)
    tokenizer = _GuardedTokenizer(file)
    size = max(tokenizer.vocabulary().values(), default=-1) + 1
    if size > vocab_size:
        raise ModelError(
            f"the tokenizer of {file} has {size:,} tokens and the model {vocab_size:,}: it belongs to another model; "
            "take all files from one download"
        )
    return tokenizer


def gemma3_transform(
    path: str | Path, max_seq_len: int = 4096, system: str = "", supervise_header: bool = False
) -> EarlyFusionTransform:
    """The transform of Gemma 3 and MedGemma, of every size.

    Args:
        path: ``tokenizer.json``, ``tokenizer.model``, or the folder of the checkpoint.
        max_seq_len: maximum number of tokens of one sample, 256 of them for each image.
        system: system message of samples that have none; the published chat template writes none.
        supervise_header: whether the header before an answer is supervised too, as in torchtune's own recipes.

    Raises:
        ModelError: if the tokenizer is not Gemma 3's.
    """
    return transform_of(gemma3_tokenizer(path), GEMMA3_4B, max_seq_len, system, supervise_header)


def transform_of(
    tokenizer: TextTokenizer,
    shape: Gemma3Shape,
    max_seq_len: int,
    system: str,
    supervise_header: bool,
    *,
    mean: Sequence[float] = SIGLIP_MEAN,
    std: Sequence[float] = SIGLIP_STD,
) -> EarlyFusionTransform:
    """The transform of a model of any shape.

    Args:
        tokenizer: with Gemma 3's special tokens.
        shape: sizes of the model.
        max_seq_len: as for :func:`gemma3_transform`, as are ``system`` and ``supervise_header``.
        system: as there.
        supervise_header: as there.
        mean: per channel of an image, subtracted.
        std: per channel, divided by.

    Raises:
        ModelError: if a special token of images has another id than in the model, or is missing.
    """
    for token, expected in (
        (IMAGE_TOKEN, shape.image_id),
        (IMAGE_START, shape.image_start_id),
        (IMAGE_END, shape.image_end_id),
    ):
        if (found := tokenizer.special_id(token)) != expected:
            raise ModelError(
                f"{token} is token {found} of this tokenizer, but {expected} of the model; take the tokenizer of the "
                "checkpoint"
            )
    return EarlyFusionTransform(
        tokenizer,
        gemma(system),
        SquashTiler(shape.image_size, mean=tuple(mean), std=tuple(std)),
        image_id=shape.image_id,
        tokens_per_tile=shape.tokens_per_image,
        image_start=[shape.image_start_id],
        image_end=[shape.image_end_id],
        max_seq_len=max_seq_len,
        placeholder_text=placeholder(tokenizer, after_space=False),
        supervise_header=supervise_header,
    )
