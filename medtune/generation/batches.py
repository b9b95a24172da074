"""From a stream of requests to padded batches: which belong together, how they are aligned, who may attend to whom."""

from collections import deque
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
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
        last: Images that no later request of the window shows; what is held for them can go.
    """

    requests: list[Request]
    last: frozenset[ImageKey]


@dataclass
class PromptBatch:
    """Prompts of one plan, left-padded.

    Attributes:
        plan: Where they come from; ``requests`` below lacks those that could not be prepared.
        requests: One per row.
        tokens: Shape ``[b, s]``.
        padding: True at real tokens, shape ``[b, s]``.
        vision: Inputs of the model's ``encode``; each tensor starts with ``[b, images]``.
        vision_mask: For models with cross-attention, which image embeddings a token may attend to, ``[b, s, s_e]``;
            for models that read images as tokens, which image embeddings exist, ``[b, s_e]``.
        exemplar_pixels: Pictures as a task-specific model sees them, ``[b, 3, h, w]`` in fp32; None without exemplars.
        exemplars: Where they go, ``[b, s]`` bool with k places in every row, and their embeddings, ``[b, k, d]``; None
            without exemplars.
    """

    plan: Plan
    requests: list[Request]
    tokens: Tensor
    padding: Tensor
    vision: dict[str, Tensor]
    vision_mask: Tensor
    exemplar_pixels: Tensor | None = None
    exemplars: tuple[Tensor, Tensor] | None = None

    @property
    def replacement(self) -> tuple[Tensor, Tensor] | None:
        """What ``hidden`` of a VLM takes as ``replace``."""
        return None if self.exemplars is None else (self.exemplars[0], self.exemplars[1].flatten(0, 1))

    def prompt(self, row: int) -> list[int]:
        """The unpadded tokens of one row."""
        return self.tokens[row][self.padding[row]].tolist()

    def to(self, device: torch.device, dtype: torch.dtype) -> "PromptBatch":
        """The batch on a device, pictures in ``dtype``."""
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
            exemplar_pixels=None if self.exemplar_pixels is None else self.exemplar_pixels.to(device),
        )


def plan_batches(
    requests: Iterable[Request],
    *,
    batch_size: int,
    window: int,
    order: Callable[[Request], Any],
    done: Container[str] = frozenset(),
) -> Iterator[Plan]:
    """Group requests into batches, likes with likes.

    A window of ``window * batch_size`` requests is sorted by ``order`` and cut into batches. Windows are laid over the
    whole stream before ``done`` is taken out, so that a continued run forms the batches that it would have formed.

    Args:
        requests: The stream; it is read one window ahead at most.
        batch_size: Requests per batch.
        window: Batches per window.
        order: Sort key, largest first.
        done: Ids that are answered already.

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
        batches = [block[start : start + batch_size] for start in range(0, len(block), batch_size)]
        last_use = {key: i for i, batch in enumerate(batches) for request in batch for key in request.image_keys}
        for i, batch in enumerate(batches):
            yield Plan(batch, frozenset(key for key, last in last_use.items() if last == i))


def ahead(function: Callable[[ItemT], ResultT], items: Iterable[ItemT]) -> Generator[ResultT, None, None]:
    """``map`` that works on the next item in a thread while the caller is busy with the present one."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prepare") as pool:
        pending: deque[Future[ResultT]] = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 1:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def left_pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token lists aligned at their ends.

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


def positions(padding: Tensor) -> Tensor:
    """Position of each real token within its own row (0 at padding), shape ``[b, s]``."""
    return (padding.long().cumsum(dim=1) - 1).clamp(min=0)


def causal(visible: Tensor) -> Tensor:
    """``visible`` keys that are not later than the query, and oneself, which keeps padding rows free of NaN.

    Args:
        visible: Boolean, broadcastable to ``[b, s, s]``.

    Returns:
        Boolean mask of shape ``[b, s, s]``.
    """
    ones = torch.ones(visible.shape[-1], visible.shape[-1], dtype=torch.bool, device=visible.device)
    return (ones.tril() & visible) | torch.eye(len(ones), dtype=torch.bool, device=visible.device)


def widen(value: Tensor, width: int) -> Tensor:
    """The last dimension grown to ``width`` with zeros (False)."""
    return torch.nn.functional.pad(value, (0, width - value.shape[-1]))
