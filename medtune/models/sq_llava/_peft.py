"""Converter of SQ-LLaVA adapters between torchtune's names and PEFT's, for the authors' modules."""

from functools import partial

from medtune.models.common.family import StateDict
from medtune.models.llava import _peft as llava
from medtune.models.llava._convert_weights import disk_name
from medtune.models.lora.names import from_peft, to_peft
from medtune.models.sq_llava._shape import SqLlavaShape

_AUTHORS_MODULES = (
    ("model.vision_tower.", "model.vision_tower.vision_tower.vision_model."),
    ("model.language_model.", "model."),
)


def module_names(shape: SqLlavaShape) -> dict[str, str]:
    """Every linear layer that can carry an adapter: torchtune's state-dict prefix -> its name in the authors' model."""
    names = {}
    for ours, theirs in llava.module_names(shape).items():
        if not ours.startswith("encoder.projection."):
            found = ((old, new) for old, new in _AUTHORS_MODULES if theirs.startswith(old))
            old, new = next(found, ("", ""))
            names[ours] = new + theirs.removeprefix(old)
    return names


def adapters_to_peft(state: StateDict, *, shape: SqLlavaShape) -> StateDict:
    """From torchtune's names to those of ``adapter_model.safetensors``.

    Args:
        state: adapter tensors by state-dict key, ``lora_a`` [rank, in] and ``lora_b`` [out, rank].
        shape: sizes of the model.

    Raises:
        ModelError: if a tensor is not an adapter of a model of this shape.
    """
    return to_peft(state, module_names(shape), partial(llava.reorder, shape=shape, published=True))


def adapters_from_peft(state: StateDict, *, shape: SqLlavaShape) -> StateDict:
    """The inverse of :func:`adapters_to_peft`; adapters that were trained on LLaVA-1.5 are read too.

    Args:
        state: tensors as PEFT saves them.
        shape: sizes of the model.

    Raises:
        ModelError: if a tensor is not an adapter of a model of this shape.
    """
    reorder = partial(llava.reorder, shape=shape, published=False)
    return from_peft(state, module_names(shape), disk_name, reorder)
