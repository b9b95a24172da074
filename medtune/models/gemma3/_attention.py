"""Attention and rotary positions of Gemma 3's decoder: queries and keys are normed first, then rotated."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchtune.models.qwen2._positional_embeddings import Qwen2RotaryPositionalEmbeddings
from torchtune.modules import MultiHeadAttention

from medtune.models.common.branch_attention import placed


class ScaledRotary(Qwen2RotaryPositionalEmbeddings):
    """Rotary positions on the two halves of a head, divided by a factor (linear scaling, Chen et al. 2023).

    Args:
        dim: width of a head.
        max_seq_len: number of positions that the table holds.
        base: base of the angles.
        factor: positions are divided by it.
    """

    def __init__(self, dim: int, max_seq_len: int, base: float, factor: float = 1.0) -> None:
        self.factor = factor
        super().__init__(dim, max_seq_len, base)

    def rope_init(self) -> None:
        """Compute the table; called again after a model was built on the meta device."""
        exponent = torch.arange(0, self.dim, 2).float() / self.dim
        self.register_buffer("theta", 1.0 / self.base**exponent / self.factor, persistent=False)
        self.build_rope_cache(self.max_seq_len)


class NormFirstAttention(MultiHeadAttention):
    """torchtune's attention with the norms of queries and keys before the rotation, and a scale of its own.

    Args:
        scale: factor of the attention scores.
        arguments: of torchtune's layer, with ``q_norm`` and ``k_norm``.
    """

    norm_first = True

    def __init__(self, *, scale: float, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.scale = scale
        self._attention_call = self._scaled

    def forward(
        self, x: Tensor, y: Tensor | None = None, *, mask: Any = None, input_pos: Tensor | None = None
    ) -> Tensor:
        """Self-attention.

        Args:
            x: [b, s, d].
            y: not used; torchtune's layers give the same tensor.
            mask: [b, s, keys], True = may attend, or one of branches; None is causal.
            input_pos: positions [b, s]; None counts from 0.

        Returns:
            [b, s, d].
        """
        b, s, _ = x.shape
        query, key, value = (
            layer(x).view(b, s, -1, self.head_dim) for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        query = placed(self, query, self.q_norm, input_pos)
        key = placed(self, key, self.k_norm, input_pos)
        value = value.transpose(1, 2)
        if self.kv_cache is not None and self.cache_enabled:
            key, value = self.kv_cache.update(key, value)
        share = self.num_heads // self.num_kv_heads
        if share > 1:
            key, value = (values.repeat_interleave(share, dim=1) for values in (key, value))
        out = self._attention_call(
            query,
            key,
            value,
            mask=mask,
            dropout_p=self.attn_dropout if self.training else 0.0,
            is_causal=self.kv_cache is None and mask is None,
        )
        return self.output_proj(out.transpose(1, 2).flatten(2))

    def _scaled(
        self, q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, dropout_p: float, is_causal: bool
    ) -> Tensor:
        """Attention of [b, heads, s, d], as torchtune's call, with this layer's scale."""
        heads = None if mask is None else mask[:, None]
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=heads, dropout_p=dropout_p, is_causal=is_causal, scale=self.scale
        )
