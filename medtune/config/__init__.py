"""Configs: a YAML file read into a typed dataclass. An unknown key is an error that names the most similar key.

``torchtune`` accepts any key silently, so that ``gradient_acumulation_steps=4`` runs and does nothing. Here the
dataclass of a recipe defines everything: its fields, their types and their checks. Nodes with a ``_component_`` hold a
dotted path and the arguments of one call. They are checked against the callable's signature before anything is built.
"""

import dataclasses
import functools
import hashlib
import importlib
import inspect
import json
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from medtune.aliases import resolve_component
from medtune.config.argument_types import argument_hints, check_value, describe
from medtune.config.composition import CONFIGS, PACKAGE, Place, compose, nearest, resolve_path
from medtune.config.environment import literal, resolved, to_written
from medtune.config.overrides import overridden
from medtune.data.writing import write_whole
from medtune.errors import ConfigError, MedtuneError
from medtune.masking import masked
from medtune.trust import check_found, check_path

__all__ = [
    "CONFIGS",
    "PACKAGE",
    "Component",
    "build",
    "check_component",
    "config_hash",
    "data_root",
    "import_path",
    "instantiate",
    "load_config",
    "nearest",
    "recipe",
    "resolve_path",
    "save_config",
    "to_plain",
    "to_shown",
]

ConfigT = TypeVar("ConfigT")


