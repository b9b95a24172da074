"""Attention of a prefix and its branches in two calls, and a last layer that computes only the states that are needed.

A row is a prefix followed by branches (:mod:`medtune.models.common.branches`). As one mask, the row costs an attention
over all pairs of its tokens, with a mask that fused kernels read value by value. In two calls the prefix, which is the
long part, is plainly causal, and only the branches' queries need a mask (prefix sharing: Wang et al., arXiv 2410.20305;
here without copies of the prefix's keys and values, since all branches lie in the prefix's row).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchtune.modules import MultiHeadAttention, TransformerDecoder, TransformerSelfAttentionLayer
from torchtune.modules.model_fusion import FusionLayer

from medtune.errors import ModelError


@dataclass(frozen=True)
class BranchMask:
    """The argument ``mask`` of ``hidden`` for rows whose prefixes end in the same column.

    Attributes:
        prefix: p, columns of the prefix, which is causal. Padding is on its right, where no prefix token sees it.
        rest: [b, s - p, s], what the columns after it may attend to, True = may.
        longest: positions that the longest row of prefix and one branch uses; the model's limit applies to it.
    """

    prefix: int
    rest: Tensor
    longest: int

    def rows(self, columns: Tensor) -> Tensor:
        """The rows [b, n, s] of the whole mask that belong to ``columns`` [b, n]."""
        rest, width = self.rest, self.rest.shape[2]
        causal = _causal(columns, width)
        if rest.shape[1] == 0:
            return causal
        masked = _take(rest, (columns - self.prefix).clamp(min=0))
        return torch.where((columns < self.prefix)[:, :, None], causal, masked)

    def whole(self) -> Tensor:
        """The mask as one tensor [b, s, s]."""
        b, after, width = self.rest.shape
        columns = torch.arange(width - after, device=self.rest.device).expand(b, -1)
        return torch.cat([_causal(columns, width), self.rest], dim=1)


Mask = Tensor | BranchMask | None
"""Self-attention mask: [b, s, keys] with True = may attend, one of branches, or None for causal attention."""


def used_positions(tokens: Tensor, mask: Mask) -> int:
    """The number of positions that a batch of tokens [b, s] uses, which the model limits."""
    return mask.longest if isinstance(mask, BranchMask) else tokens.shape[1]


def prepare_decoder(decoder: TransformerDecoder) -> None:
    """Let a decoder read :class:`BranchMask`, and its last layer compute chosen columns only. Weights are unchanged.

    Args:
        decoder: its layers are torchtune's, with or without fusion layers; changed in place.
    """
    for layer in decoder.layers:
        plain = layer.layer if isinstance(layer, FusionLayer) else layer
        if isinstance(plain.attn, MultiHeadAttention):
            plain.attn._attention_call = partial(_attend, plain.attn._attention_call)
    last = decoder.layers[-1]
    if isinstance(last, FusionLayer):
        if last.fusion_first:
            last.layer = LastLayer.of(last.layer)
    elif isinstance(last, TransformerSelfAttentionLayer):
        decoder.layers[-1] = LastLayer.of(last)


def run_layers(
    decoder: TransformerDecoder, h: Tensor, keep: Tensor | None, *, mask: Mask | Sequence[Mask] = None, **arguments: Any
) -> Tensor:
    """Run all layers and the final norm.

    Args:
        decoder: as :func:`prepare_decoder` leaves it.
        h: embedded tokens [b, s, d].
        keep: columns [b, n] whose final states are returned; None returns all.
        mask: the mask of all layers, or one for each layer.
        arguments: further arguments of each layer.

    Returns:
        [b, n, d], or [b, s, d].

    Raises:
        ModelError: if columns are chosen while key-value caches are in use.
    """
    if keep is not None and decoder.caches_are_enabled():
        raise ModelError("columns can be chosen in a forward pass without key-value caches only")
    *layers, last = decoder.layers
    *masks, last_mask = mask if isinstance(mask, Sequence) else [mask] * len(decoder.layers)
    for layer, own in zip(layers, masks, strict=True):
        h = layer(h, mask=own, **arguments)
    chosen = {} if keep is None else {"keep": keep}
    return decoder.norm(last(h, mask=last_mask, **arguments, **chosen))


class LastLayer(TransformerSelfAttentionLayer):
    """A decoder's last layer: its queries and its MLP can be restricted to chosen columns.

    No later layer reads the other columns, of which only keys and values are needed. In a row with an image nearly all
    columns are of that kind.
    """

    @classmethod
    def of(cls, layer: Any) -> "LastLayer":
        """The same layer, with the same modules."""
        return cls(
            layer.attn,
            layer.mlp,
            sa_norm=layer.sa_norm,
            mlp_norm=layer.mlp_norm,
            sa_scale=layer.sa_scale,
            mlp_scale=layer.mlp_scale,
        )

    def forward(
        self, x: Tensor, *, mask: Any = None, input_pos: Tensor | None = None, keep: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """As torchtune's layer, [b, s, d] -> [b, s, d]; with ``keep`` [b, n], only these columns: [b, n, d]."""
        if keep is None:
            return super().forward(x, mask=mask, input_pos=input_pos)
        h = self.sa_norm(x)
        chosen = _states(x, keep)
        chosen = self.sa_scale(_attend_from(self.attn, h, keep, mask, input_pos)) + chosen
        return chosen + self.mlp_scale(self.mlp(self.mlp_norm(chosen)))


