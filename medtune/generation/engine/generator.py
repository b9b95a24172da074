"""Batched answers of a VLM: prompts left-padded, images encoded once, one prefill, then one token per step.

A request's answer does not depend on the other requests of its batch: padding is masked, positions count real tokens,
and an image's embeddings depend only on the image. Greedy answers equal those of single requests, and those without a
cache.
"""

from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

import torch
from torch import Tensor
from torchtune.modules.common_utils import disable_kv_cache

from medtune.data.sample import Message, Sample
from medtune.errors import ConfigError, DataError
from medtune.generation.engine.batches import Plan, PromptBatch, ahead
from medtune.generation.engine.decoding import CachedDecoder
from medtune.generation.engine.features import FeatureStore
from medtune.generation.engine.packed_decoding import PackedDecoder
from medtune.generation.engine.planning import PlanKeys, Planner, WindowPlanner
from medtune.generation.engine.prefixes import SharedPrefixes, find_shared
from medtune.generation.engine.prompts import PromptMaker
from medtune.generation.engine.sampling import Sampler, Sampling
from medtune.generation.engine.scoring import score_continuations
from medtune.generation.interfaces import AnswerModel, PromptTransform
from medtune.generation.prompt_extension import NoExtension, PromptExtension
from medtune.generation.requests import Generation, Request

# Eight images are 50,000 tokens for the encoder of an 11B model; more would cost memory and bring no speed.
ENCODED_AT_ONCE = 8


@dataclass
class Answer:
    """The answer of one row so far.

    Attributes:
        bound: Maximum number of tokens.
        tokens: Tokens so far, without the stop token.
        stopped: True after a stop token.
    """

    bound: int
    tokens: list[int] = field(default_factory=list)
    stopped: bool = False

    @property
    def running(self) -> bool:
        """Whether another token is needed."""
        return not self.stopped and len(self.tokens) < self.bound

    def take(self, token: int, stop_ids: frozenset[int]) -> None:
        """Add a token, or end at a stop token; a row that has ended ignores it."""
        if self.running:
            self.stopped = token in stop_ids
            if not self.stopped:
                self.tokens.append(token)


