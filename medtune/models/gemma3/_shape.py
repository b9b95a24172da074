"""The sizes that define one model of the Gemma 3 family."""

from dataclasses import dataclass

from medtune.errors import ModelError


@dataclass(frozen=True)
class Gemma3Shape:
    """Sizes of a SigLIP vision transformer, a projection and a Gemma 3 decoder (Gemma 3 technical report, 2025).

    Attributes:
        image_size: side of an image in pixels.
        patch_size: side of a patch in pixels.
        vision_dim: width of the vision transformer.
        vision_layers: its depth.
        vision_heads: its attention heads.
        vision_mlp_dim: width of its MLPs.
        tokens_per_image: features of one image; patches are averaged to this number.
        dim: width of the decoder.
        layers: its depth.
        heads: its attention heads.
        kv_heads: its key/value heads.
        head_dim: width of one head, which need not be ``dim / heads``.
        mlp_dim: width of its MLPs.
        vocab_size: rows of its embedding table, which is its output layer too.
        query_scale: attention scores are divided by the root of this number (``query_pre_attn_scalar``).
        window: a local layer sees this many tokens, the token itself included.
        pattern: every ``pattern``-th layer is global, the others are local.
        rope_base: base of the rotary positions of global layers.
        rope_factor: positions of global layers are divided by it (linear scaling); 1 for none.
        local_rope_base: base of the rotary positions of local layers.
        norm_eps: epsilon of the decoder's norms.
        vision_eps: epsilon of the vision transformer's norms and of the projection's.
        image_id: the token that stands for one feature.
        image_start_id: the token before an image's features.
        image_end_id: the token after them.
        bos_id: begin of text, for ``config.json``.
        eos_ids: ends of an answer, for ``config.json``.
        pad_id: fills rows, for ``config.json``.
        context: longest text that the model was made for, for ``config.json``.
        max_seq_len: longest text here, image tokens included. Tables of rotary positions of this length are kept, 4 KiB
            per position for heads of 256.

    Raises:
        ModelError: if patches, images or heads do not divide evenly.
    """

    image_size: int
    patch_size: int
    vision_dim: int
    vision_layers: int
    vision_heads: int
    vision_mlp_dim: int
    tokens_per_image: int
    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_dim: int
    vocab_size: int
    query_scale: float
    window: int
    pattern: int = 6
    rope_base: float = 1_000_000.0
    rope_factor: float = 8.0
    local_rope_base: float = 10_000.0
    norm_eps: float = 1e-6
    vision_eps: float = 1e-6
    image_id: int = 262_144
    image_start_id: int = 255_999
    image_end_id: int = 256_000
    bos_id: int = 2
    eos_ids: tuple[int, ...] = (1, 106)
    pad_id: int = 0
    context: int = 131_072
    max_seq_len: int = 8192

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ModelError(f"image_size {self.image_size} must be a multiple of the patch size {self.patch_size}")
        if self.side**2 != self.tokens_per_image or self.grid % self.side:
            raise ModelError(
                f"tokens_per_image {self.tokens_per_image} must be a square number whose root divides the "
                f"{self.grid} patches along a side"
            )
        if self.vision_dim % self.vision_heads or self.heads % self.kv_heads or self.head_dim % 2:
            raise ModelError(
                "heads must divide the width of the vision transformer, key/value heads the heads, and a head's width "
                "must be even"
            )
        if min(self.window, self.pattern, self.max_seq_len) < 1:
            raise ModelError(
                f"window, pattern and max_seq_len must be at least 1, got {self.window}, {self.pattern} and "
                f"{self.max_seq_len}"
            )

    @property
    def grid(self) -> int:
        """Patches along one side of an image."""
        return self.image_size // self.patch_size

    @property
    def side(self) -> int:
        """Features along one side of an image."""
        return round(self.tokens_per_image**0.5)

    def is_local(self, layer: int) -> bool:
        """Whether a layer of the decoder sees only the last ``window`` tokens."""
        return (layer + 1) % self.pattern != 0
