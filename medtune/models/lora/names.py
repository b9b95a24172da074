"""Conversion of adapter tensors between torchtune's names and PEFT's, for any family that knows both."""

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from medtune.errors import ModelError
from medtune.models.common.family import StateDict

PREFIX = "base_model.model."
SIDES = (("lora_a", "lora_A"), ("lora_b", "lora_B"))
Reorder = Callable[[str, Tensor], Tensor]
"""``(torchtune's key, tensor) -> tensor``: puts the rows into the order of the target layout."""


def to_peft(state: StateDict, modules: Mapping[str, str], reorder: Reorder) -> StateDict:
    """From torchtune's names to those of ``adapter_model.safetensors``.

    Args:
        state: adapter tensors by state-dict key, ``lora_a`` [rank, in] and ``lora_b`` [out, rank].
        modules: torchtune's prefix -> name in transformers, of every linear layer that can carry an adapter.
        reorder: puts a tensor's rows into the published order.

    Raises:
        ModelError: if a tensor is not an adapter of one of ``modules``.
    """
    names = {ours: f"{PREFIX}{theirs}" for ours, theirs in _pairs(modules)}
    refuse(state.keys() - names.keys())
    return {names[key]: reorder(key, tensor) for key, tensor in state.items()}


def from_peft(
    state: StateDict, modules: Mapping[str, str], disk_name: Callable[[str], str], reorder: Reorder
) -> StateDict:
    """The inverse of :func:`to_peft`.

    Args:
        state: tensors as PEFT saves them.
        modules: as for :func:`to_peft`.
        disk_name: converts the names of any version of transformers to one form.
        reorder: puts a tensor's rows into torchtune's order.

    Raises:
        ModelError: as for :func:`to_peft`.
    """
    keys = {disk_name(theirs): ours for ours, theirs in _pairs(modules)}
    plain_names = {name: disk_name(name.removeprefix(PREFIX)) for name in state}
    refuse({name for name, plain in plain_names.items() if plain not in keys})
    return {keys[plain]: reorder(keys[plain], state[name]) for name, plain in plain_names.items()}


def refuse(unknown: set[str]) -> None:
    """Raise an error if tensors belong to no linear layer of the model.

    Raises:
        ModelError: if there are such tensors; the message names the first.
    """
    if unknown:
        raise ModelError(
            f"{len(unknown)} tensors are no adapters of this model (first: {min(unknown)}); check the model's size, "
            "layout and decoder"
        )


def _pairs(modules: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for ours, theirs in modules.items():
        for a, b in SIDES:
            yield f"{ours}.{a}.weight", f"{theirs}.{b}.weight"
