"""The vision encoder as the published checkpoints were trained, and a variant independent of padding."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchtune.models.llama3_2_vision._encoder import Llama3VisionEncoder

from medtune.errors import ModelError

EncoderMode = Literal["checkpoint", "strict", "torchtune"]
_MODES = ("checkpoint", "strict", "torchtune")
_TOKEN_MULTIPLE = 8  # published models fill each tile up to a multiple of 8 tokens


class VisionEncoder(Llama3VisionEncoder):
    """torchtune's encoder with explicit attention over padding; parameters and their names are the same.

    Modes:
        ``checkpoint``: how the published weights were trained. Every image is padded with empty tiles to ``pad_tiles``.
            Every tile is padded with zero rows (after the first norm) to a multiple of 8 tokens. Real tokens do attend
            to that padding: only padding-to-padding pairs are blocked. Because the padding is always the same, a
            sample does not depend on the other samples of its batch.
        ``strict``: nothing attends to padding, so that an image gives the same features with any number of empty
            tiles. The published weights were not trained in this mode.
        ``torchtune``: torchtune's encoder: no mask, tiles padded to the batch's largest image. A sample's features
            depend on the other samples of its batch.

    In each mode the hidden states passed to the projection are the *inputs* of the chosen layers, as in training of the
    published weights (recent versions of transformers read the outputs instead).

    Args:
        clip: torchtune's tiled vision transformer.
        projection_head: torchtune's projection.
        mode: see above.
        pad_tiles: tiles that each image is padded to in ``checkpoint`` mode.

    Raises:
        ModelError: on an unknown mode.
    """

    def __init__(
        self, clip: nn.Module, projection_head: nn.Module, *, mode: EncoderMode = "checkpoint", pad_tiles: int = 4
    ) -> None:
        super().__init__(clip, projection_head)
        if mode not in _MODES:
            raise ModelError(f"encoder_mode {mode!r} is unknown; choose one of {', '.join(_MODES)}")
        self.mode = mode
        self.pad_tiles = pad_tiles

    def forward(self, images: Tensor, aspect_ratio: Tensor | None = None, tiles: Tensor | None = None) -> Tensor:
        """Encode tiled images.

        Args:
            images: [b, i, t, c, h, w]; empty tiles and images are zeros.
            aspect_ratio: [b, i, 2], rows and columns of each image's tiles; None only if t is 1.
            tiles: [b, i], real tiles per image; None takes them from ``aspect_ratio``.

        Returns:
            Features [b, i * t * tokens per tile, d].

        Raises:
            ModelError: if t is larger than ``pad_tiles`` in ``checkpoint`` mode, or ``aspect_ratio`` is missing.
        """
        images = images.to(self.clip.conv.weight.dtype)
        b, i, t = images.shape[:3]
        if aspect_ratio is None:
            if t > 1:
                raise ModelError(f"images of {t} tiles need their aspect_ratio")
            aspect_ratio = torch.ones(b, i, 2, dtype=torch.long, device=images.device)
        if self.mode == "torchtune":
            return super().forward(images, aspect_ratio)
        aspect_ratio = aspect_ratio.reshape(b * i, 2)
        # a padding image counts as one black tile, because softmax needs a key; the decoder masks its features
        real = (aspect_ratio.prod(-1) if tiles is None else tiles.reshape(b * i)).clamp(min=1)
        x = self._embed(self._fill_tiles(images).flatten(0, 1), aspect_ratio)
        slots, length = x.shape[1:3]
        if self.mode == "checkpoint":
            x = F.pad(x, (0, 0, 0, -length % _TOKEN_MULTIPLE))
        mask = self._mask(real, slots, length, x.shape[2])
        x, states = self._transform(x, aspect_ratio, mask)
        return self._project(x, states, mask, (t, length)).reshape(b, i * t * length, -1)

    def _fill_tiles(self, images: Tensor) -> Tensor:
        t = images.shape[2]
        if self.mode == "strict":
            return images
        if t > self.pad_tiles:
            raise ModelError(f"an image of {t} tiles reached an encoder that pads to {self.pad_tiles}; set pad_tiles")
        return F.pad(images, (0, 0, 0, 0, 0, 0, 0, self.pad_tiles - t))

    def _embed(self, images: Tensor, aspect_ratio: Tensor) -> Tensor:
        """Patch, class and position embeddings: [n, t, c, h, w] -> [n, t, tokens, d]."""
        clip = self.clip
        x = clip.conv(images.flatten(0, 1)).flatten(2).transpose(1, 2).unflatten(0, images.shape[:2])
        x = clip.cls_token_embedding(clip.pre_tile_pos_embed(x, aspect_ratio))
        return clip.ln_pre(clip.token_pos_embedding(x, aspect_ratio))

    def _mask(self, real: Tensor, slots: int, length: int, padded: int) -> Tensor | None:
        """Attention mask, bool [n, slots * padded, slots * padded]; None if there is no padding."""
        if slots == 1 and padded == length:
            return None
        tile = torch.arange(slots, device=real.device)[:, None]
        token = torch.arange(padded, device=real.device)[None]
        keep = ((tile < real[:, None, None]) & (token < length)).flatten(1)
        if self.mode == "checkpoint":
            return keep[:, :, None] | keep[:, None, :]
        # the diagonal keeps the softmax of padding rows defined; nothing reads those rows
        return keep[:, None, :] | torch.eye(keep.shape[1], dtype=torch.bool, device=real.device)

    def _transform(self, x: Tensor, aspect_ratio: Tensor, mask: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        slots = x.shape[1]
        clip = self.clip
        x, states = x.flatten(1, 2), []
        for index, layer in enumerate(clip.layers):
            if index in clip.out_indices:
                states.append(x)
            x = layer(x, mask=mask)
        x = clip.ln_post(x).unflatten(1, (slots, -1))
        return clip.post_tile_pos_embed(x, aspect_ratio).flatten(1, 2), states

    def _project(self, x: Tensor, states: list[Tensor], mask: Tensor | None, keep: tuple[int, int]) -> Tensor:
        """Gated layers, then the linear layer of the output joined with the hidden states; padding is cut off."""
        tiles, length = keep
        slots = self.pad_tiles if self.mode == "checkpoint" else tiles
        for layer in self.projection.layers:
            x = layer(x, mask=mask)

        def cut(h: Tensor) -> Tensor:
            return h.unflatten(1, (slots, -1))[:, :tiles, :length]

        x = cut(x)
        if states:
            x = torch.cat([x, torch.stack([cut(h) for h in states], dim=-1).flatten(-2)], dim=-1)
        return self.projection.output(x)
