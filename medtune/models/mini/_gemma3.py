"""Small models of Gemma 3's shape: plain, with LoRA and with QLoRA, and their transform."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from torchtune.models.llama3._model_utils import scale_hidden_dim_for_mlp

from medtune.models.common.chat_template import llama3
from medtune.models.common.early_transform import EarlyFusionTransform
from medtune.models.gemma3._component_builders import Gemma3VLM, LoraOptions, gemma3_vlm
from medtune.models.gemma3._images import SquashTiler
from medtune.models.gemma3._shape import Gemma3Shape
from medtune.models.llama3_2_vision._transform import PLACEHOLDER
from medtune.models.lora.options import ATTENTION, LoraParts
from medtune.models.mini._tokenizer import MiniTokenizer

_EMBEDDING_STD = 0.5
_POOL = 2  # _POOL x _POOL patches are averaged to one feature


def _shape(
    vocab_size: int,
    image_size: int,
    patch_size: int,
    embed_dim: int,
    vision_layers: int,
    decoder_layers: int,
    heads: int,
    window: int,
    pattern: int,
    max_seq_len: int,
) -> Gemma3Shape:
    return Gemma3Shape(
        image_size=image_size,
        patch_size=patch_size,
        vision_dim=embed_dim,
        vision_layers=vision_layers,
        vision_heads=heads,
        vision_mlp_dim=4 * embed_dim,
        tokens_per_image=(image_size // patch_size // _POOL) ** 2,
        dim=embed_dim,
        layers=decoder_layers,
        heads=heads,
        kv_heads=heads,  # with fewer, the key and value layers would be too small for NF4 at width 128
        head_dim=embed_dim // heads,
        mlp_dim=scale_hidden_dim_for_mlp(embed_dim),
        # transformers embeds the image token before replacing it, so it has a row; vocab_size excludes it
        vocab_size=vocab_size + 1,
        query_scale=embed_dim // heads,
        window=window,
        pattern=pattern,
        rope_factor=1.0,  # a factor of 8 is for a base that was trained on short texts without it
        image_id=vocab_size,
        # the ids that train_mini_tokenizer gives them; it has no tokens around images
        image_start_id=vocab_size - 2,
        image_end_id=vocab_size - 1,
        bos_id=vocab_size - 7,
        eos_ids=(vocab_size - 6,),
        pad_id=vocab_size - 5,
        context=max_seq_len,
        max_seq_len=max_seq_len,
    )


def _initialise(model: Gemma3VLM) -> Gemma3VLM:
    """Initial weights for training: image features begin as large as embedded words, so that neither dominates."""
    # the embeddings are multiplied by the root of their width
    nn.init.normal_(model.decoder.tok_embeddings.weight, std=_EMBEDDING_STD * model.embed_dim**-0.5)
    weight: Any = model.encoder.projection.weight
    nn.init.normal_(weight, std=_EMBEDDING_STD * weight.shape[0] ** -0.5)
    return model


def mini_gemma3(
    vocab_size: int = 1024,
    image_size: int = 64,
    patch_size: int = 8,
    embed_dim: int = 128,
    vision_layers: int = 4,
    decoder_layers: int = 4,
    heads: int = 4,
    window: int = 64,
    pattern: int = 2,
    max_seq_len: int = 1024,
) -> Gemma3VLM:
    """A small model of Gemma 3's architecture, initialised from torch's global random state.

    Args:
        vocab_size: the tokenizer's ``vocab_size``; the embedding table has one more row, for the image token.
        image_size: side of the image in pixels.
        patch_size: side of a patch in pixels; an image gives (image_size / patch_size / 2)^2 features.
        embed_dim: width of encoder and decoder.
        vision_layers: depth of the vision transformer.
        decoder_layers: depth of the decoder.
        heads: attention heads everywhere.
        window: a local layer sees this many tokens.
        pattern: every ``pattern``-th layer is global, the others are local.
        max_seq_len: longest text, image tokens included.
    """
    return _initialise(gemma3_vlm("mini_gemma3", _shape(**locals())))


def lora_mini_gemma3(
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
    image_size: int = 64,
    patch_size: int = 8,
    embed_dim: int = 128,
    vision_layers: int = 4,
    decoder_layers: int = 4,
    heads: int = 4,
    window: int = 64,
    pattern: int = 2,
    max_seq_len: int = 1024,
) -> Gemma3VLM:
    """A mini Gemma 3 with low-rank adapters, the only trainable parameters until a recipe names more.

    Arguments as for :func:`mini_gemma3` and, for the adapters, :func:`medtune.models.gemma3.lora_gemma3_4b`. With
    ``quantize_base`` linear layers of fewer than 16,384 weights stay dense; at ``embed_dim`` 128 none has fewer.
    """
    lora = LoraOptions.from_arguments(locals())
    shape = _shape(
        vocab_size, image_size, patch_size, embed_dim, vision_layers, decoder_layers, heads, window, pattern,
        max_seq_len,
    )  # fmt: skip
    return _initialise(gemma3_vlm("mini_gemma3", shape, lora=lora))


qlora_mini_gemma3 = partial(lora_mini_gemma3, quantize_base=True)
qlora_mini_gemma3.__doc__ = "A mini Gemma 3 with adapters on an NF4 base: see ``lora_mini_gemma3``."


def mini_gemma3_transform(
    path: str | Path,
    image_size: int = 64,
    max_seq_len: int = 1024,
    patch_size: int = 8,
    supervise_header: bool = False,
) -> EarlyFusionTransform:
    """The transform of a mini Gemma 3: the mini tokenizer, Llama-3's chat format with empty lines around images.

    Args:
        path: ``tokenizer.json`` or its folder.
        image_size: side of the image in pixels.
        max_seq_len: maximum number of tokens of one sample, image tokens included.
        patch_size: side of a patch in pixels.
        supervise_header: whether the header before an answer is supervised too, as in torchtune's own recipes.
    """
    tokenizer = MiniTokenizer(path)
    return EarlyFusionTransform(
        tokenizer,
        replace(llama3(), image_break="\n\n"),  # two images without text between them would be one
        SquashTiler(image_size),
        image_id=tokenizer.image_id,
        tokens_per_tile=(image_size // patch_size // _POOL) ** 2,
        max_seq_len=max_seq_len,
        placeholder_text=PLACEHOLDER,
        supervise_header=supervise_header,
    )
