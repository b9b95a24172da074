"""Small models of Llama-3.2-Vision's shape: plain, with LoRA and with QLoRA."""

from functools import partial

from torch import nn
from torchtune.modules import TanhGate

from medtune.models.common.deep_fusion import DeepFusionVLM
from medtune.models.llama3_2_vision._component_builders import LORA_PARTS, LoraOptions, deep_fusion_vlm
from medtune.models.llama3_2_vision._encoder import EncoderMode
from medtune.models.llama3_2_vision._shape import DeepFusionShape
from medtune.models.lora.options import LoraParts

_EMBEDDING_STD = 0.5


def _shape(
    vocab_size: int,
    image_size: int,
    patch_size: int,
    embed_dim: int,
    vision_layers: int,
    decoder_layers: int,
    heads: int,
    fusion_interval: int,
    projection_layers: int,
    max_num_tiles: int,
    max_seq_len: int,
) -> DeepFusionShape:
    return DeepFusionShape(
        image_size=image_size,
        patch_size=patch_size,
        vision_dim=embed_dim,
        vision_layers=vision_layers,
        vision_heads=heads,
        hidden_states=tuple(range(1, vision_layers, 2)),
        projection_layers=projection_layers,
        table_tiles=max_num_tiles,
        dim=embed_dim,
        layers=decoder_layers,
        fusion_interval=fusion_interval,
        heads=heads,
        kv_heads=heads,  # with fewer, the key and value layers would be too small for NF4 at width 128
        intermediate_dim=None,
        vocab_size=vocab_size,
        # the ids that train_mini_tokenizer gives them
        bos_id=vocab_size - 7,
        eos_id=vocab_size - 6,
        pad_id=vocab_size - 5,
        max_seq_len=max_seq_len,
        encoder_max_seq_len=8 * max_num_tiles * ((image_size // patch_size) ** 2 + 1),
    )


def _initialise(model: DeepFusionVLM, gate_init: float) -> DeepFusionVLM:
    """Initial weights for training: open gates (published models start from a text model with closed gates)."""
    for module in model.modules():
        if isinstance(module, TanhGate):
            nn.init.constant_(module.scale, gate_init)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=_EMBEDDING_STD)
    return model


def mini_vlm(
    vocab_size: int,
    image_size: int = 64,
    patch_size: int = 8,
    embed_dim: int = 128,
    vision_layers: int = 4,
    decoder_layers: int = 4,
    heads: int = 4,
    fusion_interval: int = 2,
    projection_layers: int = 1,
    max_num_tiles: int = 1,
    max_seq_len: int = 1024,
    encoder_mode: EncoderMode = "checkpoint",
    hf_rows: bool = False,
    gate_init: float = 0.5,
) -> DeepFusionVLM:
    """A small model of Llama-3.2-Vision's architecture, initialised from torch's global random state.

    Args:
        vocab_size: the tokenizer's ``vocab_size``.
        image_size: side of a tile in pixels.
        patch_size: side of a patch in pixels.
        embed_dim: width of encoder and decoder.
        vision_layers: depth of the vision transformer.
        decoder_layers: depth of the decoder.
        heads: attention heads everywhere.
        fusion_interval: a fusion layer is placed before every ``fusion_interval``-th decoder layer.
        projection_layers: depth of the projection's transformer.
        max_num_tiles: maximum number of tiles of one image, to which ``checkpoint`` mode pads.
        max_seq_len: longest text.
        encoder_mode: see :class:`medtune.models.llama3_2_vision.VisionEncoder`.
        hf_rows: transformers' rule for text before the first image.
        gate_init: value of the tanh gates before training.
    """
    shape = _shape(
        vocab_size, image_size, patch_size, embed_dim, vision_layers, decoder_layers, heads, fusion_interval,
        projection_layers, max_num_tiles, max_seq_len,
    )  # fmt: skip
    return _initialise(deep_fusion_vlm("mini_vlm", shape, encoder_mode=encoder_mode, hf_rows=hf_rows), gate_init)


def lora_mini_vlm(
    vocab_size: int,
    lora_attn_modules: list[str],
    apply_lora_to_mlp: bool = False,
    apply_lora_to_output: bool = False,
    lora_rank: int = 8,
    lora_alpha: float = 16.0,
    lora_dropout: float = 0.0,
    quantize_base: bool = False,
    lora_parts: LoraParts = LORA_PARTS,
    image_size: int = 64,
    patch_size: int = 8,
    embed_dim: int = 128,
    vision_layers: int = 4,
    decoder_layers: int = 4,
    heads: int = 4,
    fusion_interval: int = 2,
    projection_layers: int = 1,
    max_num_tiles: int = 1,
    max_seq_len: int = 1024,
    encoder_mode: EncoderMode = "checkpoint",
    hf_rows: bool = False,
    gate_init: float = 0.5,
) -> DeepFusionVLM:
    """A mini model with low-rank adapters, the only trainable parameters.

    Arguments as for :func:`mini_vlm` and, for the adapters,
    :func:`medtune.models.llama3_2_vision.lora_llama3_2_vision_11b`. With ``quantize_base`` each adapted linear layer
    needs at least 16,384 weights, so ``embed_dim`` must be 128 or more.
    """
    shape = _shape(
        vocab_size, image_size, patch_size, embed_dim, vision_layers, decoder_layers, heads, fusion_interval,
        projection_layers, max_num_tiles, max_seq_len,
    )  # fmt: skip
    lora = LoraOptions.from_arguments(locals())
    model = deep_fusion_vlm("mini_vlm", shape, encoder_mode=encoder_mode, hf_rows=hf_rows, lora=lora)
    return _initialise(model, gate_init)


qlora_mini_vlm = partial(lora_mini_vlm, quantize_base=True)
qlora_mini_vlm.__doc__ = "A mini model with adapters on an NF4 base: see ``lora_mini_vlm``."
