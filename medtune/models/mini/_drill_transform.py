"""A transform that writes drills without headers and conversations with them, for the stages of a mini base."""

from pathlib import Path

from medtune.data.sample import Sample
from medtune.losses.cross_entropy import IGNORE_INDEX
from medtune.models.llama3_2_vision._transform import DeepFusionTransform
from medtune.models.mini._tokenizer import MiniTokenizer

DRILL = "drill"
"""Key of a sample's meta: true for messages without headers."""


class DrillTransform(DeepFusionTransform):
    """The messages of a drill follow one another as they are, after the images: no headers, no token that ends a turn.

    So an answer may follow the very token that it depends on, as a letter follows the word of its option. That is what
    a small model learns to look up first. Samples that are no drills are written as always, so that both can be mixed.
    """

    def _lay_out(self, sample: Sample, *, inference: bool = False, **options: object) -> tuple[list[int], list[int]]:
        if not sample.meta.get(DRILL):
            return super()._lay_out(sample, inference=inference, **options)
        tokens = [self.tokenizer.bos_id] + [self.tokenizer.image_id] * len(sample.images)
        labels = [IGNORE_INDEX] * len(tokens)
        for message in sample.messages:
            ids = self.tokenizer.encode(message.content)
            tokens += ids
            labels += ids if message.role == "assistant" else [IGNORE_INDEX] * len(ids)
        return tokens, labels


def mini_drill_transform(path: str | Path, max_seq_len: int = 1024) -> DrillTransform:
    """The transform of the stages that make a mini base (kinds of rendered cells with drills).

    Args:
        path: ``tokenizer.json`` or its folder.
        max_seq_len: maximum number of tokens of one sample.
    """
    return DrillTransform(MiniTokenizer(path), image_size=64, patch_size=8, max_seq_len=max_seq_len)
