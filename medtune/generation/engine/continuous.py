"""Continuous batching: requests start and end while others are being answered, and their tokens are streamed.

The generator answers fixed batches; the engine is for serving. A step decodes one token for every active request,
admits waiting requests if there is room, and removes finished ones. Each row has its own position in the key-value
cache (:mod:`medtune.generation.engine.continuous_cache`), so an answer equals that of the request alone.
"""

from collections import deque
from collections.abc import Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Literal, Self

import torch
from torch import Tensor

from medtune.errors import ConfigError, DataError, MedtuneError
from medtune.generation.engine.batches import Plan, PromptBatch
from medtune.generation.engine.continuous_text import TextStream
from medtune.generation.engine.decoding import CachedDecoder
from medtune.generation.engine.features import FeatureStore
from medtune.generation.engine.generator import ENCODED_AT_ONCE
from medtune.generation.engine.live_prefixes import ReadPrompt, find_beginning, read_prompts
from medtune.generation.engine.prefixes import find_shared
from medtune.generation.engine.prompts import PromptMaker
from medtune.generation.engine.sampling import Draws, Sampling, choose
from medtune.generation.interfaces import AnswerModel, PromptTransform
from medtune.generation.prompt_extension import NoExtension, PromptExtension
from medtune.generation.requests import Request

Reason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class TokenEvent:
    """What happened to a request in one step.

    Attributes:
        id: Id of the request.
        token: The new token; None for events without a token, such as the end by a stop token.
        text_delta: Text that became complete; all pieces together are the answer.
        finished: Whether this is the request's last event.
        reason: Why the request ended: a stop token, the maximum length, :meth:`Engine.cancel`, or an error.
        error: The error, if the request failed.
    """

    id: str
    token: int | None = None
    text_delta: str = ""
    finished: bool = False
    reason: Reason | None = None
    error: MedtuneError | None = None


@dataclass(frozen=True)
class _Prompt:
    """A request with the outputs of the transform and the extension."""

    request: Request
    item: dict[str, Any]
    prepared: Any


@dataclass(frozen=True)
class _Waiting:
    """A request that has no row yet, and the future of its prompt."""

    request: Request
    prompt: Future[_Prompt]


@dataclass
class _Live:
    """A request that is being answered; its index in the engine's list is its row.

    Attributes:
        request: The request.
        bound: Maximum number of tokens of the answer.
        draws: Sampling settings and random numbers.
        text: Tokens of the answer and their text.
        prompt: Its prompt, whose beginning a later prompt may share.
        ended: True once no further token is needed.
    """

    request: Request
    bound: int
    draws: Draws
    text: TextStream
    prompt: ReadPrompt
    ended: bool = field(default=False)

    def take(self, token: int, stop_ids: frozenset[int]) -> TokenEvent:
        """Add the next token and return its event."""
        name = self.request.id
        if token in stop_ids:
            self.ended = True
            return TokenEvent(name, None, self.text.end(), True, "stop")
        delta = self.text.add(token)
        if len(self.text.tokens) < self.bound:
            return TokenEvent(name, token, delta)
        self.ended = True
        return TokenEvent(name, token, delta + self.text.end(), True, "length")