class Generator:
    """Answers requests, one batch at a time.

    Args:
        model: A VLM on ``device`` in ``dtype``. After a call it is in the same mode as before and has no caches.
        transform: The model's transform; its ``collate`` makes batches.
        batch_size: Requests per batch.
        max_new_tokens: Maximum number of generated tokens for requests that set none.
        device: Device of the model.
        dtype: Type of pixels and caches.
        sampling: Sampling for requests that set none; None for greedy answers.
        window: Batches whose requests are sorted together, by answer and prompt length; larger means less padding.
        extension: The part that a method adds to prompts, such as VITask's exemplars; None leaves prompts unchanged.
        on_error: Called with a request whose sample or image cannot be used, which is then skipped; None raises.
        share_prefix: Read a prefix that several prompts of a batch share (for example, one image) only once. Answers
            stay the same.
        planner: Forms the batches; None sorts windows of ``window * batch_size`` requests.

    Attributes:
        keeps_images: Whether it is inside :meth:`keeping_images`.

    Raises:
        ConfigError: For sizes below one.
    """

    def __init__(
        self,
        model: AnswerModel,
        transform: PromptTransform,
        *,
        batch_size: int = 16,
        max_new_tokens: int = 64,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        sampling: Sampling | None = None,
        window: int = 8,
        extension: PromptExtension | None = None,
        on_error: Callable[[Request, DataError], None] | None = None,
        share_prefix: bool = True,
        planner: Planner | None = None,
    ) -> None:
        if batch_size < 1 or max_new_tokens < 0 or window < 1:
            raise ConfigError(
                f"batch_size {batch_size}, max_new_tokens {max_new_tokens} or window {window} is too small"
            )
        self.model, self.transform = model, transform
        self.max_new_tokens, self.share_prefix = max_new_tokens, share_prefix
        self.planner: Planner = planner or WindowPlanner(batch_size, window)
        self.device, self.dtype = torch.device(device), dtype
        self.sampling, self.on_error = sampling, on_error
        self.extension = extension or NoExtension()
        self.features = FeatureStore(model, ENCODED_AT_ONCE, self.extension)
        self._prompts = PromptMaker(transform, self.extension)
        self._beginnings: dict[int, int] = {}
        self.keeps_images = False
        self._decoder = CachedDecoder(model, self.device, dtype, self.extension.before_forward)

    @property
    def images_encoded(self) -> int:
        """Number of images that were encoded so far."""
        return self.features.encoded

    @property
    def tokens_read(self) -> int:
        """Prompt tokens that the decoder has read so far; a shared prefix counts once."""
        return self._decoder.tokens_read

    def __call__(self, requests: Iterable[Request], done: Container[str] = frozenset()) -> Iterator[Generation]:
        """Answer requests. Within a window answers may come in another order than the requests; match them by id.

        Args:
            requests: Any iterable; it is read one window at a time.
            done: Ids to skip. The remaining requests are in the same windows as without ``done``; within one, batches
                may differ, and with them the last bits of bf16.

        Raises:
            DataError: If a sample or image cannot be used and there is no ``on_error``, or if an id occurs twice.
        """
        return chain.from_iterable(self.batches(requests, done))

    def batches(self, requests: Iterable[Request], done: Container[str] = frozenset()) -> Iterator[list[Generation]]:
        """Answer requests as :meth:`__call__` does, but yield one list per batch."""
        plans = self.planner(requests, PlanKeys(self._order, self.extension.group_key, self._together), done)
        with self._answering(), closing(ahead(self._prepare, plans)) as prepared:
            for batch in prepared:
                if batch is not None:
                    yield self._answer(batch.to(self.device, self.dtype))

    @contextmanager
    def keeping_images(self) -> Iterator[None]:
        """Keep every image that is opened and encoded until the end of the context, for later requests that show it.

        Without it an image is dropped after its last request of a window, and all are dropped at the end of a stream.
        The requests must have the same ``source`` object.
        """
        self.keeps_images = True
        try:
            yield
        finally:
            self.keeps_images = False
            self._forget_images()

    def _forget_images(self) -> None:
        self.features.clear()
        self._prompts.forget(lambda key: True)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        training = self.model.training
        self.model.train(False)
        try:
            yield
        finally:
            self.model.train(training)
            self._decoder.close()
            if not self.keeps_images:
                self._forget_images()

    def _order(self, request: Request) -> tuple[int, int]:
        return self._bound(request), self.transform.token_count(request.sample)

    def _together(self, request: Request) -> Hashable:
        """Return a key; requests with equal keys should share a batch: same images, which are most of the prompt."""
        whole = self.transform.token_count(request.sample)
        if not self.share_prefix or 2 * self._beginning(len(request.image_keys)) < whole:
            return request.id
        return self._bound(request), self._prefix_key(request)

    def _beginning(self, images: int) -> int:
        """Return the number of tokens that any two prompts on the same images have in common."""
        if images not in self._beginnings:
            blank = Sample("blank", ("",) * images, (Message("user", ""),))
            self._beginnings[images] = self.transform.token_count(blank)
        return self._beginnings[images]

    def _prefix_key(self, request: Request) -> Hashable:
        return tuple(request.image_keys), self.extension.prefix_key(request)

    def _bound(self, request: Request) -> int:
        return self.max_new_tokens if request.max_new_tokens is None else request.max_new_tokens

    def _prepare(self, plan: Plan) -> PromptBatch | None:
        """Open, transform and collate; runs in a separate thread."""
        kept, items, prepared = [], [], []
        for request in plan.requests:
            try:
                item, made = self._prompts(request)
                prepared.append(made)
                items.append(item)
                kept.append(request)
            except DataError as error:
                if self.on_error is None:
                    raise
                self.on_error(request, error)
        if not self.keeps_images:
            self._prompts.forget(lambda key: any((key[0], path) in plan.last for path in key[1]))
        if not kept:
            return None
        batch = self.transform.collate(items, pad_side="left")
        return PromptBatch(
            plan,
            kept,
            batch["tokens"],
            batch["padding"],
            batch["vision"],
            batch["vision_mask"],
            prepared,
        )

    @torch.inference_mode()
    def _answer(self, batch: PromptBatch) -> list[Generation]:
        features = self.features(batch)
        batch = self.extension.extend(batch).without_pixels()
        answers = self._generate(batch, features)
        continuations = [[self._encode(text, r) for text in r.continuations] for r in batch.requests]
        scores = self._score(batch, features, continuations)
        if not self.keeps_images:
            self.features.drop(batch.plan.last)
        return [
            Generation(
                request.id,
                self.transform.decode(answer.tokens),
                len(answer.tokens),
                answer.stopped,
                tuple(row_scores),
                tuple(map(len, texts)),
                request.notes,
            )
            for request, answer, row_scores, texts in zip(batch.requests, answers, scores, continuations, strict=True)
        ]

    def _score(self, batch: PromptBatch, features: Tensor | None, continuations: list[list[list[int]]]) -> list[list]:
        with disable_kv_cache(self.model) if self.model.caches_are_setup() else nullcontext():
            return score_continuations(
                self.model,
                [batch.prompt(row) for row in range(len(batch.requests))],
                batch.vision_mask,
                features,
                continuations,
                pad_id=self.transform.pad_id,
                max_seq_len=self.transform.max_seq_len,
                exemplars=batch.override,
                before_forward=lambda rows: self.extension.before_forward([batch.requests[row] for row in rows]),
            )

    def _encode(self, text: str, request: Request) -> list[int]:
        tokens = self.transform.encode(text)
        if not tokens:
            raise DataError(f"request {request.id!r} has a continuation without tokens; remove the empty option")
        return tokens

    def _generate(self, batch: PromptBatch, features: Tensor | None) -> list[Answer]:
        answers = [
            Answer(min(self._bound(request), self.transform.max_seq_len - length))
            for request, length in zip(batch.requests, batch.lengths, strict=True)
        ]
        if not any(answer.running for answer in answers):
            return answers
        shared = self._shared(batch)
        order = shared.order if shared else list(range(len(answers)))
        if shared:
            batch, features = batch.select(order), None if features is None else features[order]
        rows = [answers[row] for row in order]
        chooser = Sampler([r.draws_name for r in batch.requests], [r.sampling or self.sampling for r in batch.requests])
        stop_ids = frozenset(self.transform.stop_ids)
        longest = max(answer.bound for answer in answers)
        limit = self.transform.max_seq_len
        step: Callable[[Sequence[int]], Tensor]
        if shared:
            packed = PackedDecoder(self._decoder, limit)
            step, logits = packed.step, packed.prefill(batch, features, longest, shared)
        else:
            step = partial(self._decoder.step, limit=limit)
            logits = self._decoder.prefill(batch, features, longest)
        while True:
            chosen = chooser(logits).tolist()
            for answer, token in zip(rows, chosen, strict=True):
                answer.take(token, stop_ids)
            if not any(answer.running for answer in answers):
                return answers
            logits = step(chosen)

    def _shared(self, batch: PromptBatch) -> SharedPrefixes | None:
        if not self.share_prefix:
            return None
        keys = [self._prefix_key(request) for request in batch.requests]
        return find_shared(batch, keys, self.transform.image_id, whole_images=self.model.whole_images)
