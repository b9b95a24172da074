"""The mini family's transform: Llama-3.2-Vision's, with another tokenizer and smaller tiles."""

from pathlib import Path

from medtune.models.llama3_2_vision._images import ResizeMode
from medtune.models.llama3_2_vision._transform import DeepFusionTransform
from medtune.models.mini._tokenizer import MiniTokenizer


def mini_transform(
    path: str | Path,
    image_size: int = 64,
    max_num_tiles: int = 1,
    max_seq_len: int = 1024,
    patch_size: int = 8,
    resize: ResizeMode | None = None,
    supervise_header: bool = False,
) -> DeepFusionTransform:
    """The transform of a mini model.

    Args:
        path: ``tokenizer.json`` or its folder.
        image_size: side of a tile in pixels.
        max_num_tiles: maximum number of tiles of one image.
        max_seq_len: maximum number of tokens of one sample.
        patch_size: side of a patch in pixels.
        resize: ``squash`` (default for one tile) or ``pad`` (default for several).
        supervise_header: whether the header before an answer is supervised too, as in torchtune's own recipes.
    """
    return DeepFusionTransform(
        MiniTokenizer(path),
        image_size=image_size,
        patch_size=patch_size,
        max_num_tiles=max_num_tiles,
        max_seq_len=max_seq_len,
        resize=resize,
        supervise_header=supervise_header,
    )
