"""Llama-3.2-Vision in its two sizes: plain, with LoRA and with QLoRA."""

from functools import partial

from medtune.errors import ModelError
from medtune.models.common.deep_fusion import DeepFusionVLM
from medtune.models.llama3_2_vision._component_builders import LORA_PARTS, LoraOptions, deep_fusion_vlm
from medtune.models.llama3_2_vision._encoder import EncoderMode
from medtune.models.llama3_2_vision._shape import DeepFusionShape
from medtune.models.lora.options import LoraParts

_TABLE_TILES = 4
# NF4's second quantisation: torchao's default of 256 does not divide the 1280-wide weights over 1, 2, 4, 6 or 8 GPUs
SCALER_BLOCK = 200


def _shape(image_size: int, *, dim: int, layers: int, heads: int, intermediate_dim: int) -> DeepFusionShape:
    return DeepFusionShape(
        image_size=image_size,
        patch_size=14,
        vision_dim=1280,
        vision_layers=32,
        vision_heads=16,
        hidden_states=(3, 7, 15, 23, 30),
        projection_layers=8,
        table_tiles=_TABLE_TILES,
        dim=dim,
        layers=layers,
        fusion_interval=4,
        heads=heads,
        kv_heads=8,
        intermediate_dim=intermediate_dim,
        vocab_size=128_256,
    )


def _11b(image_size: int) -> DeepFusionShape:
    return _shape(image_size, dim=4096, layers=32, heads=32, intermediate_dim=14_336)


def _90b(image_size: int) -> DeepFusionShape:
    return _shape(image_size, dim=8192, layers=80, heads=64, intermediate_dim=28_672)


def _build(
    name: str,
    shape: DeepFusionShape,
    max_num_tiles: int,
    encoder_mode: EncoderMode,
    pad_tiles: int | None,
    hf_rows: bool,
    lora: LoraOptions | None = None,
) -> DeepFusionVLM:
    slots = _TABLE_TILES if pad_tiles is None else pad_tiles
    if not 1 <= max_num_tiles <= slots <= _TABLE_TILES:
        raise ModelError(
            f"{name}: need 1 <= max_num_tiles <= pad_tiles <= {_TABLE_TILES}, got max_num_tiles={max_num_tiles} "
            f"and pad_tiles={slots}"
        )
    return deep_fusion_vlm(name, shape, encoder_mode=encoder_mode, pad_tiles=slots, hf_rows=hf_rows, lora=lora)


def llama3_2_vision_11b(
    image_size: int = 560,
    max_num_tiles: int = 1,
    encoder_mode: EncoderMode = "checkpoint",
    pad_tiles: int | None = None,
    hf_rows: bool = False,
) -> DeepFusionVLM:
    """Llama-3.2-11B-Vision, every parameter trainable until a recipe freezes parts.

    Args:
        image_size: side of a tile: 560 for the Instruct weights, 448 for the base weights.
        max_num_tiles: maximum number of tiles that the transform makes of one image (InstFree's official code uses 1).
        encoder_mode: see :class:`medtune.models.llama3_2_vision.VisionEncoder`.
        pad_tiles: tiles that ``checkpoint`` mode pads each image to. None is 4, as the published weights were
            trained; 1 costs a quarter and is what InstFree's official code computes for its one-tile images.
        hf_rows: let text before the first image attend to the image, as transformers does; Meta's code does not.
    """
    return _build("llama3_2_vision_11b", _11b(image_size), max_num_tiles, encoder_mode, pad_tiles, hf_rows)


def llama3_2_vision_90b(
    image_size: int = 560,
    max_num_tiles: int = 1,
    encoder_mode: EncoderMode = "checkpoint",
    pad_tiles: int | None = None,
    hf_rows: bool = False,
) -> DeepFusionVLM:
    """Llama-3.2-90B-Vision; arguments as for :func:`llama3_2_vision_11b`."""
    return _build("llama3_2_vision_90b", _90b(image_size), max_num_tiles, encoder_mode, pad_tiles, hf_rows)


