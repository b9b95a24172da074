"""The transforms of LLaVA models: one square tile per image, and the chat format of Vicuna, Mistral or HuatuoGPT."""

from dataclasses import replace
from pathlib import Path

from medtune.errors import ModelError
from medtune.models.common.chat_formats import huatuo, mistral
from medtune.models.common.chat_template import VICUNA_SYSTEM, ChatTemplate, vicuna
from medtune.models.common.early_transform import EarlyFusionTransform
from medtune.models.common.folder_tokenizer import eos_token_of, folder_tokenizer
from medtune.models.common.tokenizer import FastTokenizer, SentencePieceTokenizer, TextTokenizer, placeholder
from medtune.models.llava._images import SquareMode, SquareTiler
from medtune.models.llava._model_builders import HUATUO, IMAGE_ID, IMAGE_SIZE, LLAVA1_5, LLAVA_MED
from medtune.models.llava._shape import LlavaShape

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
    check_image_token(tokenizer, IMAGE_ID, file)
    return tokenizer


def check_image_token(tokenizer: TextTokenizer, image_id: int, file: Path) -> None:
    """Check that a tokenizer and a model agree on the token that stands for an image.

    Args:
        tokenizer: that of the checkpoint; the authors' files have no such token, and then there is nothing to check.
        image_id: the model's.
        file: where the tokenizer is, for messages.

    Raises:
        ModelError: if they do not agree.
    """
    try:
        found = tokenizer.special_id(IMAGE_TOKEN)
    except ModelError:
        return
    if found != image_id:
        raise ModelError(f"{file}: {IMAGE_TOKEN} has the id {found}, the model's is {image_id}")


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
    template = replace(vicuna(), default_system=system)
    tiler = SquareTiler(image_size, resize)
    shape = replace(LLAVA1_5, image_size=image_size)
    return llava_transform(tokenizer, template, shape, tiler, max_seq_len, supervise_header)


def llava_med_transform(
    path: str | Path,
    max_seq_len: int = 2048,
    resize: SquareMode = "pad",
    system: str = "",
    supervise_header: bool = False,
) -> EarlyFusionTransform:
    """The transform of LLaVA-Med v1.5: Mistral's chat format.

    Args:
        path: ``tokenizer.json``, ``tokenizer.model``, or the folder of the checkpoint.
        max_seq_len: maximum number of tokens of one sample, 576 of them for each image; the model holds 32,768.
        resize: see :class:`medtune.models.llava.SquareTiler`.
        system: system message of samples that have none; the authors use none.
        supervise_header: whether the text before an answer, ``[/INST]``, is supervised too.
    """
    tiler = SquareTiler(IMAGE_SIZE, resize)
    return llava_transform(llava_tokenizer(path), mistral(system), LLAVA_MED, tiler, max_seq_len, supervise_header)


def huatuogpt_vision_transform(
    path: str | Path,
    max_seq_len: int = 2048,
    resize: SquareMode = "pad",
    system: str = "",
    supervise_header: bool = False,
) -> EarlyFusionTransform:
    """The transform of HuatuoGPT-Vision-7B: its chat format, with Qwen2's tokenizer.

    Args:
        path: the folder of the checkpoint.
        max_seq_len: maximum number of tokens of one sample, 576 of them for each image; the model holds 32,768.
        resize: see :class:`medtune.models.llava.SquareTiler`.
        system: system message of samples that have none; the authors use none.
        supervise_header: whether the header before an answer is supervised too.
    """
    tokenizer = folder_tokenizer(Path(path), HUATUO.vocab_size)
    template = huatuo(system, end=eos_token_of(Path(path), "<|endoftext|>"))
    return llava_transform(tokenizer, template, HUATUO, SquareTiler(IMAGE_SIZE, resize), max_seq_len, supervise_header)


def llava_transform(
    tokenizer: TextTokenizer,
    template: ChatTemplate,
    shape: LlavaShape,
    tiler: SquareTiler,
    max_seq_len: int,
    supervise_header: bool,
) -> EarlyFusionTransform:
    """The transform of a LLaVA of any size and decoder.

    Args:
        tokenizer: that of the checkpoint.
        template: its chat format.
        shape: sizes of the model.
        tiler: makes the square tile.
        max_seq_len: maximum number of tokens of one sample, image tokens included.
        supervise_header: whether the header before an answer is supervised too.
    """
    return EarlyFusionTransform(
        tokenizer,
        template,
        tiler,
        image_id=shape.image_id,
        tokens_per_tile=shape.tokens_per_image,
        max_seq_len=max_seq_len,
        placeholder_text=placeholder(tokenizer, after_space=template.after_space, candidates=PLACEHOLDERS),
        supervise_header=supervise_header,
    )