class Engine:
    """Answers requests that come at any time.

    ``submit`` and ``cancel`` may be called from other threads than ``step``. While an engine is open, no other code may
    use the model.

    Args:
        model: A VLM on ``device`` in ``dtype``. After :meth:`close` it is in the same mode as before and has no caches.
        transform: The model's transform.
        slots: Maximum number of requests that are answered at the same time.
        max_new_tokens: Maximum number of generated tokens for requests that set none.
        device: Device of the model.
        dtype: Type of pixels and caches.
        sampling: Sampling for requests that set none; None for greedy answers.
        extension: The part that a method adds to prompts. Requests of another group wait until the current group is
            answered.
        share_prefix: Read a prefix that several prompts admitted in one step share only once, and copy one that a row
            in use holds.

    Attributes:
        keeps_images: Keep opened and encoded images that no request shows any more, until :meth:`forget_images`.

    Raises:
        ConfigError: For sizes below one.
    """

    def __init__(
        self,
        model: AnswerModel,
        transform: PromptTransform,
        *,
        slots: int = 8,
        max_new_tokens: int = 64,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        sampling: Sampling | None = None,
        extension: PromptExtension | None = None,
        share_prefix: bool = True,
    ) -> None:
        if slots < 1 or max_new_tokens < 1:
            raise ConfigError(f"slots {slots} or max_new_tokens {max_new_tokens} is too small")
        self.model, self.transform, self.slots, self.max_new_tokens = model, transform, slots, max_new_tokens
        self.device, self.dtype = torch.device(device), dtype
        self.sampling, self.extension, self.share_prefix = sampling, extension or NoExtension(), share_prefix
        self.features = FeatureStore(model, ENCODED_AT_ONCE, self.extension)
        self.keeps_images = False
        self._decoder = CachedDecoder(model, self.device, dtype, self.extension.before_forward)
        self._waiting: deque[_Waiting] = deque()
        self._live: list[_Live] = []
        self._ids: set[str] = set()
        self._cancelled: set[str] = set()
        self._prompts = PromptMaker(transform, self.extension)
        self._lock = Lock()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prepare")
        self._training = model.training
        model.train(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def idle(self) -> bool:
        """Whether no request is waiting or being answered."""
        return not self._ids

    @property
    def tokens_read(self) -> int:
        """Prompt tokens that the decoder has read so far; a shared prefix counts once."""
        return self._decoder.tokens_read

    def submit(self, request: Request) -> None:
        """Queue a request; :meth:`step` returns its events.

        Raises:
            DataError: If a request with this id is in the engine, or if the request has continuations to score, which
                the engine does not support.
        """
        if request.continuations:
            raise DataError(f"request {request.id!r} wants continuations scored; ask a generator for likelihoods")
        with self._lock:
            if request.id in self._ids:
                raise DataError(f"request {request.id!r} is being answered already; give each request an id of its own")
            self._ids.add(request.id)
            self._waiting.append(_Waiting(request, self._pool.submit(self._prepare, request)))

    def cancel(self, name: str) -> bool:
        """End a request at the next step.

        Returns:
            False if there is no such request, or if it has already ended.
        """
        with self._lock:
            known = name in self._ids
            if known:
                self._cancelled.add(name)
        return known

    @torch.inference_mode()
    def step(self) -> list[TokenEvent]:
        """Decode one token for each request that is being answered, and admit waiting requests.

        Returns:
            One event for each request that got a token or ended; at least one, unless the engine is idle.
        """
        events = self._end_cancelled()
        if self._live:
            logits = self._decoder.step([live.text.tokens[-1] for live in self._live])
            events += self._take(logits, self._live)
        events += self._admit()
        if not self.keeps_images:
            self.forget_images()
        self._ids -= {event.id for event in events if event.finished}
        return events

    def close(self) -> None:
        """Drop all requests and restore the model's mode."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._decoder.close()
        self.features.clear()
        self._waiting.clear()
        self._live.clear()
        self._ids.clear()
        self._prompts.forget(lambda key: True)
        self.model.train(self._training)

    def _take(self, logits: Tensor, rows: list[_Live]) -> list[TokenEvent]:
        """Choose a token for each of the last ``len(rows)`` rows, and free the rows that end."""
        stop_ids = frozenset(self.transform.stop_ids)
        chosen = choose(logits, [live.draws for live in rows]).tolist()
        events = [live.take(token, stop_ids) for live, token in zip(rows, chosen, strict=True)]
        self._drop_ended()
        return events

    def _drop_ended(self) -> None:
        for row in reversed(range(len(self._live))):
            if self._live[row].ended:
                self._decoder.drop(row)
                self._live[row] = self._live[-1]
                self._live.pop()

    def _end_cancelled(self) -> list[TokenEvent]:
        with self._lock:
            names, self._cancelled = self._cancelled, set()
            waiting_now = list(self._waiting)
        events = []
        for live in self._live:
            if live.request.id in names:
                live.ended = True
                events.append(TokenEvent(live.request.id, None, live.text.end(), True, "cancelled"))
        self._drop_ended()
        for waiting in [waiting for waiting in waiting_now if waiting.request.id in names]:
            waiting.prompt.cancel()
            self._waiting.remove(waiting)
            events.append(TokenEvent(waiting.request.id, finished=True, reason="cancelled"))
        return events

    def _admit(self) -> list[TokenEvent]:
        """Give rows to waiting requests, in order of arrival, and choose their first tokens."""
        events: list[TokenEvent] = []
        ready: list[_Prompt] = []
        while self._waiting and len(self._live) + len(ready) < self.slots and self._fits(self._waiting[0], ready):
            waiting = self._waiting[0]
            if not waiting.prompt.done() and (self._live or ready or events):
                break
            self._waiting.popleft()
            try:
                prompt = waiting.prompt.result()
            except MedtuneError as error:
                events.append(_failed(waiting.request, error))
                continue
            if self._bound(prompt.request, len(prompt.item["tokens"])) < 1:
                events.append(TokenEvent(prompt.request.id, finished=True, reason="length"))
            else:
                ready.append(prompt)
        return [*events, *self._read(ready)] if ready else events

    def _fits(self, waiting: _Waiting, ready: list[_Prompt]) -> bool:
        """Whether a request may share a forward pass with those that have a row."""
        others = [live.request for live in self._live] + [prompt.request for prompt in ready]
        key = self.extension.group_key
        return not others or key(others[0]) == key(waiting.request)

    def _read(self, prompts: list[_Prompt]) -> list[TokenEvent]:
        """Read prompts together. If that fails, read them one by one, so that only the faulty requests fail."""
        try:
            live, logits = self._prefill(prompts)
        except MedtuneError as error:
            if len(prompts) == 1:
                return [_failed(prompts[0].request, error)]
            return [event for prompt in prompts for event in self._read([prompt])]
        self._live += live
        return self._take(logits, live)

    def _prefill(self, prompts: list[_Prompt]) -> tuple[list[_Live], Tensor]:
        requests = [prompt.request for prompt in prompts]
        made = self.transform.collate([prompt.item for prompt in prompts], pad_side="left")
        plan, prepared = Plan(requests, frozenset()), [prompt.prepared for prompt in prompts]
        batch = PromptBatch(
            plan, requests, made["tokens"], made["padding"], made["vision"], made["vision_mask"], prepared
        ).to(self.device, self.dtype)
        features = self.features(batch)
        batch = self.extension.extend(batch).without_pixels()
        read = read_prompts(batch, self._prefix_keys(batch))
        live = [self._begin(one, prompt) for one, prompt in zip(batch.requests, read, strict=True)]
        columns = max(len(one.prompt.tokens) + one.bound for one in live)
        held = [one.prompt for one in self._live] if self.share_prefix else []
        beginnings = {row: find_beginning(prompt, held, self.transform.image_id) for row, prompt in enumerate(read)}
        fresh = [row for row, beginning in beginnings.items() if beginning is None]
        copied = {row: beginning for row, beginning in beginnings.items() if beginning is not None}
        logits = []
        if fresh:
            fresh, found = self._admit_fresh(batch, features, columns, fresh)
            logits.append(found)
        if copied:
            part, seen = _rows(batch, features, list(copied))
            logits.append(self._decoder.admit_after(part, seen, columns, list(copied.values())))
        return [live[row] for row in (*fresh, *copied)], torch.cat(logits)

    def _admit_fresh(
        self, batch: PromptBatch, features: Tensor | None, columns: int, rows: list[int]
    ) -> tuple[list[int], Tensor]:
        """Read prompts from their first token on; return their rows in the order of the decoder, and logits."""
        part, seen = _rows(batch, features, rows)
        shared = None
        if self.share_prefix:
            keys, image_id = self._prefix_keys(part), self.transform.image_id
            shared = find_shared(part, keys, image_id, whole_images=self.model.whole_images)
        if shared is not None:
            part, seen = _rows(part, seen, shared.order)
            rows = [rows[place] for place in shared.order]
        return rows, self._decoder.admit(part, seen, columns, shared)

    def _prefix_keys(self, batch: PromptBatch) -> list[Hashable]:
        return [(tuple(request.image_keys), self.extension.prefix_key(request)) for request in batch.requests]

    def _begin(self, request: Request, prompt: ReadPrompt) -> _Live:
        bound = self._bound(request, len(prompt.tokens))
        if bound < 1:
            raise DataError(f"request {request.id!r}: its prompt leaves no room for an answer; shorten it")
        return _Live(
            request,
            bound,
            Draws(request.draws_name, request.sampling or self.sampling),
            TextStream(self._decode),
            prompt,
        )

    def _decode(self, tokens: list[int]) -> str:
        return self.transform.decode(tokens)

    def _bound(self, request: Request, length: int) -> int:
        wanted = self.max_new_tokens if request.max_new_tokens is None else request.max_new_tokens
        return min(wanted, self.transform.max_seq_len - length)

    def _prepare(self, request: Request) -> _Prompt:
        """Open and transform; runs in a separate thread."""
        try:
            return _Prompt(request, *self._prompts(request))
        except MedtuneError:
            raise
        except Exception as error:  # an error of an image library must fail this request only
            name = type(error).__name__
            raise DataError(f"request {request.id!r} could not be prepared ({name}); check its images") from error

    def forget_images(self) -> None:
        """Drop images that no request in the engine shows."""
        with self._lock:
            requests = [live.request for live in self._live] + [waiting.request for waiting in self._waiting]
            samples = {(id(request.source), request.sample.images) for request in requests}
            self.features.keep({key for request in requests for key in request.image_keys})
            self._prompts.forget(lambda key: key not in samples)


def _rows(batch: PromptBatch, features: Tensor | None, rows: list[int]) -> tuple[PromptBatch, Tensor | None]:
    """Some rows of a batch and of its features, in the given order."""
    return batch.select(rows), None if features is None else features[rows]


def _failed(request: Request, error: MedtuneError) -> TokenEvent:
    return TokenEvent(request.id, finished=True, reason="error", error=error)
