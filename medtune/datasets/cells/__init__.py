"""Blood cells that the project draws itself, with reports, questions and conversations about them."""

from medtune.datasets.cells.source import KINDS, RenderedCells

__all__ = ["KINDS", "RenderedCells", "rendered_cells_dataset"]


def rendered_cells_dataset(
    size: int, seed: int, kind: str, image_size: int = 64, offset: int = 0, natural: float = 0.0
) -> RenderedCells:
    """Return samples about rendered white blood cells; samples and images are made when they are read.

    Args:
        size: number of samples.
        seed: seed of attributes, words and images.
        kind: "reports" (image-report pairs), "questions" (one random attribute per cell, with its options),
            "attributes" (all twelve values in one answer), "instructions" (six to ten turns per cell), "phrases"
            (findings as short phrases, on request), "preferences" (a question with a right and a wrong answer),
            "checks" (claims about a cell, answered by yes or no, which "check_drills" and "closed_drills" teach) or
            "text" (conversations without an image). In "instructions_by_value" and "text_by_value" answers to
            multiple-choice questions name the value before the letter. "drills", "sentence_drills", "lookups" and
            "facts" have no image and teach matching, in this order. All kinds of drills are for a transform without
            headers (:func:`medtune.models.mini.mini_drill_transform`).
        image_size: side of an image in pixels.
        offset: number of the first cell. Sources with the same seed and overlapping numbers share cells. The offsets
            of training and test sets must therefore differ by more than their sizes.
        natural: share of cells drawn with WBCAtt's frequencies; the other cells have uniform, independent attributes.

    Raises:
        ConfigError: for an unknown kind or a number out of range.
    """
    return RenderedCells(size, seed, kind, image_size, offset, natural)
