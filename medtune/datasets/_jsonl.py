"""Samples as medtune writes them."""

from medtune.data.source import JsonlSource


def jsonl_dataset(source: str, image_root: str | None = None) -> JsonlSource:
    """Samples from a JSON Lines file: ``{"id", "images": [...], "messages": [{"role", "content"}], "meta": {}}``.

    Args:
        source: the ``.jsonl`` file.
        image_root: folder or ``.tar`` that the image paths are relative to; absent where no row has images.

    Raises:
        DataError: if the file is absent or empty, or the image root is absent.
    """
    return JsonlSource(source, image_root)
