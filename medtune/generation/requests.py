"""Requests to a generator, and its answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from medtune.data.sample import Sample
from medtune.data.source import SampleSource
from medtune.generation.engine.sampling import Sampling


@dataclass(frozen=True)
class Request:
    """One prompt to answer.

    Attributes:
        id: Unique within one run; answers carry it.
        sample: The prompt. Messages after its last user turn are not shown to the model.
        source: Opens the images of ``sample``.
        continuations: Texts whose log-probability after the prompt is computed.
        max_new_tokens: Maximum number of generated tokens; 0 if only ``continuations`` are scored. None takes the
            generator's maximum.
        sampling: How its tokens are sampled; None takes the generator's setting. ``Sampling(top_k=1)`` gives greedy
            decoding even if the generator samples.
        draws_as: Name that its random numbers depend on, in addition to the seed; None takes the id. Requests with
            different ids, but with equal prompts, settings and ``draws_as``, get the same answer.
        notes: What was decided about the request before it was asked, such as the adapter that answers it, by name.
            A prompt extension may read them; the answer carries them. Values of JSON.
    """

    id: str
    sample: Sample
    source: SampleSource
    continuations: tuple[str, ...] = ()
    max_new_tokens: int | None = None
    sampling: Sampling | None = None
    draws_as: str | None = None
    notes: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def draws_name(self) -> str:
        """Name of the stream of its random numbers."""
        return self.id if self.draws_as is None else self.draws_as

    @property
    def image_keys(self) -> list[tuple[int, str]]:
        """One key per image. Equal keys mean the same image, so it is encoded once for all requests that show it."""
        return [(id(self.source), path) for path in self.sample.images]


@dataclass(frozen=True)
class Generation:
    """The answer to one request.

    Attributes:
        id: Id of the request.
        text: The generated text, without the stop token.
        tokens: Number of generated tokens, without the stop token.
        stopped: True if the model wrote a stop token, False if the answer reached the maximum length.
        scores: Sum of the log-probabilities of each continuation's tokens.
        score_tokens: Number of tokens of each continuation, so that ``score / tokens`` is the mean per token.
        notes: The notes of the request.
    """

    id: str
    text: str
    tokens: int
    stopped: bool
    scores: tuple[float, ...] = ()
    score_tokens: tuple[int, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict, hash=False)
