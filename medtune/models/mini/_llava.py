"""Small models of LLaVA's shape: plain, with LoRA and with QLoRA, and their transform."""

from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from medtune.models.common.chat_template import llama3
from medtune.models.common.early_fusion import EarlyFusionVLM
from medtune.models.common.early_transform import EarlyFusionTransform
from medtune.models.llama3_2_vision._transform import PLACEHOLDER
from medtune.models.llava._component_builders import LoraOptions, llava_vlm
from medtune.models.llava._images import SquareMode, SquareTiler
from medtune.models.llava._shape import DecoderKind, LlavaShape
from medtune.models.lora.options import LoraParts
from medtune.models.mini._tokenizer import MiniTokenizer

EMBEDDING_STD = 0.5
GELU_POWER = 0.425  # mean of gelu(x)^2 for a standard normal x


def mini_shape(
    vocab_size: int,
    image_size: int,
    patch_size: int,
    embed_dim: int,
    vision_layers: int,
    decoder_layers: int,
    heads: int,
    max_seq_len: int,
    decoder: DecoderKind = "llama",
) -> LlavaShape:
    """Sizes of a mini LLaVA; arguments as for :func:`mini_llava`."""
    return LlavaShape(
        image_size=image_size,
        patch_size=patch_size,
        vision_dim=embed_dim,
        vision_layers=vision_layers,
        vision_heads=heads,
        dim=embed_dim,
        layers=decoder_layers,
        heads=heads,
        # with fewer, the key and value layers would be too small for NF4 at width 128
        kv_heads=heads // 2 if decoder == "mistral" and heads % 2 == 0 else heads,
        decoder=decoder,
        norm_eps=1e-6 if decoder == "qwen2" else 1e-5,
        rope_base=10_000.0 if decoder == "llama" else 1_000_000.0,
        intermediate_dim=None,
        # transformers embeds the image token before replacing it, so it has a row; vocab_size excludes it
        vocab_size=vocab_size + 1,
        image_id=vocab_size,
        max_seq_len=max_seq_len,
        # the ids that train_mini_tokenizer gives them
        bos_id=vocab_size - 7,
        eos_id=vocab_size - 6,
        pad_id=vocab_size - 5,
    )


def initialise(model: EarlyFusionVLM, mlp: Any) -> EarlyFusionVLM:
    """Initial weights for training: image features begin about as large as embedded words; neither dominates.

    Args:
        model: the model, whose embeddings are drawn anew.
        mlp: the two linear layers of its projection with the GELU between them, which are drawn anew too.
    """
    nn.init.normal_(model.decoder.tok_embeddings.weight, std=EMBEDDING_STD)
    first, _, second = mlp
    nn.init.normal_(first.weight, std=first.weight.shape[1] ** -0.5)
    nn.init.normal_(second.weight, std=EMBEDDING_STD * (GELU_POWER * second.weight.shape[1]) ** -0.5)
    nn.init.zeros_(first.bias)
    nn.init.zeros_(second.bias)
    return model


def mini_llava(
    vocab_size: int = 1024,
    image_size: int = 64,
    patch_size: int = 8,
    embed_dim: int = 128,
    vision_layers: int = 4,
    decoder_layers: int = 4,
    heads: int = 4,
    max_seq_len: int = 1024,
    decoder: DecoderKind = "llama",
) -> EarlyFusionVLM:
    """A small model of LLaVA's architecture, initialised from torch's global random state.

    Args:
        vocab_size: the tokenizer's ``vocab_size``.
        image_size: side of the image in pixels.
        patch_size: side of a patch in pixels; each patch is one token.
        embed_dim: width of vision transformer and decoder.
        vision_layers: depth of the vision transformer; as in CLIP and LLaVA, the last layer exists but is not used.
        decoder_layers: depth of the decoder.
        heads: attention heads everywhere.
        max_seq_len: longest text, image tokens included.
        decoder: ``llama``, ``mistral`` (half as many key/value heads, and so too small for NF4) or ``qwen2``.
    """
    shape = mini_shape(
        vocab_size, image_size, patch_size, embed_dim, vision_layers, decoder_layers, heads, max_seq_len, decoder
    )  # fmt: skip
    model = llava_vlm("mini_llava", shape)
    return initialise(model, model.encoder.projection)


def lora_mini_llava(
    lora_attn_modules: list[str],
    apply_lora_to_mlp: bool = False,
    apply_lora_to_output: bool = False,
    lora_rank: int = 8,
    lora_alpha: float = 16.0,
    lora_dropout: float = 0.0,
    quantize_base: bool = False,
    lora_parts: LoraParts = ("decoder",),
    vocab_size: int = 1024,
    image_size: int = 64,
    patch_size: int = 8,
    embed_dim: int = 128,
    vision_layers: int = 4,
    decoder_layers: int = 4,
    heads: int = 4,
    max_seq_len: int = 1024,
    decoder: DecoderKind = "llama",
) -> EarlyFusionVLM:
    """A mini model with low-rank adapters, the only trainable parameters.

    Arguments as for :func:`mini_llava` and, for the adapters, :func:`medtune.models.llava.lora_llava1_5_7b`. With
    ``quantize_base`` each adapted linear layer needs at least 16,384 weights, so ``embed_dim`` must be 128 or more.
    """
    shape = mini_shape(
        vocab_size, image_size, patch_size, embed_dim, vision_layers, decoder_layers, heads, max_seq_len, decoder
    )  # fmt: skip
    lora = LoraOptions.from_arguments(locals())
    model = llava_vlm("mini_llava", shape, lora=lora)
    return initialise(model, model.encoder.projection)


qlora_mini_llava = partial(lora_mini_llava, quantize_base=True)
qlora_mini_llava.__doc__ = "A mini model with adapters on an NF4 base: see ``lora_mini_llava``."


def mini_llava_transform(
    path: str | Path,
    image_size: int = 64,
    max_seq_len: int = 1024,
    patch_size: int = 8,
    resize: SquareMode = "pad",
    supervise_header: bool = False,
) -> EarlyFusionTransform:
    """The transform of a mini LLaVA: the mini tokenizer, whose special tokens are Llama-3's, and its chat format.

    Args:
        path: ``tokenizer.json`` or its folder.
        image_size: side of the image in pixels.
        max_seq_len: maximum number of tokens of one sample, image tokens included.
        patch_size: side of a patch in pixels.
        resize: see :class:`medtune.models.llava.SquareTiler`.
        supervise_header: whether the header before an answer is supervised too, as in torchtune's own recipes.
    """
    tokenizer = MiniTokenizer(path)
    return EarlyFusionTransform(
        tokenizer,
        llama3(),
        SquareTiler(image_size, resize),
        image_id=tokenizer.image_id,
        tokens_per_tile=(image_size // patch_size) ** 2,
        max_seq_len=max_seq_len,
        placeholder_text=PLACEHOLDER,
        supervise_header=supervise_header,
    )
