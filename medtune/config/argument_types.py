"""Whether the values of a config fit the annotations of the callable that they are written for.

Only what YAML can hold is judged: numbers, texts, truth values, null, lists and mappings. An annotation that speaks of
anything else, or that cannot be read, lets every value through.
"""

import collections.abc
import inspect
import math
import os
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from medtune.config.composition import Place
from medtune.errors import ConfigError

NUMBER = typing.Annotated[float, "told by the default"]
"""Stands for a missing annotation of a parameter whose default is a float; only a text is refused."""
YAML_VALUES = (bool, int, float, str, type(None), list, tuple, dict)
SCALARS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "null"}
LISTS = (list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
PATHS = (Path, os.PathLike)
MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


def argument_hints(target: Callable[..., Any]) -> dict[str, Any]:
    """Parameter -> annotation of a function or of a class's constructor; empty where they cannot be read.

    A parameter without an annotation whose default is a float counts as a number: that is how optimizers written
    before annotations take their learning rate.
    """
    called: Any = target.__init__ if inspect.isclass(target) else target
    try:
        hints = typing.get_type_hints(called)
    except Exception:  # a name known to type checkers only, or a callable without annotations
        hints = {}
    hints.pop("return", None)
    for name, parameter in inspect.signature(target).parameters.items():
        if name not in hints and type(parameter.default) is float:
            hints[name] = NUMBER
    return hints


def check_value(value: Any, hint: Any, place: Place) -> None:
    """Refuse a value that does not fit.

    Raises:
        ConfigError: One sentence with file, key, what is expected and what is written.
    """
    if not fits(value, hint):
        raise ConfigError(f"{place}: expected {describe(hint)}, got {value!r}{_remedy(value, hint)}")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value of YAML can be meant by an annotation."""
    if not isinstance(value, YAML_VALUES):  # put there by a program
        return True
    if hint is NUMBER:
        return not isinstance(value, str)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is typing.Annotated:
        return fits(value, arguments[0])
    if origin in (Union, types.UnionType):
        return any(fits(value, option) for option in arguments)
    if origin is Literal:
        return any(type(value) is type(option) and value == option for option in arguments)
    if _writes_no_yaml(hint):
        return False
    kind = origin or hint
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is None or kind in SCALARS:
        return type(value) is (type(None) if kind is None else kind)
    if kind in PATHS:
        return isinstance(value, str)
    if kind in LISTS:
        return isinstance(value, list | tuple) and _items_fit(value, kind, arguments)
    if kind in MAPPINGS:
        return isinstance(value, dict) and all(
            fits(key, arguments[0]) and fits(item, arguments[1]) for key, item in value.items() if len(arguments) == 2
        )
    return True


def _items_fit(value: Any, kind: Any, arguments: tuple[Any, ...]) -> bool:
    if not arguments:
        return True
    if kind is tuple and arguments[-1] is not Ellipsis:
        return len(value) == len(arguments) and all(map(fits, value, arguments))
    return all(fits(item, arguments[0]) for item in value)


def _writes_no_yaml(hint: Any) -> bool:
    """A tensor cannot be written in YAML, so that ``float | Tensor`` asks for a number."""
    return getattr(hint, "__module__", "") in ("torch", "torch._tensor") and getattr(hint, "__name__", "") == "Tensor"


def describe(hint: Any) -> str:
    """An annotation in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is typing.Annotated:
        return describe(arguments[0])
    if origin in (Union, types.UnionType):
        words = [describe(option) for option in arguments if not _writes_no_yaml(option)]
        return " or ".join(dict.fromkeys(words))
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arguments))
    kind = type(None) if hint is None else origin or hint
    if kind in SCALARS:
        return SCALARS[kind]
    if kind is tuple and arguments and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)} items ({', '.join(map(describe, arguments))})"
    if kind in PATHS:
        return "a path"
    if kind in LISTS:
        return f"a list, each item {describe(arguments[0])}" if arguments else "a list"
    if kind in MAPPINGS:
        return f"a mapping, each value {describe(arguments[1])}" if len(arguments) == 2 else "a mapping"
    return str(getattr(hint, "__name__", hint))


def _remedy(value: Any, hint: Any) -> str:
    """How to write what is probably meant."""
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return ""
        return f"; write {number!r} without quotes" if math.isfinite(number) and fits(number, hint) else ""
    if isinstance(value, bool | int | float) and hint is not NUMBER and fits("", hint):
        return "; write it in quotes"
    return ""