class Component(dict[str, Any]):
    """A config node ``{_component_: dotted.path, **arguments}`` that represents one call."""

    @property
    def path(self) -> str:
        """Dotted path of the callable."""
        return str(self["_component_"])

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments written in the config."""
        return {key: value for key, value in self.items() if key != "_component_"}


UNSET = "$MEDTUNE_DATA is not set"
"""Placeholder for the data root in a config that is read without one; an error is raised only if the path is used."""


def data_root() -> Path | None:
    """Return the folder of the real data sets, ``$MEDTUNE_DATA``; None if the variable is not set."""
    named = os.environ.get("MEDTUNE_DATA")
    return Path(named) if named else None


def beside(path: Any, name: str) -> str:
    """Return the file ``name`` in the folder of a file; ``${beside:PATH,NAME}`` in a config."""
    if not isinstance(path, str):
        raise ValueError(f"${{beside:...,{name}}} needs one path; several files have no common folder")
    return str(Path(path).parent / name)


OmegaConf.register_resolver("beside", beside, replace=True)
OmegaConf.register_resolver("asset", lambda name: str(PACKAGE / "assets" / name), replace=True)
OmegaConf.register_resolver("medtune_data", lambda name: str((data_root() or Path(UNSET)) / name), replace=True)


def load_config(name_or_path: str, config_class: type[ConfigT], overrides: Sequence[str] = ()) -> ConfigT:
    """Read a config, composed with its bases, into its dataclass.

    Args:
        name_or_path: See :func:`medtune.config.composition.resolve_path`.
        config_class: The dataclass that defines the keys.
        overrides: ``key=value`` (dots go deeper, the value is YAML) or ``~key`` (delete).

    Raises:
        ConfigError: For an unreadable file, an unknown key, a wrong type or an invalid value; it names the file or the
            override that contains the key.
    """
    path = resolve_path(name_or_path)
    composed = compose(path)
    try:
        plain = resolved(overridden(composed, overrides))
    except (OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    assert isinstance(plain, dict)
    values = {str(key): value for key, value in plain.items()}
    return build(config_class, values, Place(str(path), (), composed.origins))


def build(config_class: type[ConfigT], values: Mapping[str, Any], where: str | Place) -> ConfigT:
    """Convert plain values to a config dataclass; ``where`` names them in errors, see :func:`load_config`."""
    where = Place(where) if isinstance(where, str) else where
    hints = typing.get_type_hints(config_class)
    fields = {field.name: field for field in dataclasses.fields(config_class) if field.init}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise ConfigError(f"{where.told_by(key)}: unknown key {key!r}; {nearest(str(key), list(fields))}")
    arguments = {key: _convert(value, hints[key], where.at(key)) for key, value in values.items()}
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and arguments.get(name) is None:
            raise ConfigError(f"{where}: key {name!r} is missing; give it in the file or as {name}=...")
    try:
        return config_class(**arguments)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _convert(value: Any, hint: Any, where: Place) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, arguments, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise ConfigError(f"{where}: {value!r} is not one of {', '.join(map(repr, arguments))}")
        return value
    if origin in (list, tuple) and isinstance(value, list):
        items = [_convert(item, arguments[0], where.at(i)) for i, item in enumerate(value)]
        return origin(items)
    if origin is dict and isinstance(value, dict):
        return {str(key): _convert(item, arguments[1], where.at(key)) for key, item in value.items()}
    if hint is Component and isinstance(value, dict):
        return _component(value, where)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return build(hint, value, where)  # type: ignore[arg-type]
    return _convert_scalar(value, hint, where)


def _convert_union(value: Any, options: tuple[Any, ...], where: Place) -> Any:
    if value is None and type(None) in options:
        return None
    errors = []
    for option in (o for o in options if o is not type(None)):
        try:
            return _convert(value, option, where)
        except ConfigError as error:
            errors.append(error)
    raise errors[-1] if len(errors) == 1 else ConfigError("; or ".join(map(str, errors)))


def _convert_scalar(value: Any, hint: Any, where: Place) -> Any:
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, bool):
        pass
    elif hint is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    elif isinstance(hint, type) and isinstance(value, hint):
        return value
    raise ConfigError(f"{where}: expected {describe(hint)}, got {value!r}")


def _component(value: dict[str, Any], where: Place) -> Component:
    if "_component_" not in value:
        raise ConfigError(f"{where}: a component needs the key '_component_' with a dotted path")
    component = Component(value)
    check_component(component, where)
    return component


def import_path(path: str, where: str = "config") -> Any:
    """Return the object at a current or old dotted path; raise a ConfigError naming the nearest name if none exists."""
    path = resolve_component(path)
    check_path(path, where)
    module_name, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{where}: cannot import {module_name!r} of {path!r}: {error}") from error
    if not hasattr(module, name):
        public = [item for item in dir(module) if not item.startswith("_")]
        raise ConfigError(f"{where}: {module_name!r} has no {name!r}; {nearest(name, public)}")
    found = getattr(module, name)
    check_found(path, found, where)
    return found


def check_component(component: Component, where: str | Place, beside: Collection[str] = ()) -> None:
    """Check that a component's path exists, that it accepts every given argument, and that the types fit.

    Components among the arguments are checked too. A callable that reads keys of its own from the components in an
    argument names them in its attribute ``keys_of_components`` (argument -> names).

    Args:
        component: the path and the arguments.
        where: the place that errors name.
        beside: keys that are read by the callable that takes this component, not by the component.

    Raises:
        ConfigError: Naming the file, the key and the expected value.
    """
    where = Place(where) if isinstance(where, str) else where
    target = import_path(component.path, where.told_by("_component_"))
    parameters = inspect.signature(target).parameters
    hints = argument_hints(target)
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    owned: Mapping[str, Collection[str]] = getattr(target, "keys_of_components", {})
    for key, value in component.arguments.items():
        if key in beside and key not in parameters:
            continue
        if key in parameters and key in hints:
            check_value(value, hints[key], where.at(key))
        elif key not in parameters and not takes_all:
            raise ConfigError(
                f"{where.told_by(key)}: {component.path} takes no {key!r}; {nearest(key, list(parameters))}"
            )
        _check_within(value, where.at(key), owned.get(key, ()))


def _check_within(value: Any, where: Place, beside: Collection[str]) -> None:
    """Check the components at any depth of an argument."""
    if isinstance(value, dict) and "_component_" in value:
        check_component(Component(value), where, beside)
        return
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        _check_within(item, where.at(key), beside)


def instantiate(component: Mapping[str, Any], *args: Any, **extra: Any) -> Any:
    """Call a component with its arguments from the config; ``extra`` fills arguments that the config does not set.

    Raises:
        ConfigError: If an argument is missing, the callable rejects an argument (ValueError, TypeError), or an argument
            needs ``$MEDTUNE_DATA``, which is not set.
    """
    component = Component(component)
    target = import_path(component.path)
    arguments = {**extra, **component.arguments}
    for key, value in arguments.items():
        if isinstance(value, str) and value.startswith(UNSET):
            raise ConfigError(
                f"{component.path}: {key} lies in the data folder, but {UNSET}: export MEDTUNE_DATA=/path/to/data, or "
                f"give {key} yourself"
            )
    try:
        inspect.signature(target).bind(*args, **arguments)
    except TypeError as error:
        raise ConfigError(f"{component.path}: {error}") from error
    try:
        return target(*args, **arguments)
    except ValueError as error:
        raise ConfigError(f"{component.path}: {error}") from error


def to_plain(config: Any) -> Any:
    """Return the config as plain dicts, lists and scalars, ready for YAML or JSON."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: to_plain(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(key): to_plain(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_plain(item) for item in config]
    return config


