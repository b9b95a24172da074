"""Transforms that write drills without headers and conversations with them, for the stages of a mini base."""

from collections.abc import Sequence
from pathlib import Path

from medtune.data.sample import Sample
from medtune.losses.cross_entropy import IGNORE_INDEX
from medtune.models.common.early_transform import EarlyFusionTransform
from medtune.models.llama3_2_vision._transform import DeepFusionTransform
from medtune.models.mini._internvl_transform import transform_of_kind
from medtune.models.mini._tokenizer import MiniTokenizer

DRILL = "drill"
"""Key of a sample's meta: true for messages without headers."""


def _lay_out_drill(
    tokenizer: MiniTokenizer, sample: Sample, images: Sequence[Sequence[int]]
) -> tuple[list[int], list[int]]:
    """Tokens and labels of a drill: what stands for the images, and the messages one after another.

    There are no headers and no token that ends a turn. So an answer may follow the very token that it depends on, as a
    letter follows the word of its option. That is what a small model learns to look up first.
    """
    tokens = [tokenizer.bos_id, *(token for image in images for token in image)]
    labels = [IGNORE_INDEX] * len(tokens)
    for message in sample.messages:
        ids = tokenizer.encode(message.content)
        tokens += ids
        labels += ids if message.role == "assistant" else [IGNORE_INDEX] * len(ids)
    return tokens, labels


class DrillTransform(DeepFusionTransform):
    """Drills for a mini model with cross-attention; other samples are written as always, so that both can be mixed."""

    tokenizer: MiniTokenizer

    def _lay_out(self, sample: Sample, **options: object) -> tuple[list[int], list[int]]:
        if not sample.meta.get(DRILL):
            return super()._lay_out(sample, **options)
        return _lay_out_drill(self.tokenizer, sample, [[self.tokenizer.image_id]] * len(sample.images))


class InternVLDrillTransform(EarlyFusionTransform):
    """Drills for a mini InternVL; other samples are written as always, so that both can be mixed."""

    tokenizer: MiniTokenizer

    def _lay_out(self, sample: Sample, tiles: Sequence[int], **options: object) -> tuple[list[int], list[int]]:
        if not sample.meta.get(DRILL):
            return super()._lay_out(sample, tiles, **options)  # type: ignore[arg-type]
        images = [[self.image_id] * (self.tokens_per_tile * count) for count in tiles]
        return _lay_out_drill(self.tokenizer, sample, images)


def mini_drill_transform(path: str | Path, max_seq_len: int = 1024) -> DrillTransform:
    """The transform of the stages that make a mini base (kinds of rendered cells with drills).

    Args:
        path: ``tokenizer.json`` or its folder.
        max_seq_len: maximum number of tokens of one sample.
    """
    return DrillTransform(MiniTokenizer(path), image_size=64, patch_size=8, max_seq_len=max_seq_len)


def mini_internvl_drill_transform(path: str | Path, max_seq_len: int = 1024) -> InternVLDrillTransform:
    """The transform of the same stages for a mini InternVL.

    Arguments as for :func:`mini_drill_transform`.
    """
    return transform_of_kind(InternVLDrillTransform, path, max_seq_len=max_seq_len)
