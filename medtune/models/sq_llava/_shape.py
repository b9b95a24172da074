"""The sizes that define one model of the SQ-LLaVA architecture."""

from dataclasses import dataclass

from medtune.models.llava._shape import LlavaShape


@dataclass(frozen=True)
class SqLlavaShape(LlavaShape):
    """Sizes of a LLaVA, and of the prototype extractor between its vision transformer and its decoder.

    The vocabulary ends before the image token, as in the authors' files, so that weights are equal in both layouts.

    Attributes:
        prototypes: number of prototypes (the authors': 256 for 576 patches).
        iterations: number of times that the prototypes are moved.
    """

    prototypes: int = 256
    iterations: int = 2
    pad_id: int = 0
