"""The images of requests: taken out of ``data:`` URIs, kept while a request needs them, and decoded when it is read."""

import base64
import binascii
import hashlib
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from medtune.data.images import image_of_bytes
from medtune.data.sample import Sample
from medtune.errors import DataError
from medtune.serving.errors import ApiError, RefusedImageError, refused

_OF_ROWS = re.compile(r"[,;]? (?:or )?remove the row")
"""What the data layer advises where an image is one of a table's."""
_REMOTE = ("http:", "https:", "ftp:", "file:")


@dataclass
class _Held:
    data: bytes
    users: int


class ReceivedImages:
    """Images as a source, by the SHA-256 of their files.

    Equal files have one name, so that the engine encodes an image once for all requests that show it at the same time.
    An image is dropped with its last request; nothing is written to disk.

    Args:
        max_pixels: Limit of an image's width times height.
    """

    name = "requests"

    def __init__(self, max_pixels: int) -> None:
        self.max_pixels = max_pixels
        self._held: dict[str, _Held] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """No sample is stored."""
        return 0

    def __getitem__(self, index: int) -> Sample:
        """No sample is stored."""
        raise IndexError(index)

    @property
    def held(self) -> int:
        """Number of images in memory."""
        return len(self._held)

    def take(self, images: Sequence[bytes]) -> tuple[str, ...]:
        """Keep images and return their names; each call needs one :meth:`release` of these names."""
        names = tuple(hashlib.sha256(data).hexdigest() for data in images)
        with self._lock:
            for name, data in zip(names, images, strict=True):
                self._held.setdefault(name, _Held(data, 0)).users += 1
        return names

    def release(self, names: Sequence[str]) -> None:
        """Drop images that no other request shows."""
        with self._lock:
            for name in names:
                self._held[name].users -= 1
                if not self._held[name].users:
                    del self._held[name]

    def open_images(self, sample: Sample) -> list[Image.Image]:
        """Decode the images of a request.

        Raises:
            RefusedImageError: If one is damaged, too large, or no image.
        """
        return [self._open(name, number) for number, name in enumerate(sample.images, start=1)]

    def _open(self, name: str, number: int) -> Image.Image:
        with self._lock:
            held = self._held.get(name)
        if held is None:  # the request has ended
            raise RefusedImageError(f"image {number} is no longer here")
        try:
            return image_of_bytes(held.data, f"image {number} of the request", self.max_pixels)
        except DataError as error:
            raise RefusedImageError(_OF_ROWS.sub("", str(error))) from None

    def image_sizes(self, sample: Sample) -> list[tuple[int, int]]:
        """Return the sizes of a request's images."""
        return [image.size for image in self.open_images(sample)]

    def fingerprint(self) -> str:
        """Nothing is trained on these images."""
        return ""


def decode_uri(url: str, param: str, fetch: Callable[[str, str], bytes] | None = None) -> bytes:
    """Return the bytes of an image that a request holds as a ``data:`` URI with base64.

    Args:
        url: What the request holds.
        param: Place in the request, for messages.
        fetch: Fetches an image from an address (:class:`medtune.serving.remote_images.RemoteImages`); None opens none.

    Raises:
        ApiError: If it is an address that is not fetched, or not such a URI.
    """
    if fetch is not None and url[:8].lower().startswith(("http:", "https:")):
        return fetch(url, param)
    if url[:8].lower().startswith(_REMOTE):
        raise refused(
            param,
            f"{param}: images are not fetched from addresses; send the image itself as data:image/png;base64,...",
            "image_url_not_allowed",
        )
    head, comma, data = url.partition(",")
    if not comma or not head.lower().startswith("data:") or not head.lower().endswith(";base64"):
        raise _no_image(param)
    try:
        decoded = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise _no_image(param) from None
    if not decoded:
        raise _no_image(param)
    return decoded


def _no_image(param: str) -> ApiError:
    return refused(param, f"{param}: an image must be a URI of the form data:image/png;base64,...", "invalid_image")
