"""The memory of a training step on each GPU, calculated on the meta device.

Weights, gradients and optimizer state are counted. Activations are counted as well: a forward pass runs on tensors
without storage, and the sizes of all tensors that autograd would keep for the backward pass are added, each tensor
once. Only the logits, the gathered layers and the allowance below are formulas.

====================  ==================================================================================================
weights               bytes of every parameter / GPUs (NF4 as stored, 4.1 bits)
tables                bytes of what is no parameter, above all tables of rotary positions; whole on each GPU
gradients             bytes of every trained parameter / GPUs
optimizer             trained elements x the bytes per element that this optimizer keeps after one step / GPUs
gathered layers       several GPUs: the parameters outside any layer, and twice the largest layer, whole on each GPU
activations           kept tensors of one micro-batch. With checkpointing: those outside layers, the input of each
                      layer, and those inside the largest layer
logits                min(chunk, tokens) x vocabulary x (2 model type + 3 fp32) values: logits, their fp32 copy,
                      log-probabilities, and both gradients
allowance             1 GB for the CUDA context and libraries, and 5% of the rest for fragmentation
====================  ==================================================================================================
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchtune.modules import TransformerCrossAttentionLayer, TransformerSelfAttentionLayer

from medtune.config import Component, instantiate
from medtune.models.common.interface import BatchShape

CONTEXT_BYTES = 1e9
FRAGMENTATION = 0.05
LAYERS = (TransformerSelfAttentionLayer, TransformerCrossAttentionLayer)
PROBE = 4096
EIGHT_BIT_BYTES = 2 * (1 + 4 / 256)  # two moments of one byte, with an fp32 scale per block of 256


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor's values; for NF4, the bytes as stored."""
    if hasattr(tensor, "quantized_data"):
        inner = (getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])  # type: ignore[attr-defined]
        return sum(value.numel() * value.element_size() for value in inner)
    return tensor.numel() * tensor.element_size()


def optimizer_bytes_per_element(component: Component, dtype: torch.dtype) -> float:
    """Bytes of state that an optimizer keeps per trained element.

    An optimizer of torch takes one step on a small tensor, and its state is counted. Other optimizers may need a GPU,
    or minutes of compilation, for a step. They are assumed to keep two moments: of one byte each if the name contains
    8bit, of four bytes otherwise.
    """
    if not component.path.startswith("torch.optim."):
        return EIGHT_BIT_BYTES if "8bit" in component.path.lower() else 8.0
    probe = nn.Parameter(torch.zeros(PROBE, dtype=dtype))
    optimizer = instantiate(component, [probe], **({} if "lr" in component else {"lr": 1e-5}))
    probe.grad = torch.zeros_like(probe)
    optimizer.step()
    kept = (value for value in optimizer.state[probe].values() if isinstance(value, Tensor))
    return sum(tensor_bytes(value) for value in kept if value.numel() == PROBE) / PROBE


@dataclass
class Activations:
    """Bytes that autograd keeps in one forward pass.

    Attributes:
        total: Bytes of all kept tensors.
        inside: Bytes kept inside each transformer layer.
        inputs: Bytes of each layer's input, and of the image features that the decoder's layers share.
    """

    total: int = 0
    inside: list[int] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)

    def checkpointed(self) -> int:
        """Bytes at the peak of the backward pass if layers are recomputed."""
        return self.total - sum(self.inside) + sum(self.inputs) + max(self.inside, default=0)


class _KeptByAttention(torch.autograd.Function):
    """Keeps what a fused attention kernel keeps: queries, keys, values, output, row statistics, values of a mask."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        out = torch.empty_like(q)
        rows = q.new_empty(q.shape[:-1], dtype=torch.float32)
        bias = () if mask is None else (q.new_empty(mask.shape),)
        ctx.save_for_backward(q, k, v, out, rows, *bias)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError("the meta pass only goes forward")


def _fused_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **_: Any) -> Tensor:
    return _KeptByAttention.apply(q, k, v, attn_mask)


@contextlib.contextmanager
def _counting(model: nn.Module) -> Iterator[Activations]:
    """Count the bytes that autograd keeps while the block runs."""
    count, seen = Activations(), {p.untyped_storage()._cdata for p in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            count.total += storage.nbytes()
        return tensor

    def enter(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        count.inputs.append(tensor_bytes(arguments[0]))
        count.inside.append(-count.total)

    def leave(*_: Any) -> None:
        count.inside[-1] += count.total

    handles = []
    for module in model.modules():
        if isinstance(module, LAYERS):
            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    plain = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = _fused_attention  # type: ignore[assignment]
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            yield count
    finally:
        F.scaled_dot_product_attention = plain
        for handle in handles:
            handle.remove()


def count_activations(model: Any, shape: BatchShape, trained: set[str], embeds_gradient: bool) -> Activations:
    """Run the model on the meta device and count the bytes that autograd keeps.

    Args:
        model: A :class:`medtune.models.common.interface.Trainable` on the meta device.
        shape: The micro-batch.
        trained: Names of the trained parameters.
        embeds_gradient: Whether a gradient must reach the embedded tokens although no embedding is trained (for a
            proxy instruction).
    """
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(name in trained)
    with _counting(model) as count:
        features = model.meta_forward(shape, embeds_gradient)
        if features is not None:
            count.inputs.append(tensor_bytes(features))
    return count


def gathered_bytes(model: nn.Module) -> int:
    """Bytes that FSDP holds unsharded on each GPU: all parameters outside a layer, and twice the largest layer."""
    layers = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    units = [sum(tensor_bytes(p) for p in layer.parameters()) for stack in layers for layer in stack]
    inside = {id(p) for stack in layers for p in stack.parameters()}
    root = sum(tensor_bytes(p) for p in model.parameters() if id(p) not in inside)
    return root + 2 * max(units, default=0)


def table_bytes(model: nn.Module) -> int:
    """Bytes of the tensors that are no parameters: tables of rotary positions, and weights that are only kept."""
    built = sum(tensor_bytes(buffer) for buffer in model.buffers())
    waiting: list[Any] = [module for module in model.modules() if getattr(module, "is_cache_built", True) is False]
    # Llama-3's tables cannot be computed on the meta device; their values are of 32 bits for every type of the model
    return built + sum(4 * table.max_seq_len * table.dim for table in waiting)


def logits_bytes(tokens: int, chunk: int, vocabulary: int, dtype: torch.dtype) -> int:
    """Logits of one chunk (0: all tokens), their fp32 copies and gradients."""
    rows = min(chunk, tokens) if chunk else tokens
    return rows * vocabulary * (12 if dtype == torch.float32 else 2 * dtype.itemsize + 12)
