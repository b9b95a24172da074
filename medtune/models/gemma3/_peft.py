"""Converter of Gemma 3 adapters between torchtune's names and PEFT's."""

from torch import Tensor

from medtune.models.common.decoder_names import CLIP_MAPS, DECODER_MAPS
from medtune.models.common.family import StateDict
from medtune.models.gemma3._convert_weights import disk_name
from medtune.models.gemma3._shape import Gemma3Shape
from medtune.models.lora.names import from_peft, to_peft


def module_names(shape: Gemma3Shape) -> dict[str, str]:
    """Every linear layer that can carry an adapter.

    Returns:
        torchtune's state-dict prefix -> its name in a transformers 5 model.
    """
    return {
        f"{ours}.{layer}.{a}": f"{theirs}.{layer}.{b}"
        for ours, theirs, depth, maps in (
            ("encoder.vision.layers", "model.vision_tower.encoder.layers", shape.vision_layers, CLIP_MAPS),
            ("decoder.layers", "model.language_model.layers", shape.layers, DECODER_MAPS),
        )
        for layer in range(depth)
        for a, b in maps.items()
    }


def adapters_to_peft(state: StateDict, *, shape: Gemma3Shape) -> StateDict:
    """From torchtune's names to those of ``adapter_model.safetensors``.

    Args:
        state: adapter tensors by state-dict key, ``lora_a`` [rank, in] and ``lora_b`` [out, rank].
        shape: sizes of the model.

    Raises:
        ModelError: if a tensor is not an adapter of a model of this shape.
    """
    return to_peft(state, module_names(shape), _unchanged)


def adapters_from_peft(state: StateDict, *, shape: Gemma3Shape) -> StateDict:
    """From the names of ``adapter_model.safetensors`` to torchtune's; the inverse of :func:`adapters_to_peft`.

    Names of older versions of transformers (``language_model.model.layers``, ``vision_tower.vision_model``) are read
    too.

    Args:
        state: tensors as PEFT saves them.
        shape: sizes of the model.

    Raises:
        ModelError: if a tensor is not an adapter of a model of this shape.
    """
    return from_peft(state, module_names(shape), disk_name, _unchanged)


def _unchanged(key: str, tensor: Tensor) -> Tensor:
    return tensor
