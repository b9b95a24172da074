"""What a generator is asked and what it answers."""

from dataclasses import dataclass

from medtune.data.sample import Sample
from medtune.data.source import SampleSource
from medtune.generation.engine.sampling import Sampling


@dataclass(frozen=True)
class Request:
    """One prompt to be answered.

    Attributes:
        id: Unique within one run; answers carry it.
        sample: The prompt. Messages after its last user turn are not shown to the model.
        source: Opens the images of ``sample``.
        continuations: Texts whose log-probability after the prompt is wanted.
        max_new_tokens: Upper bound of generated tokens, 0 for a request that only wants ``continuations`` scored;
            None takes the generator's own bound.
        sampling: How its tokens are drawn; None takes the generator's own way. ``Sampling(top_k=1)`` is greedy where
            the generator is not.
    """

    id: str
    sample: Sample
    source: SampleSource
    continuations: tuple[str, ...] = ()
    max_new_tokens: int | None = None
    sampling: Sampling | None = None

    @property
    def image_keys(self) -> list[tuple[int, str]]:
        """One key per image; equal keys are the same picture, so that one encoding serves every request about it."""
        return [(id(self.source), path) for path in self.sample.images]


@dataclass(frozen=True)
class Generation:
    """The answer to one request.

    Attributes:
        id: Id of the request.
        text: The generated text, without the stop token.
        tokens: Number of generated tokens, without the stop token.
        stopped: True when the model ended its turn itself, False when it ran into the bound.
        scores: Sum of the log-probabilities of each continuation's tokens.
        score_tokens: Number of tokens of each continuation, so that ``score / tokens`` is the mean per token.
    """

    id: str
    text: str
    tokens: int
    stopped: bool
    scores: tuple[float, ...] = ()
    score_tokens: tuple[int, ...] = ()
