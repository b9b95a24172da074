"""From requests to prompts: an image is opened and cut into tiles once, even if several questions are about it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from medtune.data.features import EncodedPicture
from medtune.data.source import SampleSource
from medtune.generation.interfaces import PromptTransform
from medtune.generation.prompt_extension import PromptExtension
from medtune.generation.requests import Request

SampleKey = tuple[int, tuple[str, ...]]
_TEXT = ("id", "tokens", "labels")


@dataclass
class _Held:
    """Images of a sample, and the transform's output for them (empty until the transform has run).

    The source is kept too: keys contain its ``id()``, and another source could get the same ``id()`` if it were freed.
    """

    source: SampleSource
    images: list[Image.Image]
    made: dict[str, Any] = field(default_factory=dict)


class PromptMaker:
    """Opens the images of requests and makes prompts.

    Args:
        transform: The model's transform.
        extension: The part that a method adds to prompts.
    """

    def __init__(self, transform: PromptTransform, extension: PromptExtension) -> None:
        self.transform, self.extension = transform, extension
        self._held: dict[SampleKey, _Held] = {}

    def __call__(self, request: Request) -> tuple[dict[str, Any], Any]:
        """Return the output of the transform and the output of the extension's ``prepare``.

        Raises:
            DataError: If the sample or an image of it cannot be used.
        """
        key = (id(request.source), request.sample.images)
        entry = self._held.get(key)
        if entry is None:
            entry = self._held[key] = _Held(request.source, request.source.open_images(request.sample))
        if entry.made:
            # The transform uses the tiles unchanged, in the same way as features from a feature cache.
            tiles = zip(entry.images, entry.made["images"], strict=True)
            shown = [EncodedPicture(image.size, cut) for image, cut in tiles]
            item = {**self.transform(request.sample, shown, inference=True), **entry.made}
        else:
            item = self.transform(request.sample, entry.images, inference=True)
            entry.made = {name: value for name, value in item.items() if name not in _TEXT}
        return item, self.extension.prepare(request, entry.images, item)

    def forget(self, unused: Callable[[SampleKey], bool]) -> None:
        """Drop the images of samples that no later request shows."""
        for key in [key for key in list(self._held) if unused(key)]:
            del self._held[key]
