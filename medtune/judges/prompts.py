"""Prompts of judges: text files with a version, whose placeholders are filled in.

A file begins with lines ``# key: value``: ``scale``, the lowest and the highest score, if the reply holds scores, and
``images``, ``yes`` if the judge is to see them. Packaged files are in ``medtune/assets/judge_prompts``. A packaged file
is never changed: another wording gets another number.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from medtune.clients.prompt_files import PromptFile, filled, read_prompt_file
from medtune.config import PACKAGE
from medtune.errors import ConfigError

FOLDER = PACKAGE / "assets" / "judge_prompts"
PAIR = ("question", "answer_1", "answer_2")
"""Placeholders of a prompt that compares two answers."""
CONTEXT = ("reference", "caption", "mentions")
"""Placeholders of what a prompt may show beside the answers."""


@dataclass(frozen=True)
class JudgePrompt:
    """A prompt.

    Attributes:
        name: Name of the packaged file, or of the user's file.
        text: Its text with placeholders such as ``{question}``.
        version: Name and first digits of the SHA-256 of the file.
        low: Lowest score; 0 if the reply holds no scores.
        high: Highest score; 0 if the reply holds no scores.
        images: Whether the judge is to see the images.
    """

    name: str
    text: str
    version: str
    low: float
    high: float
    images: bool

    def filled(self, values: Mapping[str, str]) -> str:
        """Return the text with its placeholders replaced; what is filled in is not searched for placeholders."""
        return filled(self.text, values)

    def shows(self, placeholder: str) -> bool:
        """Return whether the text has a placeholder."""
        return f"{{{placeholder}}}" in self.text


def read_prompt(
    name: str, placeholders: Collection[str] = PAIR, scored: bool = True, folder: Path = FOLDER
) -> JudgePrompt:
    """Read a prompt.

    Args:
        name: Name of a packaged prompt such as ``pair-v1``, or path of a text file that ends in ``.txt``.
        placeholders: What its text must contain.
        scored: Whether the reply holds scores, so that the header must name their scale.
        folder: Packaged prompts.

    Raises:
        ConfigError: There is no such prompt, its header is wrong, or a placeholder is missing.
    """
    file = read_prompt_file(name, folder, placeholders)
    low, high = _scale(file) if scored else (0.0, 0.0)
    return JudgePrompt(file.name, file.text, file.version, low, high, file.yes("images"))


def _scale(file: PromptFile) -> tuple[float, float]:
    try:
        low, high = map(float, file.head["scale"].split())
    except (KeyError, ValueError):
        low = high = 0.0
    if not low < high:
        raise ConfigError(f"the prompt {file.path} must begin with a line such as '# scale: 1 10'")
    return low, high
