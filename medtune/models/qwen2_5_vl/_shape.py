"""The sizes that define one model of the Qwen2.5-VL family."""

from dataclasses import dataclass

from medtune.errors import ModelError

MERGE = 2  # MERGE x MERGE patches become one feature; the published spatial_merge_size
FRAMES = 2  # frames that the kernel of the patch embedding covers; the published temporal_patch_size


@dataclass(frozen=True)
class Qwen2_5VLShape:
    """Sizes of a vision tower with windows, its merger and a Qwen2.5 decoder.

    Attributes:
        vision_dim: width of the vision tower.
        vision_layers: its depth.
        vision_heads: its attention heads.
        vision_mlp_dim: width of its MLPs.
        full_layers: numbers of its layers whose patches attend to the whole image; the others attend to a window.
        dim: width of the decoder.
        layers: its depth.
        heads: its attention heads.
        kv_heads: its key/value heads.
        mlp_dim: width of its MLPs.
        vocab_size: rows of its embedding table.
        tied: whether the output layer is the embedding table.
        image_id: the token that stands for one feature.
        video_id: the token that stands for one feature of a video, for ``config.json``.
        vision_start_id: the token before an image's features, for ``config.json``.
        vision_end_id: the token after them, for ``config.json``.
        bos_id: begin of text, for ``config.json``.
        eos_id: end of a turn, for ``config.json``.
        patch_size: side of a patch in pixels.
        window_size: side of a window in pixels.
        rope_sections: how many of a head's rotation angles follow the time, the row and the column of a token.
        rope_base: base of the decoder's rotary positions.
        norm_eps: epsilon of the decoder's norms.
        max_seq_len: longest text, image tokens included.

    Raises:
        ModelError: if patches, windows, heads or angles do not divide evenly, or a full layer does not exist.
    """

    vision_dim: int
    vision_layers: int
    vision_heads: int
    vision_mlp_dim: int
    full_layers: tuple[int, ...]
    dim: int
    layers: int
    heads: int
    kv_heads: int
    mlp_dim: int
    vocab_size: int
    tied: bool
    image_id: int
    video_id: int
    vision_start_id: int
    vision_end_id: int
    bos_id: int
    eos_id: int
    patch_size: int = 14
    window_size: int = 112
    rope_sections: tuple[int, int, int] = (16, 24, 24)
    rope_base: float = 1_000_000.0
    norm_eps: float = 1e-6
    max_seq_len: int = 128_000

    def __post_init__(self) -> None:
        if self.window_size % self.block_size:
            raise ModelError(f"window_size {self.window_size} must be a multiple of {self.block_size} pixels")
        if self.vision_dim % (4 * self.vision_heads):
            raise ModelError("the width of a head of the vision tower must be a multiple of 4: half for rows")
        if self.dim % self.heads or self.heads % self.kv_heads:
            raise ModelError("heads must divide the width, and key/value heads the heads")
        if 2 * sum(self.rope_sections) != self.head_dim:
            raise ModelError(
                f"rope_sections {list(self.rope_sections)} must add up to half of a head's {self.head_dim} channels"
            )
        absent = [layer for layer in self.full_layers if not 0 <= layer < self.vision_layers]
        if absent:
            raise ModelError(f"full_layers names layer {absent[0]} of {self.vision_layers}")

    @property
    def block_size(self) -> int:
        """Side in pixels of the block of patches that becomes one feature."""
        return self.patch_size * MERGE

    @property
    def window_blocks(self) -> int:
        """Blocks along one side of a window."""
        return self.window_size // self.block_size

    @property
    def head_dim(self) -> int:
        """Width of one head of the decoder."""
        return self.dim // self.heads
