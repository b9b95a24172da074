"""Checks whether the values of a config match the type annotations of the callable that they are passed to.

Only types that YAML can express are checked: numbers, texts, booleans, null, lists and mappings. An annotation with any
other type, or one that cannot be read, accepts every value.
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
"""Used for a parameter without annotation whose default is a float; only a text is refused."""
YAML_VALUES = (bool, int, float, str, type(None), list, tuple, dict)
SCALARS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "null"}
LISTS = (list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
PATHS = (Path, os.PathLike)
MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


def argument_hints(target: Callable[..., Any]) -> dict[str, Any]:
    """Return parameter -> annotation of a function or of a class's constructor; empty if they cannot be read.

    A parameter without an annotation whose default is a float counts as a number: older optimizers declare their
    learning rate in this way.
    """
    called: Any = target.__init__ if inspect.isclass(target) else target
    try:
        hints = typing.get_type_hints(called)
    except Exception:  # a name that only type checkers know, or a callable without annotations
        hints = {}
    hints.pop("return", None)
    for name, parameter in inspect.signature(target).parameters.items():
        if name not in hints and type(parameter.default) is float:
            hints[name] = NUMBER
    return hints


def check_value(value: Any, hint: Any, place: Place) -> None:
    """Refuse a value that does not fit.

    Raises:
        ConfigError: One sentence with file, key, expected type and given value.
    """
    if not fits(value, hint):
        raise ConfigError(f"{place}: expected {describe(hint)}, got {value!r}{_remedy(value, hint)}")


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value from YAML matches an annotation."""
    if not isinstance(value, YAML_VALUES):  # set by a program, not by YAML
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
    """Return whether YAML cannot express a type: no tensor in YAML, so that ``float | Tensor`` requires a number."""
    return getattr(hint, "__module__", "") in ("torch", "torch._tensor") and getattr(hint, "__name__", "") == "Tensor"


def describe(hint: Any) -> str:
    """Describe an annotation in words."""
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
    """Return a hint how to write the value that is probably meant."""
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return ""
        return f"; write {number!r} without quotes" if math.isfinite(number) and fits(number, hint) else ""
    if isinstance(value, bool | int | float) and hint is not NUMBER and fits("", hint):
        return "; write it in quotes"
    return ""
