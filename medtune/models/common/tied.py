"""Language models whose output layer is their embedding table (``tie_word_embeddings``)."""

from collections.abc import Collection

import torch
from torchtune.modules import TiedLinear, TransformerDecoder

from medtune.errors import ModelError
from medtune.models.common.family import StateDict
from medtune.models.lora.options import AdapterOptions


def tied(decoder: TransformerDecoder, yes: bool, lora: AdapterOptions | None = None) -> TransformerDecoder:
    """Replace the output layer of a decoder by its embedding table.

    Args:
        decoder: as one of torchtune's builders made it, with an output layer of its own.
        yes: whether to do it; otherwise the decoder stays as it is.
        lora: its adapters.

    Raises:
        ModelError: if the output layer is to carry an adapter, which would adapt the embeddings too.
    """
    if not yes:
        return decoder
    if lora is not None and lora.output:
        raise ModelError(
            "the model's output layer is its embedding table (tie_word_embeddings), which cannot carry an adapter; set "
            "apply_lora_to_output=false"
        )
    del decoder.output  # a module cannot be replaced by something else
    decoder.output = TiedLinear(decoder.tok_embeddings)
    return decoder


def without_copy(state: StateDict, heads: Collection[str], words: Collection[str]) -> StateDict:
    """Published tensors without the output layer, which some programs write as a second copy of the embedding table.

    Args:
        state: tensors by their name on disk.
        heads: possible names of the output layer.
        words: possible names of the embedding table.

    Raises:
        ModelError: if the output layer has values of its own.
    """
    head = next((name for name in heads if name in state), None)
    if head is None:
        return state
    table = next((state[name] for name in words if name in state), None)
    if table is not None and not (table.is_meta or state[head].is_meta):
        if table.shape != state[head].shape or not torch.equal(table, state[head]):
            raise ModelError(
                f"{head} is not the embedding table, and the model's embeddings are tied; check the builder"
            )
    return {name: tensor for name, tensor in state.items() if name != head}
