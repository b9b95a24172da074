"""For every family: replace embedded tokens by learned vectors, and train adapters only."""

from torch import Tensor, nn
from torchtune.modules.peft import get_adapter_params

from medtune.errors import ModelError

Replacement = tuple[Tensor, Tensor]


def override_embeddings(h: Tensor, where: Tensor, rows: Tensor) -> Tensor:
    """Overwrite embeddings.

    Args:
        h: embedded tokens [b, s, d].
        where: [b, s] bool, the places to overwrite.
        rows: [k, d], in row-major order of ``where``; gradients reach them.

    Raises:
        ModelError: if there is not one row per place.
    """
    places = int(where.sum())
    if places != rows.shape[0]:
        # masked_scatter would silently fill the first places with the first rows
        raise ModelError(f"{rows.shape[0]} replacement embeddings were given for {places} placeholder tokens")
    return h.masked_scatter(where.unsqueeze(-1), rows.to(h.dtype))


def adapter_ids(model: nn.Module) -> set[int]:
    """``id`` of every LoRA parameter; names change when activation checkpointing wraps a layer."""
    return {id(parameter) for parameter in get_adapter_params(model).values()}


def train_adapters_only(model: nn.Module) -> None:
    """Freeze everything except LoRA parameters."""
    adapters = adapter_ids(model)
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in adapters)
