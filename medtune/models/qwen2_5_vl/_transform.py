"""The transform of Qwen2.5-VL: its tokenizer, chat format and images of any size."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from medtune.data.features import EncodedPicture
from medtune.data.sample import Sample
from medtune.errors import ModelError
from medtune.models.common.chat_template import ChatTemplate, chatml
from medtune.models.common.early_transform import EarlyFusionTransform
from medtune.models.common.padding import PadSide
from medtune.models.common.tokenizer import FastTokenizer, TextTokenizer, placeholder
from medtune.models.qwen2_5_vl._collate import collate_blocks
from medtune.models.qwen2_5_vl._images import CLIP_MEAN, CLIP_STD, BlockCutter
from medtune.models.qwen2_5_vl._model_builders import QWEN2_5_VL_7B
from medtune.models.qwen2_5_vl._shape import Qwen2_5VLShape

IMAGE_START, IMAGE_END, IMAGE_PAD = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"
SYSTEM = "You are a helpful assistant."
MIN_PIXELS = 56 * 56
MAX_PIXELS = 1280 * 28 * 28


class Qwen2_5VLTransform(EarlyFusionTransform):
    """Tokens, labels and blocks of a sample. Picklable; stateless. Arguments as for the base class.

    An item has ``grids`` too: rows and columns of blocks of each image.
    """

    tiler: BlockCutter
    fewer_tokens = "lower max_pixels (a block of {size} x {size} pixels is one token)"

    def __call__(
        self, sample: Sample, images: Sequence[Image.Image | EncodedPicture], *, inference: bool = False
    ) -> dict:
        """Transform one sample; see the base class.

        Raises:
            DataError: also if one side of an image is more than 200 times as long as the other.
        """
        item = super().__call__(sample, images, inference=inference)
        item["grids"] = [self.tiler.grid(*image.size) for image in images]
        return item

    def collate(
        self, items: list[dict], pad_side: PadSide = "right", *, min_images: int = 1, min_tiles: int = 1
    ) -> dict:
        """As in the base class; ``vision`` has ``grid`` too, and ``vision_mask`` the place of each feature.

        Raises:
            DataError: if an encoded image was encoded at another resolution.
        """
        return collate_blocks(
            items,
            pad_id=self.pad_id,
            block_size=self.tiler.size,
            pad_side=pad_side,
            images=min_images,
            tiles=min_tiles,
            dtype=self.dtype,
            feature_width=self.feature_width,
        )


def qwen2_5_vl_transform(
    path: str | Path,
    min_pixels: int = MIN_PIXELS,
    max_pixels: int = MAX_PIXELS,
    max_seq_len: int = 4096,
    system: str | None = None,
    supervise_header: bool = False,
) -> Qwen2_5VLTransform:
    """The transform of Qwen2.5-VL, any size.

    Args:
        path: ``tokenizer.json`` or the folder of the checkpoint.
        min_pixels: smaller images are enlarged to this number of pixels.
        max_pixels: larger images are reduced to it; 28 x 28 pixels are one token. The default gives 1,280 tokens at
            most. The published processor allows 12,845,056 (16,384 tokens), that of transformers 5 1,003,520.
        max_seq_len: maximum number of tokens of one sample, image tokens included.
        system: system message of samples that have none; None takes the published one, an empty text leaves it out.
        supervise_header: whether the header before an answer is supervised too, as in torchtune's own recipes.
    """
    template = replace(chatml(SYSTEM if system is None else system), image_separator="")
    return make_transform(
        FastTokenizer(path), template, QWEN2_5_VL_7B, min_pixels, max_pixels, max_seq_len, supervise_header
    )


def make_transform(
    tokenizer: TextTokenizer,
    template: ChatTemplate,
    shape: Qwen2_5VLShape,
    min_pixels: int,
    max_pixels: int,
    max_seq_len: int,
    supervise_header: bool = False,
    *,
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] = (CLIP_MEAN, CLIP_STD),
) -> Qwen2_5VLTransform:
    """The transform of a model of any size.

    Args:
        tokenizer: of the checkpoint.
        template: the chat format.
        shape: sizes of the model.
        min_pixels: as for :func:`qwen2_5_vl_transform`, like the arguments after it.
        max_pixels: as there.
        max_seq_len: as there.
        supervise_header: as there.
        normalisation: mean and standard deviation of each channel of images.

    Raises:
        ModelError: if the tokenizer is not that of the model.
    """
    image_id = tokenizer.special_id(IMAGE_PAD)
    if image_id != shape.image_id:
        raise ModelError(
            f"{IMAGE_PAD} is token {image_id} of this tokenizer, but {shape.image_id} of the model; take the "
            "tokenizer of the checkpoint"
        )
    return Qwen2_5VLTransform(
        tokenizer,
        template,
        BlockCutter(shape.block_size, min_pixels, max_pixels, mean=normalisation[0], std=normalisation[1]),
        image_id=image_id,
        tokens_per_tile=1,
        image_start=[tokenizer.special_id(IMAGE_START)],
        image_end=[tokenizer.special_id(IMAGE_END)],
        max_seq_len=max_seq_len,
        placeholder_text=placeholder(tokenizer, after_space=template.after_space),
        supervise_header=supervise_header,
    )
