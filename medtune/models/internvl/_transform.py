"""The transforms of InternVL2 and InternVL3: their tokenizers, chat formats and image tokens."""

from pathlib import Path

from medtune.errors import ModelError
from medtune.models.common.chat_template import ChatTemplate, chatml
from medtune.models.common.early_transform import EarlyFusionTransform
from medtune.models.common.tokenizer import FastTokenizer, SentencePieceTokenizer, TextTokenizer, placeholder
from medtune.models.internvl._images import DynamicTiler
from medtune.models.internvl._model_builders import INTERNVL2_2B, INTERNVL3_8B
from medtune.models.internvl._shape import InternVLShape

IMAGE_START, IMAGE_END, IMAGE_CONTEXT = "<img>", "</img>", "<IMG_CONTEXT>"
# The system messages that the published models were tuned with ("you are InternVL, made by ...").
INTERNVL2_SYSTEM = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
INTERNVL3_SYSTEM = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)


def internvl2_transform(
    path: str | Path,
    max_num_tiles: int = 6,
    max_seq_len: int = 4096,
    system: str | None = None,
    supervise_header: bool = False,
) -> EarlyFusionTransform:
    """The transform of InternVL2 with InternLM2.

    Args:
        path: ``tokenizer.model`` with ``added_tokens.json`` and ``tokenizer_config.json`` next to it, or the folder
            of the checkpoint.
        max_num_tiles: maximum number of tiles of one image; with more than one a thumbnail is added. InternVL's
            fine-tuning takes 6, its inference 12.
        max_seq_len: maximum number of tokens of one sample, including 256 per tile.
        system: system message of samples that have none; None takes the published one, an empty text leaves it out.
        supervise_header: whether the header before an answer is supervised too, as in torchtune's own recipes.
    """
    template = chatml(INTERNVL2_SYSTEM if system is None else system, end="<|im_end|>", bos="<s>", pad="</s>")
    tiler = DynamicTiler(INTERNVL2_2B.image_size, max_num_tiles)
    return internvl_transform(
        SentencePieceTokenizer(path), template, INTERNVL2_2B, tiler, max_seq_len, supervise_header
    )


def internvl3_transform(
    path: str | Path,
    max_num_tiles: int = 6,
    max_seq_len: int = 4096,
    system: str | None = None,
    supervise_header: bool = False,
) -> EarlyFusionTransform:
    """The transform of InternVL3.

    Args:
        path: ``tokenizer.json`` or the folder of the checkpoint; ``OpenGVLab/InternVL3-8B-hf`` holds one.
        max_num_tiles: maximum number of tiles of one image; with more than one a thumbnail is added.
        max_seq_len: maximum number of tokens of one sample, including 256 per tile.
        system: system message of samples that have none. None takes that of OpenGVLab's code; an empty text leaves it
            out, as the chat template of the ``-hf`` checkpoints does.
        supervise_header: whether the header before an answer is supervised too, as in torchtune's own recipes.
    """
    template = chatml(INTERNVL3_SYSTEM if system is None else system)
    tiler = DynamicTiler(INTERNVL3_8B.image_size, max_num_tiles)
    return internvl_transform(FastTokenizer(path), template, INTERNVL3_8B, tiler, max_seq_len, supervise_header)


def internvl_transform(
    tokenizer: TextTokenizer,
    template: ChatTemplate,
    shape: InternVLShape,
    tiler: DynamicTiler,
    max_seq_len: int,
    supervise_header: bool,
    *,
    bare: bool = False,
) -> EarlyFusionTransform:
    """The transform of an InternVL of any size.

    Args:
        tokenizer: that of the checkpoint.
        template: its chat format.
        shape: sizes of the model.
        tiler: cuts images.
        max_seq_len: maximum number of tokens of one sample, including those of tiles.
        supervise_header: whether the header before an answer is supervised too.
        bare: whether images have no marks around them, as in a mini InternVL, whose image token has no text.

    Raises:
        ModelError: if the tokenizer is not that of the model.
    """
    image_id = shape.image_id if bare else tokenizer.special_id(IMAGE_CONTEXT)
    if image_id != shape.image_id:
        raise ModelError(
            f"{IMAGE_CONTEXT} is token {image_id} of this tokenizer, but {shape.image_id} of the model; take the "
            "tokenizer of the checkpoint"
        )
    return EarlyFusionTransform(
        tokenizer,
        template,
        tiler,
        image_id=image_id,
        tokens_per_tile=shape.tokens_per_tile,
        image_start=[] if bare else [tokenizer.special_id(IMAGE_START)],
        image_end=[] if bare else [tokenizer.special_id(IMAGE_END)],
        max_seq_len=max_seq_len,
        placeholder_text=placeholder(tokenizer),
        supervise_header=supervise_header,
    )