def _attend_from(attention: Any, h: Tensor, keep: Tensor, mask: Mask, input_pos: Tensor | None) -> Tensor:
    """Torchtune's self-attention with the queries of the columns ``keep`` [b, n] only."""
    b, width = h.shape[:2]
    query = attention.q_proj(_states(h, keep)).view(b, keep.shape[1], -1, attention.head_dim)
    key = attention.k_proj(h).view(b, width, -1, attention.head_dim)
    value = attention.v_proj(h).view(b, width, -1, attention.head_dim)
    places = keep if input_pos is None else _take(input_pos, keep)
    query = placed(attention, query, attention.q_norm, places)
    key = placed(attention, key, attention.k_norm, input_pos)
    value = value.transpose(1, 2)
    share = attention.num_heads // attention.num_kv_heads
    if share > 1:
        key, value = (values.repeat_interleave(share, dim=1) for values in (key, value))
    out = attention._attention_call(
        query,
        key,
        value,
        mask=_rows_of(mask, keep, width),
        dropout_p=attention.attn_dropout if attention.training else 0.0,
        is_causal=False,
    )
    return attention.output_proj(out.transpose(1, 2).flatten(2))


def placed(attention: Any, heads: Tensor, norm: nn.Module | None, positions: Tensor | None) -> Tensor:
    """Rotate queries or keys by their positions, and apply the layer's norm to them, if it has one.

    torchtune's layers rotate first. A layer with the attribute ``norm_first`` = True applies the norm first; only for a
    norm whose scale is the same in all channels would that be the same.

    Args:
        attention: torchtune's attention layer.
        heads: [b, s, heads, d].
        norm: its norm of queries or of keys, over d.
        positions: of the tokens; None counts from 0.

    Returns:
        [b, heads, s, d].
    """
    norm_first = getattr(attention, "norm_first", False)
    if norm is not None and norm_first:
        heads = norm(heads)
    if attention.pos_embeddings is not None:
        heads = attention.pos_embeddings(heads, input_pos=positions)
    heads = heads.transpose(1, 2)
    return heads if norm is None or norm_first else norm(heads)


def _attend(
    plain: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, mask: Any, dropout_p: float, is_causal: bool
) -> Tensor:
    """Torchtune's attention call, [b, heads, s, d]; for a :class:`BranchMask` in two calls."""
    if not isinstance(mask, BranchMask):
        return plain(q, k, v, mask=mask, dropout_p=dropout_p, is_causal=is_causal)
    p = mask.prefix
    begun = plain(q[:, :, :p], k[:, :, :p], v[:, :, :p], mask=None, dropout_p=dropout_p, is_causal=True)
    if p == q.shape[2]:
        return begun
    rest = plain(q[:, :, p:], k, v, mask=mask.rest, dropout_p=dropout_p, is_causal=False)
    return torch.cat([begun, rest], dim=2)


def _rows_of(mask: Mask, columns: Tensor, width: int) -> Tensor:
    if mask is None:
        return _causal(columns, width)
    return mask.rows(columns) if isinstance(mask, BranchMask) else _take(mask, columns)


def _causal(columns: Tensor, width: int) -> Tensor:
    return torch.arange(width, device=columns.device) <= columns[:, :, None]


def _states(states: Tensor, columns: Tensor) -> Tensor:
    """States [b, n, d] of the columns [b, n]; the backward pass is faster than that of indices."""
    return states.gather(1, columns[:, :, None].expand(-1, -1, states.shape[2]))


def _take(values: Tensor, columns: Tensor) -> Tensor:
    """Entries ``columns`` [b, n] of values [b, s, ...]."""
    return values[torch.arange(len(values), device=values.device)[:, None], columns]
