"""Converter of LLaVA adapters between torchtune's names and PEFT's."""

from functools import partial

from torch import Tensor

from medtune.models.common.decoder_names import CLIP_MAPS, DECODER_MAPS
from medtune.models.common.family import StateDict
from medtune.models.llava._convert_weights import disk_name, original_name, rotary_heads, rotary_rows
from medtune.models.llava._shape import Layout, LlavaShape
from medtune.models.lora.names import from_peft, to_peft


def module_names(shape: LlavaShape, layout: Layout = "hf") -> dict[str, str]:
    """Every linear layer that can carry an adapter.

    Returns:
        torchtune's state-dict prefix -> its name in a transformers 5 model, or in the authors' modules.
    """
    names = {
        **({} if shape.tied else {"decoder.output": "lm_head"}),
        "encoder.projection.0": "model.multi_modal_projector.linear_1",
        "encoder.projection.2": "model.multi_modal_projector.linear_2",
    }
    for ours, theirs, depth, maps in (
        ("encoder.vision.layers", "model.vision_tower.encoder.layers", shape.vision_layers - 1, CLIP_MAPS),
        ("decoder.layers", "model.language_model.layers", shape.layers, DECODER_MAPS),
    ):
        for layer in range(depth):
            names |= {f"{ours}.{layer}.{a}": f"{theirs}.{layer}.{b}" for a, b in maps.items()}
    if layout == "hf":
        return names
    return {
        ours: original_name(disk_name(f"{theirs}.weight")).removesuffix(".weight") for ours, theirs in names.items()
    }


def adapters_to_peft(state: StateDict, *, shape: LlavaShape, layout: Layout = "hf") -> StateDict:
    """From torchtune's names to those of ``adapter_model.safetensors``.

    Args:
        state: adapter tensors by state-dict key, ``lora_a`` [rank, in] and ``lora_b`` [out, rank].
        shape: sizes of the model.
        layout: layout of the base weights that the adapter belongs to.

    Raises:
        ModelError: if a tensor is not an adapter of a model of this shape.
    """
    return to_peft(state, module_names(shape, layout), partial(reorder, shape=shape, published=True))


def adapters_from_peft(state: StateDict, *, shape: LlavaShape, layout: Layout = "hf") -> StateDict:
    """From the names of ``adapter_model.safetensors`` to torchtune's; the inverse of :func:`adapters_to_peft`.

    Names of older versions of transformers (``language_model.model.layers``, ``vision_tower.vision_model``) and names
    of adapters that were trained on the authors' modules are read too.

    Args:
        state: tensors as PEFT saves them.
        shape: sizes of the model.
        layout: layout of the base weights that the adapter belongs to.

    Raises:
        ModelError: if a tensor is not an adapter of a model of this shape.
    """
    return from_peft(state, module_names(shape, layout), disk_name, partial(reorder, shape=shape, published=False))


def reorder(key: str, tensor: Tensor, shape: LlavaShape, *, published: bool) -> Tensor:
    """Reorder rotary rows, which are rows of the output and so of ``lora_b``; the vision transformer has none."""
    heads = rotary_heads(key, shape) if ".lora_b." in key else None
    return tensor if heads is None else rotary_rows(tensor, heads, published=published)
