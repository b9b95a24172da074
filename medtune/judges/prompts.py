"""Prompts of judges: text files with a version, whose placeholders are filled in.

A file begins with lines ``# key: value``: ``scale``, the lowest and the highest score, and ``images``, ``yes`` if the
judge is to see them. Packaged files are in ``medtune/assets/judge_prompts``. A packaged file is never changed: another
wording gets another number.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from medtune.config import PACKAGE, nearest
from medtune.data.writing import sha256
from medtune.errors import ConfigError

FOLDER = PACKAGE / "assets" / "judge_prompts"
PAIR = ("question", "answer_1", "answer_2")
"""Placeholders of a prompt that compares two answers."""
_HEADER = re.compile(r"# *(\w+): *(.*?) *")


@dataclass(frozen=True)
class JudgePrompt:
    """A prompt.

    Attributes:
        name: Name of the packaged file, or of the user's file.
        text: Its text with placeholders such as ``{question}``.
        version: Name and first digits of the SHA-256 of the file.
        low: Lowest score.
        high: Highest score.
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
        names = "|".join(map(re.escape, values))
        return re.sub(rf"\{{({names})\}}", lambda match: values[match[1]], self.text)


def read_prompt(name: str, placeholders: Collection[str] = PAIR) -> JudgePrompt:
    """Read a prompt.

    Args:
        name: Name of a packaged prompt such as ``pair-v1``, or path of a text file that ends in ``.txt``.
        placeholders: What its text must contain.

    Raises:
        ConfigError: There is no such prompt, its header is wrong, or a placeholder is missing.
    """
    path = Path(name).expanduser() if name.endswith(".txt") else FOLDER / f"{name}.txt"
    if not path.is_file():
        known = sorted(path.stem for path in FOLDER.glob("*.txt"))
        raise ConfigError(f"there is no prompt {name!r}; {nearest(name, known)}, or give the path of a .txt file")
    try:
        raw = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"the prompt {path} cannot be read as UTF-8 text; save it as such") from None
    lines = raw.splitlines(keepends=True)
    head: dict[str, str] = {}
    while lines and (match := _HEADER.fullmatch(lines[0].rstrip("\r\n"))):
        head[match[1]] = match[2]
        lines.pop(0)
    text = "".join(lines).strip()
    missing = [f"{{{placeholder}}}" for placeholder in placeholders if f"{{{placeholder}}}" not in text]
    if missing:
        raise ConfigError(f"the prompt {path} does not contain {', '.join(missing)}; put it where it belongs")
    low, high = _scale(head, path)
    return JudgePrompt(path.stem, text, f"{path.stem}@{sha256(raw.encode())[:12]}", low, high, _images(head, path))


def _scale(head: Mapping[str, str], path: Path) -> tuple[float, float]:
    try:
        low, high = map(float, head["scale"].split())
    except (KeyError, ValueError):
        low = high = 0.0
    if not low < high:
        raise ConfigError(f"the prompt {path} must begin with a line such as '# scale: 1 10'")
    return low, high


def _images(head: Mapping[str, str], path: Path) -> bool:
    if head.get("images") not in ("yes", "no"):
        raise ConfigError(f"the prompt {path} must begin with a line '# images: yes' or '# images: no'")
    return head["images"] == "yes"
