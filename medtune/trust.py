"""Which callables a config may name where medtune reads configs that the user need not have written.

A recipe runs its user's own config, and calls whatever that names. ``medtune plan`` and ``medtune export`` are also
used to look at a stranger's config or run. Within :func:`trusting`, only components of the packages below can be
called, and those of modules that the user names.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

from medtune.errors import ConfigError

TRUSTED = (
    "torch.optim",
    "torch.nn",
    "torchtune.models",
    "torchtune.modules",
    "torchtune.training.metric_logging",
    "torchao.optim",
    "bitsandbytes.optim",
    "medtune",
)
# Parts of medtune that start programs, write files or call other components.
_EXCEPT = (
    "medtune.cli",
    "medtune.config",
    "medtune.data.folders",
    "medtune.data.writing",
    "medtune.export",
    "medtune.recipes",
    "medtune.sweep",
    "medtune.trust",
)
_named: ContextVar[tuple[str, ...] | None] = ContextVar("named", default=None)


@contextmanager
def trusting(modules: Sequence[str] = ()) -> Iterator[None]:
    """Restrict components to the trusted packages and to ``modules``, added to those of an outer context."""
    token = _named.set((*(_named.get() or ()), *modules))
    try:
        yield
    finally:
        _named.reset(token)


def check_path(path: str, where: str) -> None:
    """Refuse a component before its module is imported.

    Args:
        path: its dotted path, with old names resolved.
        where: for the message.

    Raises:
        ConfigError: if components are restricted and this one is neither of a trusted package nor of a named module.
    """
    named = _named.get()
    if named is None or _within(path, named) or (_within(path, TRUSTED) and not _within(path, _EXCEPT)):
        return
    raise ConfigError(
        f"{where}: {path} is not called, because it is no component of torch, torchtune, torchao, bitsandbytes or "
        f"medtune; if you trust its code, add --trust {path.rpartition('.')[0] or path}"
    )


def check_found(path: str, found: Any, where: str) -> None:
    """Refuse an object of a trusted module that was defined elsewhere, such as a function that it imports.

    Raises:
        ConfigError: as for :func:`check_path`.
    """
    named = _named.get()
    if named is None or _within(path, named):
        return
    inner = found.func if isinstance(found, partial) else found
    home = "" if inspect.ismodule(inner) else str(getattr(inner, "__module__", None) or "")
    if home.partition(".")[0] not in {trusted.partition(".")[0] for trusted in TRUSTED} or _within(home, _EXCEPT):
        raise ConfigError(f"{where}: {path} is not called, because it is not a component of the package that names it")


def _within(path: str, modules: Sequence[str]) -> bool:
    return any(path == module or path.startswith(f"{module}.") for module in modules)
