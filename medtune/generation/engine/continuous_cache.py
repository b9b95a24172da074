"""Key-value caches in which each row has its own position.

torchtune's cache appends tokens to all rows at once, so all rows of a batch have the same length. Here the token at
position p of a row is in column p of that row. A query may see a key if the key's column is not later than the query's
position. So each row can be started, ended, copied and moved separately.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor, nn
from torchtune.modules import KVCache, TransformerCrossAttentionLayer
from torchtune.modules.common_utils import delete_kv_caches

from medtune.generation.interfaces import AnswerModel

COLUMN_STEP = 64


@dataclass
class Cursor:
    """The place where the next forward pass reads and writes; all layers share one object.

    Attributes:
        rows: Rows of the pass, a range of the cache rows.
        columns: Columns of its tokens: the first column if it is the same for all rows, else the column of every
            token, ``[b, s]``.
        length: Number of columns that the pass can see, from the first column on.
        features: Image embeddings per row that cross-attention can see; 0 leaves out cross-attention layers.
    """

    rows: slice = field(default_factory=lambda: slice(0, 0))
    columns: int | Tensor = 0
    length: int = 0
    features: int = 0

    def point(self, other: "Cursor") -> None:
        """Copy the values of another cursor; the layers hold a reference to this object."""
        self.rows, self.columns, self.length, self.features = other.rows, other.columns, other.length, other.features


class _Cache(nn.Module):
    """Keys and values ``[rows, heads, columns, head_dim]`` of one attention layer."""

    def __init__(self, cursor: Cursor, like: Tensor) -> None:
        super().__init__()
        self.cursor = cursor
        self.keys = like.new_zeros(0, like.shape[1], 0, like.shape[3])
        self.values = self.keys

    def resize(self, rows: int, columns: int, keep: int) -> None:
        """Allocate rows and columns; the first ``keep`` rows keep their content."""
        heads, wide = self.keys.shape[1], self.keys.shape[3]
        saved = (self.keys[:keep], self.values[:keep]) if keep else ()
        # Without rows to keep, free the old tensors before allocating the new ones.
        self.keys = self.values = self.keys.new_zeros(0, heads, 0, wide)
        # Zeros, because a masked column is still multiplied by 0, and 0 times NaN is NaN.
        self.keys, self.values = (self.keys.new_zeros(rows, heads, columns, wide) for _ in range(2))
        for old, new in zip(saved, (self.keys, self.values), strict=False):
            new[:keep, :, : old.shape[2]] = old

    def copy_row(self, source: int, rows: slice, columns: int) -> None:
        """Copy the first columns of a row into other rows."""
        for cached in (self.keys, self.values):
            cached[rows, :, :columns] = cached[source, :, :columns]

    def reset(self) -> None:
        """Set all keys and values to zero."""
        self.keys.zero_()
        self.values.zero_()


class SelfAttentionCache(_Cache):
    """Replaces torchtune's ``KVCache`` in a decoder layer."""

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values ``[b, heads, s, head_dim]`` of new tokens; return those that the pass can see."""
        seen = []
        for cached, new in ((self.keys, keys), (self.values, values)):
            rows = cached[self.cursor.rows]
            if isinstance(self.cursor.columns, int):
                rows[:, :, self.cursor.columns : self.cursor.columns + new.shape[2]] = new
            else:
                index = torch.arange(len(new), device=new.device)[:, None]
                rows[index, :, self.cursor.columns] = new.transpose(1, 2)
            seen.append(rows[:, :, : self.cursor.length])
        return seen[0], seen[1]


class CrossAttentionCache(_Cache):
    """Cache of a cross-attention layer, whose columns are image embeddings."""

    @property
    def size(self) -> int:
        """Number of image embeddings; zero if the layer is to be skipped."""
        return self.cursor.features

    @property
    def k_cache(self) -> Tensor:
        """The keys that torchtune's attention reads if no image embeddings are given."""
        return self.keys[self.cursor.rows, :, : self.cursor.features]

    @property
    def v_cache(self) -> Tensor:
        """The values that torchtune's attention reads if no image embeddings are given."""
        return self.values[self.cursor.rows, :, : self.cursor.features]

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values of image embeddings."""
        for cached, new in ((self.keys, keys), (self.values, values)):
            rows = cached[self.cursor.rows]
            rows[:, :, : new.shape[2]] = new
            rows[:, :, new.shape[2] :] = 0
        return keys, values


class SlotCaches:
    """The caches of a model.

    Args:
        model: A VLM; it gets caches at the first :meth:`reserve`.
        device: Device of the model.
        dtype: Type of the model and the caches.

    Attributes:
        cursor: Place of the next forward pass; set it before each pass.
        rows: Number of allocated rows.
        columns: Number of tokens per row; one more column is allocated for padding.
        features: Number of image embeddings per row.
    """

    def __init__(self, model: AnswerModel, device: torch.device, dtype: torch.dtype) -> None:
        self.model, self.device, self.dtype = model, device, dtype
        self.cursor = Cursor()
        self.rows = self.columns = self.features = 0
        self._own: list[SelfAttentionCache] = []
        self._cross: list[CrossAttentionCache] = []

    def reserve(self, rows: int, columns: int, features: int, keep: int = 0) -> None:
        """Allocate the caches. Sizes only grow, and grow in steps, so that a run allocates only a few times.

        Args:
            rows: Number of rows needed.
            columns: Tokens per row.
            features: Image embeddings per row, 0 for models without cross-attention.
            keep: Number of rows, from the first one, that keep their content; the content of the others may be lost.
        """
        if rows > self.rows or columns > self.columns:
            self._install()
            rows = self.rows = max(rows, self.rows)
            self.columns = max(self.columns, -(-columns // COLUMN_STEP) * COLUMN_STEP)
            for cache in self._own:
                cache.resize(rows, self.columns + 1, keep)
        if self._cross and (rows > len(self._cross[0].keys) or features > self.features):
            self.features = max(self.features, features)
            for cross in self._cross:
                cross.resize(self.rows, self.features, keep)

    def copy_rows(self, source: Sequence[int], first: int, columns: int) -> None:
        """Copy rows (their first ``columns`` tokens and all image embeddings) to the rows from ``first`` on."""
        for row, copies in groupby(range(len(source)), key=lambda place: source[place]):
            places = list(copies)
            rows = slice(first + places[0], first + places[-1] + 1)
            for cache in self._own:
                cache.copy_row(row, rows, columns)
            for cross in self._cross:
                cross.copy_row(row, rows, self.features)

    def forget_features(self, rows: slice) -> None:
        """Set the image embeddings of rows to zero. Old ones would be masked anyway; this removes them."""
        for cross in self._cross:
            cross.keys[rows] = 0
            cross.values[rows] = 0

    def close(self) -> None:
        """Remove the caches. While they exist, the model's layers do not apply the causal mask by themselves."""
        if self._own:
            delete_kv_caches(self.model)
        self.rows = self.columns = self.features = 0
        self._own, self._cross = [], []

    def _install(self) -> None:
        if self._own:
            return
        with self.device:
            self.model.setup_caches(1, self.dtype, encoder_max_seq_len=1, decoder_max_seq_len=1)
        crossing = {id(m.attn) for m in self.model.modules() if isinstance(m, TransformerCrossAttentionLayer)}
        for module in self.model.modules():
            cache = getattr(module, "kv_cache", None)
            if not isinstance(cache, KVCache):
                continue
            like = cache.get_buffer("k_cache")
            if id(module) in crossing:
                self._cross.append(CrossAttentionCache(self.cursor, like))
                module.kv_cache = self._cross[-1]
            else:
                self._own.append(SelfAttentionCache(self.cursor, like))
                module.kv_cache = self._own[-1]
