"""A transform without headers, for the first steps of a mini model's language model."""

from pathlib import Path

from medtune.data.sample import Sample
from medtune.losses.cross_entropy import IGNORE_INDEX
from medtune.models.llama3_2_vision._transform import DeepFusionTransform
from medtune.models.mini._tokenizer import MiniTokenizer


class DrillTransform(DeepFusionTransform):
    """Messages follow one another as they are, after the images: no headers, no token at the end of a turn.

    So an answer may follow the very token that it depends on, as a letter follows the word of its option. That is what
    a small model learns to look up first.
    """

    def _lay_out(self, sample: Sample, *, inference: bool = False, **kwargs: object) -> tuple[list[int], list[int]]:
        tokens = [self.tokenizer.bos_id] + [self.tokenizer.image_id] * len(sample.images)
        labels = [IGNORE_INDEX] * len(tokens)
        for message in sample.messages:
            ids = self.tokenizer.encode(message.content)
            tokens += ids
            labels += ids if message.role == "assistant" else [IGNORE_INDEX] * len(ids)
        return tokens, labels


def mini_drill_transform(path: str | Path, max_seq_len: int = 1024) -> DrillTransform:
    """The transform of the first stage of the mini base model (kind ``drills`` of rendered cells).

    Args:
        path: ``tokenizer.json`` or its folder.
        max_seq_len: maximum number of tokens of one sample.
    """
    return DrillTransform(MiniTokenizer(path), image_size=64, patch_size=8, max_seq_len=max_seq_len)
