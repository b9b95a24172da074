"""From requests to prompts: images are opened and cut into tiles once, however many questions are asked on them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from medtune.data.features import EncodedPicture
from medtune.data.source import SampleSource
from medtune.generation.prompt_extension import PromptExtension
from medtune.generation.requests import Request
from medtune.generation.seams import PromptTransform

SampleKey = tuple[int, tuple[str, ...]]
_TEXT = ("id", "tokens", "labels")


@dataclass
class _Held:
    """Images of a sample, and what the transform made of them; empty until it has.

    The source stays alive with them, because keys hold its address, which must not go to another one.
    """

    source: SampleSource
    images: list[Image.Image]
    made: dict[str, Any] = field(default_factory=dict)


class PromptMaker:
    """Opens the images of requests and makes prompts of them.

    Args:
        transform: The model's.
        extension: Adds to prompts.
    """

    def __init__(self, transform: PromptTransform, extension: PromptExtension) -> None:
        self.transform, self.extension = transform, extension
        self._held: dict[SampleKey, _Held] = {}

    def __call__(self, request: Request) -> tuple[dict[str, Any], Any]:
        """The transform's item, and what the extension prepared.

        Raises:
            DataError: If the sample or an image of it cannot be used.
        """
        key = (id(request.source), request.sample.images)
        held = self._held.get(key)
        if held is None:
            held = self._held[key] = _Held(request.source, request.source.open_images(request.sample))
        if held.made:
            # The transform takes an image's tiles as it takes features from a cache: as they are.
            tiles = zip(held.images, held.made["images"], strict=True)
            shown = [EncodedPicture(image.size, cut) for image, cut in tiles]
            item = {**self.transform(request.sample, shown, inference=True), **held.made}
        else:
            item = self.transform(request.sample, held.images, inference=True)
            held.made = {name: value for name, value in item.items() if name not in _TEXT}
        return item, self.extension.prepare(request, held.images, item)

    def forget(self, unused: Callable[[SampleKey], bool]) -> None:
        """Let go of the images of samples that no coming request shows."""
        for key in [key for key in list(self._held) if unused(key)]:
            del self._held[key]
