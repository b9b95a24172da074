"""From a stream of requests to padded batches: grouping, padding and attention masks."""

from collections.abc import Callable, Container, Generator, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor

from medtune.errors import DataError
from medtune.generation.requests import Request

ImageKey = tuple[int, str]
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Plan:
    """Requests that are answered together.

    Attributes:
        requests: At most one batch of them.
        last: Images that no later request of the window shows; what is cached for them can be dropped.
    """

    requests: list[Request]
    last: frozenset[ImageKey]


@dataclass
class PromptBatch:
    """Prompts of one plan, left-padded.

    Attributes:
        plan: The plan of the batch; its requests include those that could not be prepared.
        requests: One per row.
        tokens: Shape ``[b, s]``.
        padding: True at real tokens, shape ``[b, s]``.
        vision: Inputs of the model's ``encode``; each tensor starts with ``[b, images]``.
        vision_mask: For models with cross-attention, which image embeddings a token may attend to, ``[b, s, s_e]``;
            for models that read images as tokens, which image embeddings exist, ``[b, s_e]``.
        prepared: Output of a prompt extension for each row's request; empty without an extension.
        override: Learned vectors that replace embedded tokens: their places, ``[b, s]`` bool with k places in every
            row, and the vectors, ``[b, k, d]``; None without learned vectors.
    """

    plan: Plan
    requests: list[Request]
    tokens: Tensor
    padding: Tensor
    vision: dict[str, Tensor]
    vision_mask: Tensor
    prepared: list[Any] = field(default_factory=list)
    override: tuple[Tensor, Tensor] | None = None

    @cached_property
    def lengths(self) -> list[int]:
        """Real tokens of each row."""
        return self.padding.sum(dim=1).tolist()

    def prompt(self, row: int) -> list[int]:
        """Return the unpadded tokens of one row."""
        return self.tokens[row][self.padding[row]].tolist()

    def without_pixels(self) -> "PromptBatch":
        """Return the batch without tiles, for use after encoding: selecting rows then copies no tiles."""
        return replace(self, vision={})

    def select(self, rows: Sequence[int]) -> "PromptBatch":
        """Return some of the rows, in the given order."""
        index = torch.tensor(rows, device=self.tokens.device)
        return replace(
            self,
            requests=[self.requests[row] for row in rows],
            tokens=self.tokens[index],
            padding=self.padding[index],
            vision={name: value[index] for name, value in self.vision.items()},
            vision_mask=self.vision_mask[index],
            prepared=[self.prepared[row] for row in rows] if self.prepared else [],
            override=None if self.override is None else (self.override[0][index], self.override[1][index]),
        )

    def to(self, device: torch.device, dtype: torch.dtype) -> "PromptBatch":
        """Return the batch on a device, pixels in ``dtype``."""
        vision = {
            name: value.to(device, dtype if value.is_floating_point() else value.dtype)
            for name, value in self.vision.items()
        }
        return replace(
            self,
            tokens=self.tokens.to(device),
            padding=self.padding.to(device),
            vision=vision,
            vision_mask=self.vision_mask.to(device),
        )


def plan_batches(
    requests: Iterable[Request],
    *,
    batch_size: int,
    window: int,
    order: Callable[[Request], Any],
    done: Container[str] = frozenset(),
    apart: Callable[[Request], Hashable] | None = None,
    together: Callable[[Request], Hashable] | None = None,
) -> Iterator[Plan]:
    """Group similar requests into batches.

    A window of ``window * batch_size`` requests is sorted by ``order`` and cut into batches. Windows are formed over
    the whole stream before the ids in ``done`` are removed, so a resumed run has the same windows as one
    that was not interrupted.

    Args:
        requests: The stream; it is read one window ahead at most.
        batch_size: Requests per batch.
        window: Batches per window.
        order: Sort key, largest first.
        done: Ids that are answered already.
        apart: Requests with different keys never share a batch.
        together: Requests with equal keys are neighbours, at the place of the largest of them.

    Raises:
        DataError: If an id occurs twice.
    """
    stream, seen = iter(requests), set[str]()
    while block := list(islice(stream, window * batch_size)):
        for request in block:
            if request.id in seen:
                raise DataError(f"request {request.id!r} occurs twice; ids must be unique within a run")
            seen.add(request.id)
        block = sorted((request for request in block if request.id not in done), key=order, reverse=True)
        parts = [block] if apart is None else _gathered(block, apart)
        batches = [batch for likes in parts for batch in _cut(likes, batch_size, together)]
        last_use = {key: i for i, batch in enumerate(batches) for request in batch for key in request.image_keys}
        for i, batch in enumerate(batches):
            yield Plan(batch, frozenset(key for key, last in last_use.items() if last == i))


def _gathered(requests: list[Request], key: Callable[[Request], Hashable] | None) -> list[list[Request]]:
    """Group requests with equal keys, in the order of the first of each; without a key each request is a group."""
    groups: dict[Hashable, list[Request]] = {}
    for place, request in enumerate(requests):
        groups.setdefault(place if key is None else key(request), []).append(request)
    return list(groups.values())


def _cut(requests: list[Request], size: int, together: Callable[[Request], Hashable] | None) -> Iterator[list[Request]]:
    ordered = iter([request for group in _gathered(requests, together) for request in group])
    while batch := list(islice(ordered, size)):
        yield batch


def ahead(function: Callable[[ItemT], ResultT], items: Iterable[ItemT]) -> Generator[ResultT, None, None]:
    """``map`` that prepares the next item in a thread while the caller uses the current one.

    The thread also reads the items, so a result is returned without waiting for the next item to arrive.
    """
    stream = iter(items)

    def work() -> list[ResultT]:
        return [function(item) for item in islice(stream, 1)]

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prepare") as pool:
        pending = pool.submit(work)
        while result := pending.result():
            pending = pool.submit(work)
            yield result[0]


def left_pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Pad token lists on the left to equal length.

    Returns:
        Tokens and padding (True at real tokens), both ``[b, s]``.
    """
    width = max(map(len, rows))
    tokens = torch.full((len(rows), width), pad_id, dtype=torch.long)
    padding = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, ids in enumerate(rows):
        tokens[row, width - len(ids) :] = torch.tensor(ids, dtype=torch.long)
        padding[row, width - len(ids) :] = True
    return tokens, padding


def causal(visible: Tensor) -> Tensor:
    """Combine a mask of visible keys with the causal mask.

    Each token may also attend to itself, so that rows of padding give no NaN.

    Args:
        visible: Boolean, broadcastable to ``[b, s, s]``.

    Returns:
        Boolean mask of shape ``[b, s, s]``.
    """
    ones = torch.ones(visible.shape[-1], visible.shape[-1], dtype=torch.bool, device=visible.device)
    return (ones.tril() & visible) | torch.eye(len(ones), dtype=torch.bool, device=visible.device)
