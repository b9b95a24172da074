"""The transform of a mini InternVL: the mini tokenizer, Llama-3's chat format, InternVL's tiling."""

from pathlib import Path
from typing import TypeVar

from medtune.models.common.chat_template import llama3
from medtune.models.common.early_transform import EarlyFusionTransform
from medtune.models.internvl._images import DynamicTiler
from medtune.models.internvl._shape import SHUFFLE
from medtune.models.llama3_2_vision._transform import PLACEHOLDER
from medtune.models.mini._tokenizer import MiniTokenizer

TransformT = TypeVar("TransformT", bound=EarlyFusionTransform)


def mini_internvl_transform(
    path: str | Path,
    image_size: int = 64,
    max_num_tiles: int = 1,
    max_seq_len: int = 1024,
    patch_size: int = 8,
    supervise_header: bool = False,
) -> EarlyFusionTransform:
    """The transform of a mini InternVL.

    Args:
        path: ``tokenizer.json`` or its folder.
        image_size: side of a tile in pixels.
        max_num_tiles: maximum number of tiles of one image; with more than one a thumbnail is added.
        max_seq_len: maximum number of tokens of one sample, image tokens included.
        patch_size: side of a patch in pixels.
        supervise_header: whether the header before an answer is supervised too, as in torchtune's own recipes.
    """
    return transform_of_kind(
        EarlyFusionTransform, path, image_size, max_num_tiles, max_seq_len, patch_size, supervise_header
    )


def transform_of_kind(
    kind: type[TransformT],
    path: str | Path,
    image_size: int = 64,
    max_num_tiles: int = 1,
    max_seq_len: int = 1024,
    patch_size: int = 8,
    supervise_header: bool = False,
) -> TransformT:
    """A transform of a mini InternVL of another class; arguments as for :func:`mini_internvl_transform`."""
    tokenizer = MiniTokenizer(path)
    return kind(
        tokenizer,
        llama3(),
        DynamicTiler(image_size, max_num_tiles),
        image_id=tokenizer.image_id,
        tokens_per_tile=(image_size // patch_size // SHUFFLE) ** 2,
        max_seq_len=max_seq_len,
        placeholder_text=PLACEHOLDER,
        supervise_header=supervise_header,
    )
