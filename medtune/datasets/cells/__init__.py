"""Blood cells that the project draws itself, with reports, questions and conversations about them."""

from medtune.datasets.cells.source import KINDS, RenderedCells

__all__ = ["KINDS", "RenderedCells", "rendered_cells_dataset"]


def rendered_cells_dataset(
    size: int, seed: int, kind: str, image_size: int = 64, offset: int = 0, natural: float = 0.0
) -> RenderedCells:
    """Return samples about rendered white blood cells; they and their pictures are made when asked for.

    Args:
        size: number of samples.
        seed: seed of attributes, words and pictures.
        kind: "reports" (image-report pairs), "questions" (one random attribute a cell, with its options),
            "attributes" (all twelve values in one answer), "instructions" (six to ten turns a cell), "phrases"
            (findings as short phrases, on request) or "text" (conversations without an image).
        image_size: side of a picture in pixels.
        offset: number of the first cell. Sources of the same seed share a cell where their numbers overlap, so
            training and test sets take offsets that lie further apart than their sizes.
        natural: share of cells drawn by WBCAtt's own frequencies; the others have attributes that are even and
            tell nothing about one another.

    Raises:
        ConfigError: for an unknown kind or a number out of range.
    """
    return RenderedCells(size, seed, kind, image_size, offset, natural)
