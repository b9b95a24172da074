"""The sizes that define one model of the Llama-3.2-Vision architecture."""

from dataclasses import dataclass

from torchtune.models.llama3._model_utils import scale_hidden_dim_for_mlp


@dataclass(frozen=True)
class DeepFusionShape:
    """Sizes of a vision transformer, its projection and a decoder with fusion layers.

    Attributes:
        image_size: side of a tile in pixels.
        patch_size: side of a patch in pixels.
        vision_dim: width of the vision transformer (its MLP is four times as wide).
        vision_layers: depth of the vision transformer.
        vision_heads: its attention heads, and those of the projection.
        hidden_states: layers whose input is passed to the projection together with the last output.
        projection_layers: depth of the gated transformer in the projection.
        table_tiles: side of the tables of tile positions, which is the maximum number of tiles of one image.
        dim: width of the decoder.
        layers: self-attention layers of the decoder.
        fusion_interval: a fusion layer is placed before every ``fusion_interval``-th decoder layer.
        heads: attention heads of the decoder.
        kv_heads: its key/value heads.
        intermediate_dim: width of the decoder's MLP; None takes Llama's rule.
        vocab_size: rows of the decoder's text embedding table and of its output.
        special_tokens: rows of the second embedding table, for image tokens; Llama-3.2-Vision has 8.
        max_seq_len: longest text.
        encoder_max_seq_len: longest sequence of image features, for caches.
        rope_base: base of the rotary positions.
        bos_id: begin of text, for ``config.json``.
        eos_id: end of text, for ``config.json``.
        pad_id: fills rows, for ``config.json``.
    """

    image_size: int
    patch_size: int
    vision_dim: int
    vision_layers: int
    vision_heads: int
    hidden_states: tuple[int, ...]
    projection_layers: int
    table_tiles: int
    dim: int
    layers: int
    fusion_interval: int
    heads: int
    kv_heads: int
    intermediate_dim: int | None
    vocab_size: int
    special_tokens: int = 8
    max_seq_len: int = 131_072
    encoder_max_seq_len: int = 128_080
    rope_base: float = 500_000.0
    bos_id: int = 128_000
    eos_id: int = 128_001
    pad_id: int = 128_004

    @property
    def mlp_dim(self) -> int:
        """Width of the decoder's MLP."""
        return self.intermediate_dim or scale_hidden_dim_for_mlp(self.dim)

    @property
    def tokens_per_tile(self) -> int:
        """Number of features of one tile: its patches and a class token."""
        return (self.image_size // self.patch_size) ** 2 + 1

    @property
    def cross_attention_layers(self) -> list[int]:
        """Fusion layers in the published numbering, which counts them as separate layers."""
        fused = range(self.fusion_interval - 1, self.layers, self.fusion_interval)
        return [layer + before for before, layer in enumerate(fused)]

    @property
    def aspect_ratios(self) -> list[tuple[int, int]]:
        """Grids (rows, columns) of at most ``table_tiles`` tiles, in the published order."""
        side = range(1, self.table_tiles + 1)
        return [(rows, columns) for rows in side for columns in side if rows * columns <= self.table_tiles]
