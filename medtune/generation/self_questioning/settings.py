"""What the policy is told to write, and how its tokens are sampled; the defaults are STLLaVA-Med's."""

from dataclasses import dataclass, field, replace

from medtune.generation.engine.sampling import Sampling


@dataclass(frozen=True)
class Describe:
    """The first turn, which gives the questions their context.

    Attributes:
        prompt: The user's request.
        max_new_tokens: Maximum length of a description.
        sampling: How it is sampled; None is greedy decoding.
    """

    prompt: str = "Describe this image in detail."
    max_new_tokens: int = 1024
    sampling: Sampling | None = None

    def __post_init__(self) -> None:
        _positive("describe.max_new_tokens", self.max_new_tokens)


@dataclass(frozen=True)
class Ask:
    """The questions.

    Attributes:
        count: Questions per image.
        prompt: A request for a question, for models without a virtual user; None opens the virtual user's turn.
        max_new_tokens: Maximum length of a question.
        sampling: How it is sampled; the random numbers of a question depend on the seed, the image's row and its place.
    """

    count: int = 5
    prompt: str | None = None
    max_new_tokens: int = 300
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=1.2, top_k=300, top_p=0.95, seed=0))

    def __post_init__(self) -> None:
        _positive("ask.count", self.count)
        _positive("ask.max_new_tokens", self.max_new_tokens)


@dataclass(frozen=True)
class Answer:
    """The two answers to each question.

    Attributes:
        max_new_tokens: Maximum length of an answer.
        sampling: How both are sampled; its seed is replaced by those of ``seeds``.
        seeds: The seed of each answer.
    """

    max_new_tokens: int = 1024
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=1.2, top_k=100, top_p=0.95))
    seeds: tuple[int, ...] | list[int] = (40, 42)

    def __post_init__(self) -> None:
        _positive("answer.max_new_tokens", self.max_new_tokens)
        if len(self.seeds) != 2 or len(set(self.seeds)) != 2:
            raise ValueError(f"answer.seeds must be two different numbers, got {list(self.seeds)}")

    def sampling_of(self, seed: int) -> Sampling:
        """The sampling of one of the answers."""
        return replace(self.sampling, seed=seed)


@dataclass(frozen=True)
class Settings:
    """All steps."""

    describe: Describe
    ask: Ask
    answer: Answer

    @property
    def texts_per_image(self) -> int:
        """Texts that are written for an image if no question is dropped."""
        return 1 + self.ask.count * (1 + len(self.answer.seeds))


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
