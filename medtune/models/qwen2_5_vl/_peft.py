"""Converter of Qwen2.5-VL adapters between torchtune's names and PEFT's."""

from collections.abc import Sequence

import torch
from torch import Tensor

from medtune.models.common.decoder_names import DECODER_MAPS, QKV
from medtune.models.common.family import StateDict
from medtune.models.lora.names import from_peft, to_peft
from medtune.models.lora.packed import PackedLayer, pack_adapters, unpack_adapters
from medtune.models.qwen2_5_vl._convert_weights import VISION, disk_name
from medtune.models.qwen2_5_vl._shape import Qwen2_5VLShape


def module_names(shape: Qwen2_5VLShape) -> dict[str, str]:
    """Linear layers that can carry an adapter: torchtune's state-dict prefix -> name in a live transformers 5 model.

    Those that the published layout packs are in :func:`packed_layers`.
    """
    names = {} if shape.tied else {"decoder.output": "lm_head"}
    for ours, theirs, depth, maps in (
        ("decoder.layers", "model.language_model.layers", shape.layers, DECODER_MAPS),
        ("encoder.vision.layers", "model.visual.blocks", shape.vision_layers, VISION),
    ):
        for layer in range(depth):
            names |= {f"{ours}.{layer}.{a}": f"{theirs}.{layer}.{b}" for a, b in maps.items()}
    return names


def packed_layers(shape: Qwen2_5VLShape) -> list[PackedLayer]:
    """The layers that hold q, k and v of the vision tower."""
    rows = (shape.vision_dim,) * len(QKV)
    return [
        PackedLayer(
            f"model.visual.blocks.{layer}.attn.qkv",
            tuple(f"encoder.vision.layers.{layer}.attn.{part}" for part in QKV),
            rows,
            _join,
            _split,
        )
        for layer in range(shape.vision_layers)
    ]


def _join(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts))


def _split(packed: Tensor) -> Sequence[Tensor]:
    return packed.chunk(len(QKV))


def adapters_to_peft(state: StateDict, *, shape: Qwen2_5VLShape) -> StateDict:
    """From torchtune's names to those of ``adapter_model.safetensors``.

    Args:
        state: adapter tensors by state-dict key, ``lora_a`` [rank, in] and ``lora_b`` [out, rank].
        shape: sizes of the model.

    Raises:
        ModelError: if a tensor is not an adapter of a model of this shape.
    """
    packed, rest = pack_adapters(state, packed_layers(shape))
    return {**to_peft(rest, module_names(shape), _unchanged), **packed}


def adapters_from_peft(state: StateDict, *, shape: Qwen2_5VLShape) -> StateDict:
    """From the names of ``adapter_model.safetensors`` to torchtune's; the inverse of :func:`adapters_to_peft`.

    Names of transformers before 4.52 (``model.layers``, ``visual.blocks``) are read too.

    Args:
        state: tensors as PEFT saves them.
        shape: sizes of the model.

    Raises:
        ModelError: if a tensor is not an adapter of a model of this shape.
    """
    unpacked, rest = unpack_adapters(state, packed_layers(shape), disk_name)
    return {**from_peft(rest, module_names(shape), disk_name, _unchanged), **unpacked}


def _unchanged(key: str, tensor: Tensor) -> Tensor:
    return tensor
