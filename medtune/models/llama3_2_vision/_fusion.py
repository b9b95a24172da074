"""Two small corrections to torchtune's cross-attention layers."""

from torch import Tensor
from torchtune.modules import TransformerCrossAttentionLayer, TransformerDecoder
from torchtune.modules.model_fusion import FusionLayer

_NORM_EPS = 1e-5


class OpenRowsCrossAttention(TransformerCrossAttentionLayer):
    """Cross-attention in which a text row that may see no image attends to every image feature.

    transformers treats text before the first image in this way: it drops the mask of such a row and sets only the MLP's
    output to zero. Meta's code and torchtune set the output of both attention and MLP to zero. Use this class only for
    comparison with transformers: the attended features include padding tiles and padding images, so a sample depends on
    the other samples of its batch.
    """

    def forward(
        self,
        x: Tensor,
        *,
        encoder_input: Tensor | None = None,
        encoder_mask: Tensor | None = None,
        **kwargs: object,
    ) -> Tensor:
        """As torchtune's layer: [b, s, d] -> [b, s, d]."""
        if encoder_input is None and (not self.caches_are_enabled() or self.attn.kv_cache.size == 0):
            return x
        closed = self._skip_mask(encoder_mask)
        if encoder_mask is not None and closed is not None:
            encoder_mask = encoder_mask.masked_fill(closed, True)
        h = x + self.ca_scale(self.attn(self.ca_norm(x), encoder_input, mask=encoder_mask))
        update = self.mlp(self.mlp_norm(h))
        if closed is not None:
            update = update.masked_fill(closed, 0)
        return h + self.mlp_scale(update)


def correct_fusion_layers(decoder: TransformerDecoder, *, hf_rows: bool) -> None:
    """Give fusion layers the published norm epsilon and, if requested, transformers' rule for rows without an image.

    Args:
        decoder: changed in place; parameters and names stay the same.
        hf_rows: use :class:`OpenRowsCrossAttention`.
    """
    for layer in decoder.layers:
        if not isinstance(layer, FusionLayer):
            continue
        fusion = layer.fusion_layer
        # torchtune's builder keeps RMSNorm's default of 1e-6 here
        fusion.ca_norm.eps = fusion.mlp_norm.eps = _NORM_EPS
        if hf_rows:
            layer.fusion_layer = OpenRowsCrossAttention(
                attn=fusion.attn,
                mlp=fusion.mlp,
                ca_norm=fusion.ca_norm,
                mlp_norm=fusion.mlp_norm,
                ca_scale=fusion.ca_scale,
                mlp_scale=fusion.mlp_scale,
            )
