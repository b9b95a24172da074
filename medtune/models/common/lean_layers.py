"""torchtune's layers with the same parameters and results, in fewer kernels and with fewer kept tensors.

torchtune's own code runs while ``torch.compile`` traces a layer, because a compiler fuses it better; adapters and
activations also run it without gradients, so that answers are rounded as ever and as in an adapter bank.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torchtune.models.clip._text_encoder import QuickGELU
from torchtune.models.llama3_1._position_embeddings import Llama3ScaledRoPE
from torchtune.modules import FeedForward, RotaryPositionalEmbeddings
from torchtune.modules.peft import LoRALinear

from medtune.modules.adapted_linear import adapted_linear, gated
from medtune.modules.rotary import rotate_pairs

_ACTIVATIONS = (nn.SiLU, nn.GELU, QuickGELU)  # each makes a new tensor of each element


def _runs_plain() -> bool:
    return not torch.is_grad_enabled() or torch.compiler.is_compiling()


class AdaptedLinear(LoRALinear):
    """A layer of :mod:`medtune.modules.adapted_linear`. If its base is trained too, torchtune's own code runs."""

    def forward(self, x: Tensor, activation: nn.Module | None = None) -> Tensor:
        """Inputs [..., in] -> [..., out]; ``activation`` is applied to ``x`` first."""
        dropping = self.training and isinstance(self.dropout, nn.Dropout)
        if activation is not None and (dropping or self._is_plain(x)):
            x, activation = activation(x), None
        if self._is_plain(x):
            return super().forward(x)
        return adapted_linear(
            x,
            self.weight,
            self.bias,
            self.lora_a.weight,
            self.lora_b.weight,
            self.alpha / self.rank,
            dropped=self.dropout(x) if dropping else None,
            activation=activation,
        )

    def _is_plain(self, x: Tensor) -> bool:
        trained = self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)
        cast = not x.is_meta and torch.is_autocast_enabled(x.device.type)
        return _runs_plain() or self.disabled or trained or cast


class LeanFeedForward(FeedForward):
    """A feed-forward network that keeps the inputs of its activation, and not what it makes of them."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., d]."""
        if _runs_plain() or not isinstance(self.activation, _ACTIVATIONS):
            return super().forward(x)
        gate = self.w1(x)
        if self.w3 is not None:
            return self.w2(gated(self.activation, gate, self.w3(x)))
        if gate.requires_grad and isinstance(self.w2, AdaptedLinear):
            return self.w2(gate, activation=self.activation)
        return self.w2(self.activation(gate))


class PairsRotary(RotaryPositionalEmbeddings):
    """Rotary positions on neighbouring channels, in fp32."""

    def forward(self, x: Tensor, *, input_pos: Tensor | None = None) -> Tensor:
        """Rotate heads [b, s, heads, d]; ``input_pos`` [b, s], None counts from 0."""
        if torch.compiler.is_compiling():
            return super().forward(x, input_pos=input_pos)
        return _rotate_by(self.cache, x, input_pos)


class ScaledPairsRotary(Llama3ScaledRoPE):
    """Rotary positions on neighbouring channels, in fp32, with Llama 3.1's angles."""

    def forward(self, x: Tensor, *, input_pos: Tensor | None = None) -> Tensor:
        """Rotate heads [b, s, heads, d]; ``input_pos`` [b, s], None counts from 0."""
        if torch.compiler.is_compiling() or not self.is_cache_built:
            return super().forward(x, input_pos=input_pos)
        return _rotate_by(self.cache, x, input_pos)


def _rotate_by(cache: Tensor, x: Tensor, input_pos: Tensor | None) -> Tensor:
    return rotate_pairs(x.float(), _angles(cache, x, input_pos).unsqueeze(2).float()).type_as(x)


def _angles(cache: Tensor, x: Tensor, input_pos: Tensor | None) -> Tensor:
    """The rows of a table that belong to the tokens of heads, [b or 1, s, ...]."""
    rows = cache[: x.shape[1]] if input_pos is None else cache[input_pos]
    return rows.view(-1, x.shape[1], *cache.shape[1:])


_LEAN: dict[type, Any] = {
    LoRALinear: AdaptedLinear,
    FeedForward: LeanFeedForward,
    RotaryPositionalEmbeddings: PairsRotary,
    Llama3ScaledRoPE: ScaledPairsRotary,
}


def use_lean_layers(model: nn.Module) -> None:
    """Let the layers of a model that torchtune built run the code of this module; their tensors stay as they are."""
    for module in model.modules():
        module.__class__ = _LEAN.get(type(module), type(module))
