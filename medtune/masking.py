"""Masking of credentials before values are written: by the name of the key, or by the form of the value."""

import re
from collections.abc import Mapping
from typing import Any

MASK = "***"
_LAST = {"key", "token", "apikey", "auth", "cookie", "bearer", "passphrase"}
_ANYWHERE = {"secret", "secrets", "password", "passwd", "pwd", "authorization", "credential", "credentials"}
_HEADERS = {"header", "headers"}
# `image_token` is a token of a vocabulary and `label_key` a column: they affect the run and must stay comparable.
_HARMLESS = {
    "answer", "begin", "bos", "cls", "column", "end", "eos", "id", "image", "label", "mask", "pad", "placeholder",
    "question", "sep", "sort", "special", "start", "stop", "text", "unk",
}  # fmt: skip
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_IN_ADDRESS = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_INTERPOLATION = re.compile(r"(?:(?:Bearer|Basic) )?\$\{[^},]*\}")
_LOOKS = re.compile(r"^(?:Bearer|Basic)\s+\S+$|^(?:sk|pk|hf|gh[opsu]|xox[abp]|glpat)[-_][A-Za-z0-9_-]{16,}$", re.I)


class FromEnvironment(str):
    """A text of a config that depends on environment variables.

    It is used like any text; its ``repr``, which error messages show, is what the config says.

    Attributes:
        written: The text with its ``${...}``.
        variables: Names of the variables.
    """

    written: str
    variables: tuple[str, ...]

    def __new__(cls, value: str, written: str, variables: tuple[str, ...]) -> "FromEnvironment":
        """A text with the two attributes."""
        text = super().__new__(cls, value)
        text.written, text.variables = written, variables
        return text

    def __repr__(self) -> str:
        return repr(self.written)

    def __reduce__(self) -> tuple[Any, ...]:
        return FromEnvironment, (str(self), self.written, self.variables)


def masked(value: Any) -> Any:
    """Return a plain tree with ``***`` in place of values that may be credentials.

    These values are masked: values whose key ends in ``key``, ``token``, ``auth`` and similar words, or contains
    ``secret``, ``password``, ``authorization`` or ``credential``; every value below a key for headers; user names and
    passwords in URLs; texts in the format of well-known API keys; and texts from an environment variable with such a
    name, which become what the config says. The name of an environment variable
    (``api_key_env``) is not masked.

    Args:
        value: Mappings, lists and scalars from :func:`medtune.config.to_plain`. It is not changed.
    """
    if isinstance(value, Mapping):
        return {name: _masked_entry(str(name), inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [masked(inner) for inner in value]
    if isinstance(value, FromEnvironment) and any(map(is_credential, value.variables)):
        return value.written
    if isinstance(value, str):
        return MASK if _LOOKS.match(value) else _IN_ADDRESS.sub(MASK, value)
    return value


def is_credential(name: str) -> bool:
    """Return whether the value of a key with this name may be a credential."""
    words = [word.lower() for word in _WORD.findall(name)]
    if not words or words[-1] == "env":
        return False
    if _ANYWHERE.intersection(words):
        return True
    return words[-1] in _LAST and not (len(words) > 1 and words[-2] in _HARMLESS)


def _masked_entry(name: str, value: Any) -> Any:
    words = {word.lower() for word in _WORD.findall(name)}
    return _all_masked(value) if is_credential(name) or words & _HEADERS else masked(value)


def _all_masked(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _all_masked(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_all_masked(inner) for inner in value]
    if value is None or isinstance(value, bool) or value == "" or _INTERPOLATION.fullmatch(str(value)):
        return value  # an interpolation names a variable and is no credential
    return MASK
