"""The transforms of InternVL2, 2.5 and 3: their tokenizers, chat formats and image tokens."""

from collections.abc import Sequence
from pathlib import Path

from medtune.errors import ModelError
from medtune.models.common.chat_template import ChatTemplate, chatml
from medtune.models.common.early_transform import EarlyFusionTransform
from medtune.models.common.folder_tokenizer import folder_tokenizer, knows
from medtune.models.common.tokenizer import FastTokenizer, SentencePieceTokenizer, TextTokenizer, placeholder
from medtune.models.internvl._images import DynamicTiler
from medtune.models.internvl._model_builders import INTERNVL2_2B, INTERNVL3_8B
from medtune.models.internvl._shape import InternVLShape, Template
from medtune.models.internvl._sizes import SIZES

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
    """The transform of InternVL2 with InternLM2 (2B and 8B).

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
    """The transform of InternVL3 of any size.

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


def internvl2_1b_transform(
    path: str | Path,
    max_num_tiles: int = 6,
    max_seq_len: int = 4096,
    system: str | None = None,
    supervise_header: bool = False,
) -> EarlyFusionTransform:
    """The transform of InternVL2-1B, whose tokenizer is Qwen2's.

    Args:
        path: the folder of the checkpoint.
        max_num_tiles: maximum number of tiles of one image; with more than one a thumbnail is added.
        max_seq_len: maximum number of tokens of one sample, including 256 per tile.
        system: system message of samples that have none; None takes the published one, an empty text leaves it out.
        supervise_header: whether the header before an answer is supervised too, as in torchtune's own recipes.
    """
    return _of_folder(path, [SIZES["internvl2_1b"]], max_num_tiles, max_seq_len, system, supervise_header)


def internvl2_5_transform(
    path: str | Path,
    max_num_tiles: int = 6,
    max_seq_len: int = 4096,
    system: str | None = None,
    supervise_header: bool = False,
) -> EarlyFusionTransform:
    """The transform of InternVL2.5: 1B and 4B have Qwen2.5's tokenizer, 2B and 8B InternLM2's; the folder tells which.

    Args:
        path: the folder of the checkpoint.
        max_num_tiles: maximum number of tiles of one image; with more than one a thumbnail is added.
        max_seq_len: maximum number of tokens of one sample, including 256 per tile.
        system: system message of samples that have none; None takes the published one, an empty text leaves it out.
        supervise_header: whether the header before an answer is supervised too, as in torchtune's own recipes.
    """
    shapes = [SIZES["internvl2_5_1b"], SIZES["internvl2_5_2b"]]
    return _of_folder(path, shapes, max_num_tiles, max_seq_len, system, supervise_header)


def _of_folder(
    path: str | Path,
    shapes: Sequence[InternVLShape],
    max_num_tiles: int,
    max_seq_len: int,
    system: str | None,
    supervise_header: bool,
) -> EarlyFusionTransform:
    """The transform of the one of several sizes to which a folder's tokenizer belongs."""
    tokenizer = folder_tokenizer(Path(path), max(shape.vocab_size for shape in shapes))
    found = tokenizer.special_id(IMAGE_CONTEXT)
    shape = next((shape for shape in shapes if shape.image_id == found), shapes[0])
    tiler = DynamicTiler(shape.image_size, max_num_tiles)
    template = template_of(shape.chat, tokenizer, system)
    return internvl_transform(tokenizer, template, shape, tiler, max_seq_len, supervise_header)


def template_of(name: Template, tokenizer: TextTokenizer, system: str | None) -> ChatTemplate:
    """A chat format by its name in OpenGVLab's files.

    Args:
        name: as in ``template`` of config.json.
        tokenizer: tells whether a text begins with ``<s>`` (InternLM2).
        system: system message of samples that have none; None takes the published one of the format.
    """
    published = INTERNVL3_SYSTEM if name == "internvl2_5" else INTERNVL2_SYSTEM
    end = "<|im_end|>\n" if name == "internvl2_5" else "<|im_end|>"
    internlm2 = knows(tokenizer, "<s>") and not knows(tokenizer, "<|endoftext|>")
    marks = {"bos": "<s>", "pad": "</s>"} if internlm2 else {}
    return chatml(published if system is None else system, end=end, **marks)


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
        placeholder_text=placeholder(tokenizer, after_space=template.after_space),
        supervise_header=supervise_header,
    )
