"""Small models of InternVL's shape: plain, with LoRA and with QLoRA."""

from functools import partial

from torch import nn
from torchtune.models.llama3._model_utils import scale_hidden_dim_for_mlp

from medtune.models.common.early_fusion import EarlyFusionVLM
from medtune.models.internvl._component_builders import LoraOptions, internvl_vlm
from medtune.models.internvl._shape import DecoderKind, InternVLShape, Layout
from medtune.models.internvl._vision import Connector
from medtune.models.lora.options import ATTENTION, LoraParts

_EMBEDDING_STD = 0.5
_GELU_POWER = 0.425  # mean of gelu(x)^2 for a standard normal x


def _shape(
    vocab_size: int,
    image_size: int,
    patch_size: int,
    embed_dim: int,
    vision_layers: int,
    decoder_layers: int,
    heads: int,
    decoder: DecoderKind,
    max_seq_len: int,
    layer_scale: float,
) -> InternVLShape:
    return InternVLShape(
        image_size=image_size,
        patch_size=patch_size,
        vision_dim=embed_dim,
        vision_layers=vision_layers,
        vision_heads=heads,
        vision_mlp_dim=4 * embed_dim,
        decoder=decoder,
        dim=embed_dim,
        layers=decoder_layers,
        heads=heads,
        kv_heads=heads,  # with fewer, the key and value layers would be too small for NF4 at width 128
        mlp_dim=scale_hidden_dim_for_mlp(embed_dim),
        # as in InternVL, the image token is part of the vocabulary; the tokenizer's vocab_size excludes it
        vocab_size=vocab_size + 1,
        image_id=vocab_size,
        # the ids that train_mini_tokenizer gives them
        bos_id=vocab_size - 7,
        eos_id=vocab_size - 6,
        pad_id=vocab_size - 5,
        norm_eps=1e-5 if decoder == "internlm2" else 1e-6,
        max_seq_len=max_seq_len,
        layer_scale=layer_scale,
    )


def _initialise(model: EarlyFusionVLM) -> EarlyFusionVLM:
    """Initial weights for training: image features begin as large as embedded words, so that neither dominates."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=_EMBEDDING_STD)
        elif isinstance(module, Connector):
            wide, dim = module.linear_1.in_features, module.linear_2.in_features
            nn.init.normal_(module.linear_1.weight, std=wide**-0.5)
            nn.init.normal_(module.linear_2.weight, std=_EMBEDDING_STD * (_GELU_POWER * dim) ** -0.5)
            nn.init.zeros_(module.linear_1.bias)
            nn.init.zeros_(module.linear_2.bias)
    return model


def mini_internvl(
    vocab_size: int = 1024,
    image_size: int = 64,
    patch_size: int = 8,
    embed_dim: int = 128,
    vision_layers: int = 4,
    decoder_layers: int = 4,
    heads: int = 4,
    decoder: DecoderKind = "internlm2",
    max_seq_len: int = 1024,
    layer_scale: float = 1.0,
    layout: Layout = "hf",
) -> EarlyFusionVLM:
    """A small model of InternVL's architecture, initialised from torch's global random state.

    Args:
        vocab_size: the tokenizer's ``vocab_size``; the embedding table has one more row, for the image token.
        image_size: side of a tile in pixels.
        patch_size: side of a patch in pixels; a tile gives (image_size / patch_size / 2)^2 features.
        embed_dim: width of encoder and decoder.
        vision_layers: depth of the vision transformer.
        decoder_layers: depth of the decoder.
        heads: attention heads everywhere.
        decoder: ``internlm2`` or ``qwen2``.
        max_seq_len: longest text, image tokens included.
        layer_scale: value of the vision transformer's layer scales before training; InternViT's 0.1 is meant for
            many layers.
        layout: published layout of exports, ``original`` or ``hf``.
    """
    shape = _shape(
        vocab_size, image_size, patch_size, embed_dim, vision_layers, decoder_layers, heads, decoder, max_seq_len,
        layer_scale,
    )  # fmt: skip
    return _initialise(internvl_vlm("mini_internvl", shape, layout=layout))


def lora_mini_internvl(
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
    decoder: DecoderKind = "internlm2",
    max_seq_len: int = 1024,
    layer_scale: float = 1.0,
    layout: Layout = "hf",
) -> EarlyFusionVLM:
    """A mini InternVL with low-rank adapters, the only trainable parameters until a recipe names more.

    Arguments as for :func:`mini_internvl` and, for the adapters,
    :func:`medtune.models.internvl.lora_internvl2_2b`. With ``quantize_base`` each adapted linear layer needs at least
    16,384 weights, so ``embed_dim`` must be 128 or more.
    """
    shape = _shape(
        vocab_size, image_size, patch_size, embed_dim, vision_layers, decoder_layers, heads, decoder, max_seq_len,
        layer_scale,
    )  # fmt: skip
    lora = LoraOptions.from_arguments(locals())
    return _initialise(internvl_vlm("mini_internvl", shape, layout=layout, lora=lora))


qlora_mini_internvl = partial(lora_mini_internvl, quantize_base=True)
qlora_mini_internvl.__doc__ = "A mini InternVL with adapters on an NF4 base: see ``lora_mini_internvl``."