def to_shown(config: Any) -> Any:
    """Return :func:`to_plain` for files and logs: ``${oc.env:...}`` as it was written, credentials as ``***``."""
    return masked(to_written(to_plain(config)))


def save_config(config: Any, path: Path) -> None:
    """Write the config as YAML: resolved, except what :func:`to_shown` hides."""
    write_whole(path, OmegaConf.to_yaml(OmegaConf.create(masked(to_written(literal(to_plain(config)))))))


def saved_keys(file: Path, config_class: Any) -> dict[str, Any]:
    """Read the keys of a dataclass from a saved config, resolved; its other keys are not looked at.

    Raises:
        ConfigError: If the file is unreadable or not a mapping.
    """
    names = [field.name for field in dataclasses.fields(config_class)]
    try:
        content = OmegaConf.load(file)
        known = content if isinstance(content, DictConfig) else {}
        found = {name: known[name] for name in names if name in known}
        plain = {
            name: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            for name, value in found.items()
        }
    except Exception as error:  # errors of YAML and of OmegaConf
        raise ConfigError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, DictConfig):
        raise ConfigError(f"{file}: a config is a mapping of keys to values")
    return plain


def config_hash(config: Any, ignore: Sequence[str] = ()) -> str:
    """Return the SHA-256 of a config's resolved values; ``ignore`` names top-level keys that do not affect results."""
    plain = {key: value for key, value in to_plain(config).items() if key not in ignore}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def recipe(config_class: type[ConfigT]) -> Callable[[Callable[[ConfigT], Any]], Callable[..., int]]:
    """Turn a recipe's ``main(config)`` into a command: ``--config NAME_OR_PATH key=value ...``.

    Args:
        config_class: The dataclass of the recipe's config.

    Returns:
        A decorator. The decorated function takes an optional argument list and returns the exit status; a
        :class:`MedtuneError` becomes one line on stderr and status 2.
    """

    def decorate(main: Callable[[ConfigT], Any]) -> Callable[..., int]:
        @functools.wraps(main)
        def command(argv: Sequence[str] | None = None) -> int:
            arguments = list(sys.argv[1:] if argv is None else argv)
            if not arguments or {"-h", "--help"} & set(arguments):
                print(_help(main, config_class))
                return 0
            try:
                if arguments[0] != "--config" or len(arguments) < 2:
                    raise ConfigError("a recipe is called with --config NAME_OR_PATH, then key=value overrides")
                return int(main(load_config(arguments[1], config_class, arguments[2:])) or 0)
            except MedtuneError as error:
                print(f"error: {error}", file=sys.stderr)
                return 2

        return command

    return decorate


def _help(main: Callable[..., Any], config_class: type) -> str:
    name = Path(inspect.getfile(main)).stem
    lines = [
        inspect.getdoc(inspect.getmodule(main)) or "",
        "",
        f"usage: tune run medtune/recipes/{name}.py --config NAME_OR_PATH [key=value ...]",
        "",
        "keys:",
    ]
    for field in dataclasses.fields(config_class):
        if field.default is not dataclasses.MISSING:
            default = f" (default {field.default!r})"
        else:
            default = "" if field.default_factory is dataclasses.MISSING else " (default: see the configs)"
        kind = re.sub(r"\b(?:\w+\.)+(?=\w)", "", inspect.formatannotation(field.type))  # without names of modules
        lines.append(f"  {field.name}: {kind}{default}  {field.metadata.get('help', '')}".rstrip())
    return "\n".join(lines)
