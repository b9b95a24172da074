"""The sizes that define one model of the LLaVA architecture."""

from dataclasses import dataclass
from typing import Literal

from torchtune.models.llama3._model_utils import scale_hidden_dim_for_mlp

from medtune.errors import ModelError

DecoderKind = Literal["llama", "mistral", "qwen2"]
Layout = Literal["hf", "original"]


@dataclass(frozen=True)
class LlavaShape:
    """Sizes of a CLIP vision transformer, a projection of two linear layers and a Llama, Mistral or Qwen2 decoder.

    Attributes:
        image_size: side of an image in pixels.
        patch_size: side of a patch in pixels.
        vision_dim: width of the vision transformer (its MLP is four times as wide).
        vision_layers: its published depth; the last layer is not used (see :class:`ClipTower`).
        vision_heads: its attention heads.
        dim: width of the decoder.
        layers: depth of the decoder.
        heads: attention heads of the decoder.
        kv_heads: its key/value heads.
        intermediate_dim: width of the decoder's MLP; None takes Llama's rule.
        vocab_size: rows of the embedding table and of the output.
        image_id: the image token, whose id is also the number of vocabulary rows in the authors' files.
        max_seq_len: longest text, image tokens included.
        bos_id: begin of text, for ``config.json``.
        eos_id: end of text, for ``config.json``.
        pad_id: fills rows, for ``config.json``.
        decoder: ``llama`` (LLaVA-1.5), ``mistral`` (LLaVA-Med v1.5; the same layers) or ``qwen2`` (HuatuoGPT-Vision;
            biases on q, k and v).
        norm_eps: epsilon of the decoder's norms.
        rope_base: base of the rotary positions.
        tied: whether the output layer is the embedding table.

    Raises:
        ModelError: if patches or heads do not divide evenly, or the decoder is unknown.
    """

    image_size: int
    patch_size: int
    vision_dim: int
    vision_layers: int
    vision_heads: int
    dim: int
    layers: int
    heads: int
    kv_heads: int
    intermediate_dim: int | None
    vocab_size: int
    image_id: int
    max_seq_len: int = 4096
    bos_id: int = 1
    eos_id: int = 2
    pad_id: int = 32_001
    decoder: DecoderKind = "llama"
    norm_eps: float = 1e-5
    rope_base: float = 10_000.0
    tied: bool = False

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ModelError(f"image_size {self.image_size} must be a multiple of patch_size {self.patch_size}")
        if self.vision_dim % self.vision_heads or self.dim % self.heads or self.heads % self.kv_heads:
            raise ModelError("heads must divide the widths, and key/value heads the heads")
        if self.decoder not in ("llama", "mistral", "qwen2"):
            raise ModelError(f"decoder must be llama, mistral or qwen2, got {self.decoder!r}")

    @property
    def mlp_dim(self) -> int:
        """Width of the decoder's MLP."""
        return self.intermediate_dim or scale_hidden_dim_for_mlp(self.dim)

    @property
    def tokens_per_image(self) -> int:
        """Number of features of one image: its patches, without the class token."""
        return (self.image_size // self.patch_size) ** 2
