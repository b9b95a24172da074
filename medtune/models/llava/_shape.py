"""The sizes that define one model of the LLaVA architecture."""

from dataclasses import dataclass

from torchtune.models.llama3._model_utils import scale_hidden_dim_for_mlp


@dataclass(frozen=True)
class LlavaShape:
    """Sizes of a CLIP vision transformer, a projection of two linear layers and a Llama decoder.

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

    @property
    def mlp_dim(self) -> int:
        """Width of the decoder's MLP."""
        return self.intermediate_dim or scale_hidden_dim_for_mlp(self.dim)

    @property
    def tokens_per_image(self) -> int:
        """Number of features of one image: its patches, without the class token."""
        return (self.image_size // self.patch_size) ** 2
