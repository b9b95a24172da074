"""How much memory a training step takes on each GPU, worked out on the meta device.

Weights, gradients and optimizer state are counted. Activations are counted too, not guessed: a forward pass runs on
tensors without storage, and every tensor that autograd would keep for the backward pass is added up once. Only the
logits, the gathered layers and the allowance below are formulas.

====================  ==================================================================================================
weights               bytes of every parameter / GPUs (NF4 as stored, 4.1 bits)
gradients             bytes of every trained parameter / GPUs
optimizer             trained elements x the bytes per element that one step of this optimizer was seen to keep / GPUs
gathered layers       several GPUs: the parameters outside any layer, and twice the largest layer, whole on each GPU
activations           kept tensors of one micro-batch. With checkpointing: those outside layers, the input of each
                      layer, and the inside of the largest one
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
    """Bytes of a tensor's values; those of NF4 as it is stored."""
    if hasattr(tensor, "quantized_data"):
        inner = (getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])  # type: ignore[attr-defined]
        return sum(value.numel() * value.element_size() for value in inner)
    return tensor.numel() * tensor.element_size()


def optimizer_bytes_per_element(component: Component, dtype: torch.dtype) -> float:
    """State that an optimizer keeps per trained element.

    One of torch's takes a step on a small tensor, and what it keeps is counted. Others may need a GPU or compile for
    minutes to do so: they are taken to keep two moments, of one byte where the name says 8 bit and of four elsewhere.
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
        total: All of them.
        inside: Kept inside each transformer layer.
        inputs: Size of each layer's input, and of the image features that the decoder's layers share.
    """

    total: int = 0
    inside: list[int] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)

    def checkpointed(self) -> int:
        """Bytes at the peak of the backward pass when layers are computed again."""
        return self.total - sum(self.inside) + sum(self.inputs) + max(self.inside, default=0)


class _KeptByAttention(torch.autograd.Function):
    """What a fused attention kernel keeps: queries, keys, values, output, row statistics and a mask's values."""

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
    """Counts what autograd keeps while the block runs."""
    found, seen = Activations(), {p.untyped_storage()._cdata for p in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            found.total += storage.nbytes()
        return tensor

    def enter(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        found.inputs.append(tensor_bytes(arguments[0]))
        found.inside.append(-found.total)

    def leave(*_: Any) -> None:
        found.inside[-1] += found.total

    handles = []
    for module in model.modules():
        if isinstance(module, LAYERS):
            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    plain = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = _fused_attention  # type: ignore[assignment]
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            yield found
    finally:
        F.scaled_dot_product_attention = plain
        for handle in handles:
            handle.remove()


def count_activations(model: Any, shape: BatchShape, trained: set[str], embeds_gradient: bool) -> Activations:
    """Run the model on the meta device and count what autograd keeps.

    Args:
        model: A :class:`medtune.models.common.interface.Trainable` on the meta device.
        shape: The micro-batch.
        trained: Names of the trained parameters.
        embeds_gradient: Whether a gradient must reach the embedded tokens although no embedding is trained (a proxy).
    """
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(name in trained)
    with _counting(model) as found:
        features = model.meta_forward(shape, embeds_gradient)
        if features is not None:
            found.inputs.append(tensor_bytes(features))
    return found


def gathered_bytes(model: nn.Module) -> int:
    """What FSDP holds whole on each GPU: everything outside a layer, and two copies of the largest layer."""
    layers = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    units = [sum(tensor_bytes(p) for p in layer.parameters()) for stack in layers for layer in stack]
    inside = {id(p) for stack in layers for p in stack.parameters()}
    root = sum(tensor_bytes(p) for p in model.parameters() if id(p) not in inside)
    return root + 2 * max(units, default=0)


def logits_bytes(tokens: int, chunk: int, vocabulary: int, dtype: torch.dtype) -> int:
    """Logits of one chunk (0: all tokens), their fp32 copies and gradients."""
    rows = min(chunk, tokens) if chunk else tokens
    return rows * vocabulary * (12 if dtype == torch.float32 else 2 * dtype.itemsize + 12)
