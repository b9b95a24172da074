"""Small models of Qwen2.5-VL's shape: plain, with LoRA and with QLoRA, and their transform."""

from functools import partial
from pathlib import Path

from torchtune.models.llama3._model_utils import scale_hidden_dim_for_mlp

from medtune.models.common.chat_template import llama3
from medtune.models.llama3_2_vision._transform import PLACEHOLDER
from medtune.models.lora.options import ATTENTION, LoraParts
from medtune.models.mini._llava import initialise
from medtune.models.mini._tokenizer import MiniTokenizer
from medtune.models.qwen2_5_vl._component_builders import LoraOptions, qwen2_5_vl
from medtune.models.qwen2_5_vl._images import BlockCutter
from medtune.models.qwen2_5_vl._shape import MERGE, Qwen2_5VLShape
from medtune.models.qwen2_5_vl._transform import Qwen2_5VLTransform
from medtune.models.qwen2_5_vl._vlm import Qwen2_5VL

_WINDOW_BLOCKS = 2


def _shape(
    vocab_size: int,
    patch_size: int,
    embed_dim: int,
    vision_layers: int,
    decoder_layers: int,
    heads: int,
    max_seq_len: int,
    tied: bool,
) -> Qwen2_5VLShape:
    angles = embed_dim // heads // 2
    side = 3 * angles // 8  # as in the published sizes, three eighths of the angles follow rows, as many columns
    return Qwen2_5VLShape(
        vision_dim=embed_dim,
        vision_layers=vision_layers,
        vision_heads=heads,
        vision_mlp_dim=2 * embed_dim + 4,
        full_layers=tuple(range((vision_layers - 1) % 2, vision_layers, 2)),
        dim=embed_dim,
        layers=decoder_layers,
        heads=heads,
        kv_heads=heads,  # with fewer, the key and value layers would be too small for NF4 at width 128
        mlp_dim=scale_hidden_dim_for_mlp(embed_dim),
        # as in Qwen2.5-VL, the image token is part of the vocabulary; the tokenizer's vocab_size excludes it
        vocab_size=vocab_size + 1,
        tied=tied,
        image_id=vocab_size,
        video_id=vocab_size + 1,
        vision_start_id=vocab_size + 2,
        vision_end_id=vocab_size + 3,
        # the ids that train_mini_tokenizer gives them
        bos_id=vocab_size - 7,
        eos_id=vocab_size - 6,
        patch_size=patch_size,
        window_size=_WINDOW_BLOCKS * MERGE * patch_size,
        rope_sections=(angles - 2 * side, side, side),
        max_seq_len=max_seq_len,
    )


def _initialise(model: Qwen2_5VL) -> Qwen2_5VL:
    merger = model.encoder.projection
    initialise(model, (merger.linear_1, merger.act, merger.linear_2))
    return model


def mini_qwen2_5_vl(
    vocab_size: int = 1024,
    patch_size: int = 8,
    embed_dim: int = 128,
    vision_layers: int = 4,
    decoder_layers: int = 4,
    heads: int = 4,
    max_seq_len: int = 1024,
    tied: bool = False,
) -> Qwen2_5VL:
    """A small model of Qwen2.5-VL's architecture, initialised from torch's global random state.

    Args:
        vocab_size: the tokenizer's ``vocab_size``; the embedding table has one more row, for the image token.
        patch_size: side of a patch in pixels; a block of 2 x 2 patches gives one feature, a window has 2 x 2 blocks.
        embed_dim: width of vision tower and decoder.
        vision_layers: depth of the vision tower; the last layer, and every second one before it, attends to the whole
            image, the others to windows.
        decoder_layers: depth of the decoder.
        heads: attention heads everywhere.
        max_seq_len: longest text, image tokens included.
        tied: whether the output layer is the embedding table, as in the 3B model.
    """
    shape = _shape(vocab_size, patch_size, embed_dim, vision_layers, decoder_layers, heads, max_seq_len, tied)
    return _initialise(qwen2_5_vl("mini_qwen2_5_vl", shape))


def lora_mini_qwen2_5_vl(
    vocab_size: int = 1024,
    lora_attn_modules: tuple[str, ...] | list[str] = ATTENTION,
    apply_lora_to_mlp: bool = True,
    apply_lora_to_output: bool = False,
    lora_rank: int = 8,
    lora_alpha: float = 16.0,
    lora_dropout: float = 0.0,
    quantize_base: bool = False,
    double_quant: bool = True,
    lora_parts: LoraParts = ("decoder",),
    patch_size: int = 8,
    embed_dim: int = 128,
    vision_layers: int = 4,
    decoder_layers: int = 4,
    heads: int = 4,
    max_seq_len: int = 1024,
    tied: bool = False,
) -> Qwen2_5VL:
    """A mini Qwen2.5-VL with low-rank adapters, the only trainable parameters until a recipe names more.

    Arguments as for :func:`mini_qwen2_5_vl` and, for the adapters,
    :func:`medtune.models.qwen2_5_vl.lora_qwen2_5_vl_7b`. With ``quantize_base`` each adapted linear layer needs at
    least 16,384 weights, so ``embed_dim`` must be 128 or more.
    """
    shape = _shape(vocab_size, patch_size, embed_dim, vision_layers, decoder_layers, heads, max_seq_len, tied)
    lora = LoraOptions.from_arguments(locals())
    return _initialise(qwen2_5_vl("mini_qwen2_5_vl", shape, lora=lora))


qlora_mini_qwen2_5_vl = partial(lora_mini_qwen2_5_vl, quantize_base=True)
qlora_mini_qwen2_5_vl.__doc__ = "A mini Qwen2.5-VL, adapters on an NF4 base: see ``lora_mini_qwen2_5_vl``."


def mini_qwen2_5_vl_transform(
    path: str | Path,
    min_pixels: int = 32 * 32,
    max_pixels: int = 64 * 64,
    max_seq_len: int = 1024,
    patch_size: int = 8,
    supervise_header: bool = False,
) -> Qwen2_5VLTransform:
    """The transform of a mini Qwen2.5-VL: the mini tokenizer, Llama-3's chat format, images of any size.

    Args:
        path: ``tokenizer.json`` or its folder.
        min_pixels: smaller images are enlarged to this number of pixels.
        max_pixels: larger images are reduced to it; a block of 2 x 2 patches is one token.
        max_seq_len: maximum number of tokens of one sample, image tokens included.
        patch_size: side of a patch in pixels.
        supervise_header: whether the header before an answer is supervised too, as in torchtune's own recipes.
    """
    tokenizer = MiniTokenizer(path)
    return Qwen2_5VLTransform(
        tokenizer,
        llama3(),
        BlockCutter(MERGE * patch_size, min_pixels, max_pixels),
        image_id=tokenizer.image_id,
        tokens_per_tile=1,
        max_seq_len=max_seq_len,
        placeholder_text=PLACEHOLDER,
        supervise_header=supervise_header,
    )
