"""Finds, for prompts that join the engine, a live row that has already read their beginning."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from medtune.generation.engine.batches import PromptBatch

# Another pass and a copy of keys and values are worth it if they spare at least this share of a prompt.
WORTH = 0.5


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt whose keys and values are in the caches.

    Attributes:
        key: If keys are equal, equal tokens have equal keys and values.
        tokens: Its tokens, as the model read them.
    """

    key: Hashable
    tokens: list[int]


@dataclass(frozen=True)
class Beginning:
    """The beginning of a prompt in the caches.

    Attributes:
        source: The row that holds it.
        length: Its number of tokens; fewer than the prompt has.
        images: Number of image tokens in it, which are all of the prompt's.
    """

    source: int
    length: int
    images: int


def read_prompts(batch: PromptBatch, keys: Sequence[Hashable]) -> list[ReadPrompt]:
    """The prompts of a batch.

    Args:
        batch: Prompts as the model reads them.
        keys: One per row; if keys are equal, equal tokens have equal embeddings.
    """
    # Models with cross-attention keep image features at the places that the padding of a batch gives them.
    places = batch.vision_mask.shape[-1] if batch.vision_mask.dim() == 3 else None
    return [ReadPrompt((key, places), batch.prompt(row)) for row, key in enumerate(keys)]


def find_beginning(prompt: ReadPrompt, live: Sequence[ReadPrompt], image_id: int) -> Beginning | None:
    """Return the longest beginning of a prompt that a live row holds.

    Args:
        prompt: The prompt.
        live: The prompts of the rows in use, in order.
        image_id: The token of an image, or of one feature of it. All of them must be in the beginning.

    Returns:
        None if there is none that is worth a pass of its own.
    """
    tokens = prompt.tokens
    images = tokens.count(image_id)
    head = len(tokens) - tokens[::-1].index(image_id) if images else 0
    best = None
    least = max(head, 1, WORTH * len(tokens))
    for row, other in enumerate(live):
        if other.key != prompt.key:
            continue
        pairs = zip(tokens[:-1], other.tokens, strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(tokens) - 1, len(other.tokens)))
        if same >= least and (best is None or same > best.length):
            best = Beginning(row, same, images)
    return best
