"""The sizes that define one model of the InternVL family."""

from dataclasses import dataclass
from typing import Literal

from medtune.errors import ModelError

DecoderKind = Literal["internlm2", "qwen2"]
Layout = Literal["original", "hf"]
Template = Literal["internlm2-chat", "internvl2_5", "Hermes-2"]
SHUFFLE = 2  # SHUFFLE x SHUFFLE patches become one feature; the published downsample_ratio is 0.5


@dataclass(frozen=True)
class InternVLShape:
    """Sizes of an InternViT, its connector and a decoder.

    Attributes:
        image_size: side of a tile in pixels.
        patch_size: side of a patch in pixels.
        vision_dim: width of the vision transformer.
        vision_layers: its depth.
        vision_heads: its attention heads.
        vision_mlp_dim: width of its MLPs.
        decoder: ``internlm2`` (Llama's layers; published weights hold q, k and v in one tensor) or ``qwen2`` (biases
            on q, k and v).
        dim: width of the decoder.
        layers: its depth.
        heads: its attention heads.
        kv_heads: its key/value heads.
        mlp_dim: width of its MLPs.
        vocab_size: rows of its embedding table, including the image token's.
        image_id: the token that stands for one feature.
        bos_id: begin of text, for ``config.json``.
        eos_id: end of a turn, for ``config.json``.
        pad_id: fills rows, for ``config.json``.
        norm_eps: epsilon of the decoder's norms.
        rope_base: base of the rotary positions.
        max_seq_len: longest text, image tokens included.
        layer_scale: value of the vision transformer's layer scales before training.
        tied: whether the output layer is the embedding table.
        template: the chat format, by its name in OpenGVLab's files: ``internlm2-chat`` (InternVL2), ``Hermes-2``
            (InternVL2-1B), ``internvl2_5`` (InternVL2.5 and 3). None takes that of InternVL2-2B or InternVL3-8B, by the
            decoder, and does not name it in transformers' layout, which has no such key.

    Raises:
        ModelError: if patches, tiles or heads do not divide evenly, or the decoder is unknown.
    """

    image_size: int
    patch_size: int
    vision_dim: int
    vision_layers: int
    vision_heads: int
    vision_mlp_dim: int
    decoder: DecoderKind
    dim: int
    layers: int
    heads: int
    kv_heads: int
    mlp_dim: int
    vocab_size: int
    image_id: int
    bos_id: int
    eos_id: int
    pad_id: int
    norm_eps: float
    rope_base: float = 1_000_000.0
    max_seq_len: int = 32_768
    layer_scale: float = 0.1
    tied: bool = False
    template: Template | None = None

    def __post_init__(self) -> None:
        if self.image_size % (SHUFFLE * self.patch_size):
            raise ModelError(
                f"image_size {self.image_size} must be a multiple of {SHUFFLE} patches of {self.patch_size} pixels"
            )
        if self.vision_dim % self.vision_heads or self.dim % self.heads or self.heads % self.kv_heads:
            raise ModelError("heads must divide the widths, and key/value heads the heads")
        if self.decoder not in ("internlm2", "qwen2"):
            raise ModelError(f"decoder must be internlm2 or qwen2, got {self.decoder!r}")

    @property
    def grid(self) -> int:
        """Patches along one side of a tile."""
        return self.image_size // self.patch_size

    @property
    def tokens_per_tile(self) -> int:
        """Number of features of one tile."""
        return (self.grid // SHUFFLE) ** 2

    @property
    def head_dim(self) -> int:
        """Width of one head of the decoder."""
        return self.dim // self.heads

    @property
    def chat(self) -> Template:
        """The chat format, by its name in OpenGVLab's files."""
        return self.template or ("internlm2-chat" if self.decoder == "internlm2" else "internvl2_5")

    @property
    def packed_decoder(self) -> bool:
        """Whether the original layout holds the decoder's q, k and v in one tensor."""
        return self.decoder == "internlm2"