def lora_llama3_2_vision_11b(
    lora_attn_modules: list[str],
    apply_lora_to_mlp: bool = False,
    apply_lora_to_output: bool = False,
    lora_rank: int = 8,
    lora_alpha: float = 16.0,
    lora_dropout: float = 0.0,
    quantize_base: bool = False,
    lora_parts: LoraParts = LORA_PARTS,
    image_size: int = 560,
    max_num_tiles: int = 1,
    encoder_mode: EncoderMode = "checkpoint",
    pad_tiles: int | None = None,
    hf_rows: bool = False,
) -> DeepFusionVLM:
    """Llama-3.2-11B-Vision with low-rank adapters, the only trainable parameters.

    Args:
        lora_attn_modules: some of ``q_proj``, ``k_proj``, ``v_proj``, ``output_proj``.
        apply_lora_to_mlp: adapters in the MLPs too.
        apply_lora_to_output: adapters on the last linear layers of decoder and projection too.
        lora_rank: rank of each adapter.
        lora_alpha: scale of each adapter, divided by its rank.
        lora_dropout: dropout before each adapter.
        quantize_base: keep the linear layers of adapted parts as NF4 (QLoRA).
        lora_parts: which of ``vision``, ``projection``, ``fusion`` (the projection included, unless it is named) and
            ``decoder`` carry adapters, or a mapping from a part to the options that differ there (``rank``, ``alpha``,
            ``dropout``, ``attn_modules``, ``mlp``, ``output``), as in
            ``{vision: {rank: 32}, fusion: {rank: 8, alpha: 16}}``.
        image_size: see :func:`llama3_2_vision_11b`, also for the arguments that follow.
        max_num_tiles: maximum number of tiles that the transform makes of one image.
        encoder_mode: attention over padding in the vision encoder.
        pad_tiles: tiles that ``checkpoint`` mode pads each image to.
        hf_rows: transformers' rule for text before the first image.
    """
    lora = LoraOptions.from_arguments(locals(), scaler_block_size=SCALER_BLOCK if quantize_base else None)
    return _build("llama3_2_vision_11b", _11b(image_size), max_num_tiles, encoder_mode, pad_tiles, hf_rows, lora)


def lora_llama3_2_vision_90b(
    lora_attn_modules: list[str],
    apply_lora_to_mlp: bool = False,
    apply_lora_to_output: bool = False,
    lora_rank: int = 8,
    lora_alpha: float = 16.0,
    lora_dropout: float = 0.0,
    quantize_base: bool = False,
    lora_parts: LoraParts = LORA_PARTS,
    image_size: int = 560,
    max_num_tiles: int = 1,
    encoder_mode: EncoderMode = "checkpoint",
    pad_tiles: int | None = None,
    hf_rows: bool = False,
) -> DeepFusionVLM:
    """Llama-3.2-90B-Vision with low-rank adapters; arguments as for :func:`lora_llama3_2_vision_11b`."""
    lora = LoraOptions.from_arguments(locals(), scaler_block_size=SCALER_BLOCK if quantize_base else None)
    return _build("llama3_2_vision_90b", _90b(image_size), max_num_tiles, encoder_mode, pad_tiles, hf_rows, lora)


qlora_llama3_2_vision_11b = partial(lora_llama3_2_vision_11b, quantize_base=True)
qlora_llama3_2_vision_11b.__doc__ = "Llama-3.2-11B-Vision, adapters on an NF4 base: see ``lora_llama3_2_vision_11b``."

qlora_llama3_2_vision_90b = partial(lora_llama3_2_vision_90b, quantize_base=True)
qlora_llama3_2_vision_90b.__doc__ = "Llama-3.2-90B-Vision, adapters on an NF4 base: see ``lora_llama3_2_vision_90b``."
