"""LLaVA-1.5's transform: Vicuna's chat format and one square tile per image."""

from dataclasses import replace
from pathlib import Path

from medtune.errors import ModelError
from medtune.models.common.chat_template import VICUNA_SYSTEM, vicuna
from medtune.models.common.early_transform import EarlyFusionTransform
from medtune.models.common.tokenizer import FastTokenizer, SentencePieceTokenizer, TextTokenizer, single_token
from medtune.models.llava._images import SquareMode, SquareTiler
from medtune.models.llava._model_builders import IMAGE_ID, IMAGE_SIZE, PATCH_SIZE

IMAGE_TOKEN = "<image>"
# Rare characters, in decreasing likelihood of being one token in a vocabulary of 32,000: the digit one in a circle,
# a disc, an arrow and a common Chinese character.
PLACEHOLDERS = ("\u2460", "\u25cf", "\u2192", "\u7684")


def llava_tokenizer(path: str | Path) -> TextTokenizer:
    """Read the tokenizer of a LLaVA checkpoint.

    Args:
        path: ``tokenizer.json``, ``tokenizer.model``, or the folder of the checkpoint.

    Raises:
        ModelError: if neither file is there, or its image token is not the model's.
    """
    file = Path(path)
    if file.is_dir():
        file = file / ("tokenizer.json" if (file / "tokenizer.json").is_file() else "tokenizer.model")
    tokenizer: TextTokenizer = FastTokenizer(file) if file.suffix == ".json" else SentencePieceTokenizer(file)
    try:
        image_id = tokenizer.special_id(IMAGE_TOKEN)
    except ModelError:
        return tokenizer  # the authors' files have no such token
    if image_id != IMAGE_ID:
        raise ModelError(f"{file}: {IMAGE_TOKEN} has the id {image_id}, the model's is {IMAGE_ID}")
    return tokenizer


def placeholder_of(tokenizer: TextTokenizer) -> str:
    """A character that is always one token, whose embedding learned vectors replace.

    Raises:
        ModelError: if no candidate is always one token.
    """
    for text in PLACEHOLDERS:
        try:
            single_token(tokenizer, text)
        except ModelError:
            continue
        return text
    raise ModelError(f"the tokenizer has none of {', '.join(PLACEHOLDERS)} as one token, so none can be a placeholder")


def llava1_5_transform(
    path: str | Path,
    max_seq_len: int = 2048,
    resize: SquareMode = "pad",
    system: str = VICUNA_SYSTEM,
    image_size: int = IMAGE_SIZE,
    supervise_header: bool = False,
) -> EarlyFusionTransform:
    """The transform of LLaVA-1.5.

    Args:
        path: ``tokenizer.json``, ``tokenizer.model``, or the folder of the checkpoint.
        max_seq_len: maximum number of tokens of one sample, 576 of them for each image; the authors train with 2048,
            the model holds 4096.
        resize: see :class:`medtune.models.llava.SquareTiler`.
        system: system message of samples that have none. The default is Vicuna's, which the authors trained with; an
            empty text leaves it out.
        image_size: side of the image in pixels; the weights were made for 336.
        supervise_header: whether the header before an answer is supervised too, as in torchtune's own recipes.
    """
    tokenizer = llava_tokenizer(path)
    return EarlyFusionTransform(
        tokenizer,
        replace(vicuna(), default_system=system),
        SquareTiler(image_size, resize),
        image_id=IMAGE_ID,
        tokens_per_tile=(image_size // PATCH_SIZE) ** 2,
        max_seq_len=max_seq_len,
        placeholder_text=placeholder_of(tokenizer),
        supervise_header=supervise_header,
    )
