"""Values of a config that come from environment variables: resolved for use, as written for files and logs."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf

from medtune.masking import FromEnvironment

_OPENING = re.compile(r"(\\*)\$\{")
_VARIABLE = re.compile(r"\$\{\s*oc\.env\s*:\s*([^,}\s]+)")


def resolved(tree: Any) -> Any:
    """Return an OmegaConf tree as plain values with ``${...}`` resolved.

    A text that depends on an environment variable, directly or through a reference to another key, becomes a
    :class:`medtune.masking.FromEnvironment`: the value, which also knows what was written.

    Raises:
        OmegaConfBaseException: If an interpolation cannot be resolved.
    """
    written, plain = OmegaConf.to_container(tree, resolve=False), OmegaConf.to_container(tree, resolve=True)
    pairs = [(text, value) for text, value in _pairs(written, plain) if _VARIABLE.search(text)]
    secrets = {value: tuple(_VARIABLE.findall(text)) for text, value in pairs if value}
    return _marked(written, plain, secrets)


def _pairs(written: Any, plain: Any) -> Iterator[tuple[str, str]]:
    """Yield (text as written, text as resolved) of every text."""
    if isinstance(written, str):
        for value in _texts(plain):
            yield written, value
    elif isinstance(written, dict) and isinstance(plain, dict):
        for key, inner in written.items():
            yield from _pairs(inner, plain[key])
    elif isinstance(written, list) and isinstance(plain, list):
        for one, other in zip(written, plain, strict=True):
            yield from _pairs(one, other)


def _texts(plain: Any) -> Iterator[str]:
    if isinstance(plain, str):
        yield plain
    elif isinstance(plain, dict | list):
        for inner in plain.values() if isinstance(plain, dict) else plain:
            yield from _texts(inner)


def _marked(written: Any, plain: Any, secrets: Mapping[str, tuple[str, ...]]) -> Any:
    if isinstance(plain, dict):
        inner = written if isinstance(written, dict) else dict.fromkeys(plain, written)
        return {key: _marked(inner[key], value, secrets) for key, value in plain.items()}
    if isinstance(plain, list):
        items = written if isinstance(written, list) else [written] * len(plain)
        return [_marked(one, value, secrets) for one, value in zip(items, plain, strict=True)]
    if isinstance(plain, str) and isinstance(written, str) and "${" in written:
        names = [name for secret, names in secrets.items() if secret in plain for name in names]
        if names:
            return FromEnvironment(plain, written, tuple(dict.fromkeys(names)))
    return plain


def to_written(plain: Any) -> Any:
    """Return plain values with every :class:`FromEnvironment` as it was written."""
    return _mapped(plain, lambda value: value.written if isinstance(value, FromEnvironment) else value)


def literal(plain: Any) -> Any:
    """Return plain values in which ``${...}`` is text for OmegaConf too; a :class:`FromEnvironment` stays as it is."""
    return _mapped(plain, lambda value: value if isinstance(value, FromEnvironment) else _escaped(value))


def _mapped(plain: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(plain, Mapping):
        return {key: _mapped(value, change) for key, value in plain.items()}
    if isinstance(plain, list | tuple):
        return [_mapped(value, change) for value in plain]
    return change(plain)


def _escaped(value: Any) -> Any:
    # A backslash before "${" is an escape itself, so it is doubled.
    return _OPENING.sub(lambda found: 2 * found[1] + "\\${", value) if isinstance(value, str) else value
