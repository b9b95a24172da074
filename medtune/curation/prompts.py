"""The request for a conversation: a versioned prompt, demonstrations as text, the figure's texts, and its image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from PIL import Image

from medtune.clients.messages import ChatRequest, SamplingAt, content
from medtune.clients.prompt_files import NONE, PromptFile, filled, read_prompt_file, shortened
from medtune.config import PACKAGE
from medtune.curation.demonstrations import Demonstration, Demonstrations
from medtune.curation.figures import Figure
from medtune.errors import ConfigError

FOLDER = PACKAGE / "assets" / "curation_prompts"
PLACEHOLDERS = ("demonstrations", "caption", "mentions")


@dataclass(frozen=True)
class Writing:
    """How the generator is asked.

    Attributes:
        prompt: Name of a packaged prompt, or path of a ``.txt`` file: ``conversation-v1`` asks for conversations,
            ``candidates-v1`` for two answers to each question, ``conversation_text-v1`` shows no image.
        rounds: How many questions it asks for, as the prompt says it.
        temperature: Sampling temperature; 0 is greedy.
        top_p: Least sum of the probabilities of the kept tokens.
        seed: Seed of the sampling.
        max_tokens: Maximum number of tokens of a reply; null leaves it to the server.
        text_limit: Most characters of a caption, and of the mentions together, that a prompt shows.
        min_turns: A reply with fewer questions is kept aside.

    Raises:
        ConfigError: There is no such prompt, or its header is wrong.
        ValueError: A number is out of range.
    """

    prompt: str = "conversation-v1"
    rounds: str = "4 or 5"
    temperature: float = 0.7
    top_p: float = 1.0
    seed: int = 0
    max_tokens: int | None = 4096
    text_limit: int = 6000
    min_turns: int = 1

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or (self.max_tokens is not None and self.max_tokens < 1):
            raise ValueError(
                "temperature must not be negative, top_p must be above 0 and at most 1, max_tokens positive"
            )
        if self.text_limit < 100 or self.min_turns < 1:
            raise ValueError("text_limit must be at least 100, min_turns at least 1")
        assert self.answers

    @cached_property
    def file(self) -> PromptFile:
        """The prompt."""
        return read_prompt_file(self.prompt, FOLDER, PLACEHOLDERS)

    @cached_property
    def looks(self) -> bool:
        """Whether the image is attached."""
        return self.file.yes("images")

    @cached_property
    def answers(self) -> int:
        """Answers to each question."""
        if self.file.head.get("answers") not in ("1", "2"):
            raise ConfigError(f"the prompt {self.file.path} must have a line '# answers: 1' or '# answers: 2'")
        return int(self.file.head["answers"])

    @property
    def version(self) -> str:
        """Name and version of the prompt."""
        return self.file.version

    def identity(self) -> dict[str, Any]:
        """Return everything of it that decides a request; how a reply is read is applied afterwards."""
        return {
            "prompt": self.version,
            "rounds": self.rounds,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "max_tokens": self.max_tokens,
            "text_limit": self.text_limit,
        }


@dataclass(frozen=True)
class Requests:
    """Makes the requests of a run.

    Attributes:
        writing: How the generator is asked.
        demonstrations: Where the examples are drawn from.
    """

    writing: Writing
    demonstrations: Demonstrations

    def of(self, figure: Figure, open_image: Callable[[], Image.Image]) -> ChatRequest:
        """Return the request for a figure; the image is opened only if the prompt shows it.

        Raises:
            DataError: The image cannot be opened.
        """
        how = self.writing
        shown = self.demonstrations.drawn(figure)
        text = filled(
            how.file.text,
            {
                "demonstrations": demonstrated(shown, how.text_limit),
                "caption": shortened(figure.caption, how.text_limit),
                "mentions": shortened(" ".join(figure.mentions), how.text_limit) or NONE,
                "rounds": how.rounds,
            },
        )
        parts: list[str | Image.Image] = [open_image(), text] if how.looks else [text]
        sampling = SamplingAt(how.temperature, how.top_p, seed=how.seed) if how.temperature else None
        return ChatRequest(figure.id, [{"role": "user", "content": content(parts)}], sampling, how.max_tokens)

    def cuts(self, figure: Figure) -> bool:
        """Whether a text of the figure is shortened in its request."""
        return max(len(figure.caption), len(" ".join(figure.mentions))) > self.writing.text_limit


def demonstrated(demonstrations: Sequence[Demonstration], limit: int) -> str:
    """Return demonstrations as text."""
    blocks = []
    for number, one in enumerate(demonstrations, start=1):
        mentions = shortened(" ".join(one.figure.mentions), limit) or NONE
        lines = [f"<example_{number}>", f"Caption: {shortened(one.figure.caption, limit)}"]
        lines += [f"Sentences that mention it: {mentions}"]
        for question, answer in one.turns:
            lines += [f"User: {question}", f"Assistant: {answer}"]
        blocks.append("\n".join([*lines, f"</example_{number}>"]))
    return "\n\n".join(blocks) or NONE
