"""Images as the page shows them: decoded by the data layer, sent as PNG without the file's metadata."""

import io
import threading
from collections import OrderedDict

from medtune.data.images import ImageRoot

_KEPT_BYTES = 128 << 20


class Pictures:
    """Images below one root; the latest ones are kept in memory.

    What an image's file holds beside its pixels (names in EXIF or DICOM) is not sent.

    Args:
        root: Where images lie; None if no question has one.
        kept_bytes: Size of what is kept.
    """

    def __init__(self, root: ImageRoot | None, kept_bytes: int = _KEPT_BYTES) -> None:
        self.root, self.kept_bytes = root, kept_bytes
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def png(self, name: str, where: str) -> bytes:
        """Return an image.

        Args:
            name: Path below the root.
            where: What names the image, for messages.

        Raises:
            DataError: If it is gone, damaged, or outside the root.
        """
        assert self.root is not None, "the command checks this"
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name]
        image = self.root.load(name, where)
        if image.convert("L").convert("RGB").tobytes() == image.tobytes():
            image = image.convert("L")  # a third of the bytes
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", compress_level=1)
        data = buffer.getvalue()
        with self._lock:
            self._size += len(data) - len(self._kept.pop(name, b""))
            self._kept[name] = data
            while self._size > self.kept_bytes and self._kept:
                self._size -= len(self._kept.popitem(last=False)[1])
        return data
