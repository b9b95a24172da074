"""Converter of Llama-3.2-Vision adapters between torchtune's names and PEFT's."""

from functools import partial

from torch import Tensor

from medtune.models.common.family import StateDict
from medtune.models.llama3_2_vision._convert_weights import disk_name
from medtune.models.llama3_2_vision._shape import DeepFusionShape
from medtune.models.lora.names import from_peft, to_peft

_ATTENTION = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "output_proj": "o_proj"}
_GATED_MLP = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_VISION_MLP = {"w1": "fc1", "w2": "fc2"}


def module_names(shape: DeepFusionShape) -> dict[str, str]:
    """Every linear layer that can carry an adapter: torchtune's state-dict prefix -> its name in transformers 5.

    The published numbering counts each fusion layer as a separate layer, before the layer that it belongs to.
    """
    names = {"decoder.output": "lm_head", "encoder.projection.output": "model.multi_modal_projector"}
    for ours, theirs, depth in (
        ("encoder.clip", "model.vision_model.transformer", shape.vision_layers),
        ("encoder.projection", "model.vision_model.global_transformer", shape.projection_layers),
    ):
        for layer in range(depth):
            names |= _layer(f"{ours}.layers.{layer}", f"{theirs}.layers.{layer}", "self_attn", _VISION_MLP)
    fused = [layer for layer in range(shape.layers) if (layer + 1) % shape.fusion_interval == 0]
    for layer in range(shape.layers):
        place = layer + sum(other <= layer for other in fused)
        ours, theirs = f"decoder.layers.{layer}", "model.language_model.layers."
        names |= _layer(ours, f"{theirs}{place}", "self_attn", _GATED_MLP)
        if layer in fused:
            names |= _layer(f"{ours}.fusion_layer", f"{theirs}{place - 1}", "cross_attn", _GATED_MLP)
    return names


def _layer(ours: str, theirs: str, attention: str, mlp: dict[str, str]) -> dict[str, str]:
    names = {f"{ours}.attn.{a}": f"{theirs}.{attention}.{b}" for a, b in _ATTENTION.items()}
    return names | {f"{ours}.mlp.{a}": f"{theirs}.mlp.{b}" for a, b in mlp.items()}


def adapters_to_peft(state: StateDict, *, shape: DeepFusionShape) -> StateDict:
    """From torchtune's names to those of ``adapter_model.safetensors``.

    Args:
        state: adapter tensors by state-dict key, ``lora_a`` [rank, in] and ``lora_b`` [out, rank].
        shape: sizes of the model.

    Raises:
        ModelError: if a tensor is not an adapter of a model of this shape.
    """
    return to_peft(state, module_names(shape), partial(_reorder, shape=shape, published=True))


def adapters_from_peft(state: StateDict, *, shape: DeepFusionShape) -> StateDict:
    """From the names of ``adapter_model.safetensors`` to torchtune's; the inverse of :func:`adapters_to_peft`.

    Names of transformers before 4.52 (``language_model.model.layers``) are read too.

    Args:
        state: tensors as PEFT saves them.
        shape: sizes of the model.

    Raises:
        ModelError: if a tensor is not an adapter of a model of this shape.
    """
    return from_peft(state, module_names(shape), disk_name, partial(_reorder, shape=shape, published=False))


def _reorder(key: str, tensor: Tensor, shape: DeepFusionShape, *, published: bool) -> Tensor:
    """Reorder rotary rows: torchtune interleaves a head's rows, the published layout puts one half after the other.

    Only rows of the output are affected, so only ``lora_b``; cross-attention and the vision transformer have no rotary
    positions.
    """
    rotary = {"attn.q_proj.lora_b.weight": shape.heads, "attn.k_proj.lora_b.weight": shape.kv_heads}
    place = key.removeprefix("decoder.layers.").partition(".")[2]
    if not key.startswith("decoder.layers.") or place not in rotary:
        return tensor
    rows, rank = tensor.shape
    half = rows // rotary[place] // 2
    sizes = (rotary[place], half, 2, rank) if published else (rotary[place], 2, half, rank)
    return tensor.reshape(sizes).transpose(1, 2).reshape(rows, rank)
