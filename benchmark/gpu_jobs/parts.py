"""Data and transforms for training runs at full size without any download: made-up pictures, the mini tokenizer.

Both are components, so that a run and ``medtune plan`` read one and the same config file.
"""

import hashlib
from typing import Any

import numpy as np
from PIL import Image

from medtune.config import PACKAGE
from medtune.data.sample import Message, Sample
from medtune.datasets.preferences import REJECTED
from medtune.models.common.chat_template import llama3
from medtune.models.common.early_transform import EarlyFusionTransform
from medtune.models.internvl._images import DynamicTiler
from medtune.models.internvl._model_builders import INTERNVL2_2B, INTERNVL3_8B
from medtune.models.llama3_2_vision._transform import PLACEHOLDER
from medtune.models.llava import SquareTiler
from medtune.models.llava._model_builders import IMAGE_ID, IMAGE_SIZE, PATCH_SIZE
from medtune.models.mini._tokenizer import MiniTokenizer

TOKENIZER = PACKAGE / "assets" / "mini_tokenizer"
QUESTION = "What does this image show?"


class Pictures:
    """Pictures of random noise, each with one question and an answer of so many words.

    Args:
        size: number of samples.
        side: of a picture in pixels.
        words: of an answer; all answers are equally long, so that no token of a batch is padding.
        kinds: how many different answers there are.
        pairs: whether each has a rejected answer too, which is another answer.
    """

    name = "pictures"

    def __init__(self, size: int, side: int, words: int, kinds: int, pairs: bool = False) -> None:
        self.size, self.side, self.words, self.kinds, self.pairs = size, side, words, kinds, pairs

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.size:
            raise IndexError(index)
        answer, other = (" ".join(["abcdefgh"[number % self.kinds]] * self.words) for number in (index, index + 1))
        meta = {REJECTED: other} if self.pairs else {}
        return Sample(str(index), (str(index),), (Message("user", QUESTION), Message("assistant", answer)), meta)

    def open_images(self, sample: Sample) -> list[Image.Image]:
        """Draw the pictures of a sample."""
        shape = (self.side, self.side, 3)
        draws = (np.random.default_rng(int(name)).integers(0, 256, shape, dtype=np.uint8) for name in sample.images)
        return [Image.fromarray(pixels) for pixels in draws]

    def image_sizes(self, sample: Sample) -> list[tuple[int, int]]:
        """Width and height of each picture."""
        return [(self.side, self.side)] * len(sample.images)

    def fingerprint(self) -> str:
        """Digest of all that the samples depend on."""
        parts = (self.size, self.side, self.words, self.kinds, self.pairs)
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def pictures(size: int = 16, side: int = 336, words: int = 500, kinds: int = 4) -> Pictures:
    """The component of :class:`Pictures`."""
    return Pictures(size, side, words, kinds)


def pairs(size: int = 16, side: int = 336, words: int = 100, kinds: int = 4) -> Pictures:
    """The component of :class:`Pictures` with rejected answers."""
    return Pictures(size, side, words, kinds, pairs=True)


def transform(model: str, max_num_tiles: int = 1) -> EarlyFusionTransform:
    """The image side of a model at its real size, with the words of the mini tokenizer.

    Args:
        model: ``internvl2_2b``, ``internvl3_8b`` or ``llava1_5_7b``.
        max_num_tiles: of an InternVL; LLaVA-1.5 takes one picture as it is.
    """
    tiler: Any
    if model == "llava1_5_7b":
        tiler, image_id, tokens = SquareTiler(IMAGE_SIZE), IMAGE_ID, (IMAGE_SIZE // PATCH_SIZE) ** 2
    else:
        shape = {"internvl2_2b": INTERNVL2_2B, "internvl3_8b": INTERNVL3_8B}[model]
        tiler, image_id = DynamicTiler(shape.image_size, max_num_tiles), shape.image_id
        tokens = shape.tokens_per_tile
    return EarlyFusionTransform(
        MiniTokenizer(TOKENIZER),
        llama3(),
        tiler,
        image_id=image_id,
        tokens_per_tile=tokens,
        max_seq_len=4096,
        placeholder_text=PLACEHOLDER,
    )
