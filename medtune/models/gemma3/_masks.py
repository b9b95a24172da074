"""Attention masks of Gemma 3: the tokens of an image see one another, and local layers see a window of tokens."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from medtune.models.common.branch_attention import BranchMask, Mask


def layer_masks(mask: Mask, image: Tensor | None, tokens: Tensor, window: int) -> tuple[Tensor | None, Tensor | None]:
    """The masks of global and of local layers, the same in training, in cached steps and for branches.

    In a global layer every token sees what is before it, and an image's tokens also the rest of their image. Image
    tokens that stand side by side are one image; the transform puts other tokens between two images. A local layer sees
    of this what is not further back than the window.

    How far back a key is follows from the mask alone: it is the number of keys behind it that the token may attend to.
    So it does not matter on which side a row is padded, which branch a token belongs to, or in which column of a cache
    a key is.

    Args:
        mask: [b, s, keys], True = may attend, or one of branches; None is causal. The last key that a token may attend
            to is its own. A token may attend to all earlier tokens of its text.
        image: [b, s], True at image tokens; None if no image is read in this pass.
        tokens: [b, s].
        window: the number of tokens that a token of a local layer sees, itself included.

    Returns:
        Both masks [b, s, keys]; None where plain causal attention is meant.
    """
    causal = mask.whole() if isinstance(mask, BranchMask) else mask
    if causal is None:
        b, s = tokens.shape
        if image is None and s <= window:
            return None, None
        causal = torch.ones(s, s, dtype=torch.bool, device=tokens.device).tril().expand(b, -1, -1)
    whole = causal if image is None else causal | _same_image(causal, image)
    if causal.shape[2] <= window:
        return whole, whole
    seen = causal.cumsum(dim=2, dtype=torch.int32)
    return whole, whole & (seen[:, :, -1:] - seen < window)


def _same_image(causal: Tensor, image: Tensor) -> Tensor:
    """[b, s, keys], True where token and key are of one image."""
    run = torch.where(image, (image & ~pad(image, (1, 0))[:, :-1]).cumsum(dim=1), 0)
    column = torch.arange(causal.shape[2], device=causal.device)
    own = torch.where(causal, column, 0).amax(dim=2)
    # 0 for keys of earlier passes: an image is always read in one pass
    runs = run.new_zeros(len(run), causal.shape[2]).scatter_reduce(1, own, run, "amax")
    return image[:, :, None] & (run[:, :, None] == runs[:, None, :])
