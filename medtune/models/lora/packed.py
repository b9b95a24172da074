"""Adapters of layers that a published layout packs into one: q, k and v of InternViT, InternLM2 and Qwen2.5-VL's tower.

The adapters of m packed layers, ``A_j`` [r, in] and ``B_j`` [out_j, r], are one adapter of the packed layer: the A one
below another, [m r, in], and the B as blocks on a diagonal, [sum of out_j, m r]. PEFT scales it by alpha / rank, so its
alpha is m alpha. In the other direction an adapter whose B has that form is taken apart; any other one becomes an
adapter of every layer, with the same A and its own rows of B.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor
from torch.nn.functional import pad

from medtune.errors import ModelError
from medtune.models.common.family import StateDict
from medtune.models.lora.names import PREFIX

_A, _B = ".lora_a.weight", ".lora_b.weight"


@dataclass(frozen=True)
class PackedLayer:
    """A linear layer of the published model that holds several of ours.

    Attributes:
        name: in a live published model.
        parts: state-dict prefixes of our layers, in order.
        rows: number of outputs of each.
        join: tensors of the parts with one row per output [rows, n] -> that of the packed layer, as for weights.
        split: the inverse of ``join``.
    """

    name: str
    parts: tuple[str, ...]
    rows: tuple[int, ...]
    join: Callable[[Sequence[Tensor]], Tensor]
    split: Callable[[Tensor], Sequence[Tensor]]


def pack_adapters(state: StateDict, layers: Iterable[PackedLayer]) -> tuple[StateDict, StateDict]:
    """Join adapters of packed layers.

    Args:
        state: adapter tensors by state-dict key.
        layers: the packed layers of the model.

    Returns:
        The joined adapters under PEFT's names, and the tensors of ``state`` that belong to no packed layer.

    Raises:
        ModelError: if the adapters of one packed layer have different ranks, or one has no A or no B.
    """
    rest, packed = dict(state), StateDict()
    for layer in layers:
        pairs = [(rest.pop(part + _A, None), rest.pop(part + _B, None)) for part in layer.parts]
        given = [(a, b) for a, b in pairs if a is not None and b is not None]
        if any((a is None) != (b is None) for a, b in pairs):
            raise ModelError(f"an adapter of {layer.name} lacks one of its two tensors; copy the adapter again")
        if not given:
            continue
        rank = given[0][0].shape[0]
        if any(a.shape[0] != rank for a, _ in given):
            raise ModelError(f"the adapters of {layer.name} have different ranks, and one tensor holds them all")
        blocks, place = [], 0
        for (_, b), rows in zip(pairs, layer.rows, strict=True):
            if b is None:
                blocks.append(given[0][1].new_zeros(rows, len(given) * rank))
            else:
                blocks.append(pad(b, (place * rank, (len(given) - 1 - place) * rank)))
                place += 1
        packed[f"{PREFIX}{layer.name}.lora_A.weight"] = torch.cat([a for a, _ in given])
        packed[f"{PREFIX}{layer.name}.lora_B.weight"] = layer.join(blocks)
    return packed, rest


def unpack_adapters(
    state: StateDict, layers: Iterable[PackedLayer], disk_name: Callable[[str], str]
) -> tuple[StateDict, StateDict]:
    """The inverse of :func:`pack_adapters`.

    Args:
        state: tensors as PEFT saves them.
        layers: the packed layers of the model.
        disk_name: converts the names of any version of transformers to one form.

    Returns:
        The adapters of our layers by state-dict key, and the tensors of ``state`` that belong to no packed layer.

    Raises:
        ModelError: if an adapter has another number of outputs than its layer, or no A or no B.
    """
    names = {disk_name(name.removeprefix(PREFIX)): name for name in state}
    rest, ours = dict(state), StateDict()
    for layer in layers:
        sides = [names.get(disk_name(f"{layer.name}.lora_{side}.weight")) for side in "AB"]
        if sides == [None, None]:
            continue
        if None in sides:
            raise ModelError(f"an adapter of {layer.name} lacks one of its two tensors; copy the adapter again")
        a, b = (rest.pop(name) for name in sides if name is not None)
        if len(b) != sum(layer.rows):
            raise ModelError(f"the adapter of {layer.name} has {len(b)} outputs, the layer {sum(layer.rows)}")
        for part, (own_a, own_b) in _taken_apart(a, layer.split(b), layer.parts).items():
            ours[part + _A], ours[part + _B] = own_a.contiguous(), own_b.contiguous()
    return ours, rest


def _taken_apart(a: Tensor, rows: Sequence[Tensor], parts: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
    rank, whole = a.shape[0], tuple(range(len(parts)))
    trained = any(bool(b.any()) for b in rows)
    for count in range(len(parts), 0, -1) if trained else (len(parts),):
        for chosen in combinations(whole, count):
            if rank % count == 0 and _is_diagonal(rows, chosen, rank // count):
                size = rank // count
                columns = {number: slice(i * size, (i + 1) * size) for i, number in enumerate(chosen)}
                return {parts[n]: (a[place], rows[n][:, place]) for n, place in columns.items()}
    return {part: (a, b) for part, b in zip(parts, rows, strict=True)}


def _is_diagonal(rows: Sequence[Tensor], chosen: Sequence[int], size: int) -> bool:
    """Whether the i-th chosen part uses the i-th ``size`` columns only, and the other parts none."""
    for number, b in enumerate(rows):
        others = b.clone()
        if number in chosen:
            place = chosen.index(number)
            others[:, place * size : (place + 1) * size] = 0
        if bool(others.any()):
            return False
    return True
