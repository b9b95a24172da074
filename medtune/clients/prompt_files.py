"""Prompts for served models: text files with a version, whose placeholders are filled in.

A file begins with lines ``# key: value``; the text follows. A packaged file is never changed: another wording gets
another number.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from medtune.config import nearest
from medtune.data.writing import sha256
from medtune.errors import ConfigError

NONE, CUT = "(none)", " [...]"
"""Stands for a text that is absent; marks the end of a text that was cut."""
_HEADER = re.compile(r"# *(\w+): *(.*?) *")


@dataclass(frozen=True)
class PromptFile:
    """A prompt.

    Attributes:
        path: The file.
        text: Its text with placeholders such as ``{question}``.
        version: Name and first digits of the SHA-256 of the file.
        head: Its lines ``# key: value``.
    """

    path: Path
    text: str
    version: str
    head: Mapping[str, str]

    @property
    def name(self) -> str:
        """Name of the file without its ending."""
        return self.path.stem

    def yes(self, key: str) -> bool:
        """Return what a line ``# key: yes`` or ``# key: no`` says.

        Raises:
            ConfigError: There is no such line.
        """
        if self.head.get(key) not in ("yes", "no"):
            raise ConfigError(f"the prompt {self.path} must begin with a line '# {key}: yes' or '# {key}: no'")
        return self.head[key] == "yes"


def filled(text: str, values: Mapping[str, str]) -> str:
    """Return a text with its placeholders replaced; what is filled in is not searched for placeholders."""
    names = "|".join(map(re.escape, values))
    return re.sub(rf"\{{({names})\}}", lambda match: values[match[1]], text)


def read_prompt_file(name: str, folder: Path, placeholders: Collection[str]) -> PromptFile:
    """Read a prompt.

    Args:
        name: Name of a prompt in the folder such as ``pair-v1``, or path of a text file that ends in ``.txt``.
        folder: Packaged prompts.
        placeholders: What its text must contain.

    Raises:
        ConfigError: There is no such prompt, it is no text, or a placeholder is missing.
    """
    path = Path(name).expanduser() if name.endswith(".txt") else folder / f"{name}.txt"
    if not path.is_file():
        known = sorted(path.stem for path in folder.glob("*.txt"))
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
    return PromptFile(path, text, f"{path.stem}@{sha256(raw.encode())[:12]}", head)


def shortened(text: str, limit: int) -> str:
    """Return a text of at most ``limit`` characters, cut before a word; a mark shows the cut."""
    if len(text) <= limit:
        return text
    head = text[: limit - len(CUT)]
    cut = head.rsplit(None, 1)[0] if len(head.split(None, 1)) > 1 else head
    return cut + CUT
