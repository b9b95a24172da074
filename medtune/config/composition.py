"""Locations of configs, and the composition of a config from its file and its base files.

A config may name ``base: other/config``, or a list of bases. The values of the file override the values of the base:
mappings are merged key by key, every other value is replaced. A node whose ``_component_`` differs from the base's
replaces the whole node, because the arguments of one callable do not apply to another. ``key: null`` sets the value to
null, and ``~key:`` (without a value) deletes the key. If there are several bases, the later one takes precedence.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from medtune.aliases import resolve_component
from medtune.errors import ConfigError

PACKAGE = Path(__file__).parents[1]
CONFIGS = PACKAGE / "configs"
BASE = "base"
Keys = tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """A place in a config, for messages: the file (or override) that holds the value, and its key.

    Attributes:
        source: The config itself; used for values that are in no known file.
        keys: The path to the value; positions in lists are digits.
        origins: Keys -> the file or override that contains the value; values below it come from there too.
    """

    source: str
    keys: Keys = ()
    origins: Mapping[Keys, str] = field(default_factory=dict)

    def at(self, key: object) -> "Place":
        """Return the place of a key or a list position below this one."""
        return Place(self.source, (*self.keys, str(key)), self.origins)

    @property
    def file(self) -> str:
        """The file or override that contains the value."""
        for length in range(len(self.keys), 0, -1):
            if self.keys[:length] in self.origins:
                return self.origins[self.keys[:length]]
        beneath = {file for keys, file in self.origins.items() if keys[: len(self.keys)] == self.keys}
        return beneath.pop() if self.keys and len(beneath) == 1 else self.source

    def told_by(self, key: object) -> str:
        """Return this place with the file that contains its ``key``, for errors about the node as a whole."""
        path = ".".join(self.keys)
        file = self.at(key).file
        return f"{file}: {path}" if path else file

    def __str__(self) -> str:
        key = ".".join(self.keys)
        return f"{self.file}: {key}" if key else self.file


@dataclass
class Composed:
    """A config, composed from its files.

    Attributes:
        path: The config's own file.
        tree: Plain values; ``${...}`` is not resolved.
        origins: See :class:`Place`; the values are paths as text.
        files: Every file that was used, each base before the files that are based on it.
    """

    path: Path
    tree: dict[Any, Any]
    origins: dict[Keys, str]
    files: list[Path]


def nearest(name: str, known: Sequence[str]) -> str:
    """Return a hint naming the most similar known name, or all known names if none is similar."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"


def packaged_configs() -> list[str]:
    """Return the names of the packaged configs that can be run; a name that begins with ``_`` is a base of others."""
    return sorted(name for name in _packaged() if not is_base(Path(name)))


def is_base(path: Path) -> bool:
    """Return whether a path within the packaged configs is only a base of other configs."""
    return any(part.startswith("_") for part in path.parts)


def _packaged() -> list[str]:
    return [path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.glob("*/*.yaml")]


def resolve_path(name_or_path: str) -> Path:
    """Return the file of a config name or path.

    Args:
        name_or_path: A path, or the name of a packaged config such as ``instfree/mini``.

    Raises:
        ConfigError: If neither exists, or it is a packaged config that is only a base of other configs.
    """
    path = Path(name_or_path).expanduser()
    packaged = CONFIGS / f"{name_or_path.removesuffix('.yaml')}.yaml"
    for candidate in (path, packaged):
        if candidate.is_file():
            return _refuse_base(candidate)
    close = difflib.get_close_matches(name_or_path, packaged_configs(), n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    raise ConfigError(
        f"config {name_or_path!r} is neither a file nor a packaged config; {hint}(`medtune ls` shows them all)"
    )


def _refuse_base(path: Path) -> Path:
    packaged = CONFIGS.resolve()
    if path.resolve().is_relative_to(packaged) and is_base(path.resolve().relative_to(packaged)):
        raise ConfigError(
            f"{path} is a base that other configs build on and cannot be run; `medtune ls` shows those that can"
        )
    return path


def compose(path: Path) -> Composed:
    """Read a config and all its bases.

    Raises:
        ConfigError: For an unreadable file, a base that does not exist, a cycle of bases, or ``~key`` for a key that
            does not exist. It names the file.
    """
    return _compose(path, ())


def _compose(path: Path, chain: tuple[Path, ...]) -> Composed:
    chain = (*chain, path)
    if path.resolve() in [above.resolve() for above in chain[:-1]]:
        raise ConfigError(f"{_shown(chain)}: the bases form a cycle; remove one of them")
    values = read_yaml(path)
    composed = Composed(path, {}, {}, [])
    for name in _bases(values.pop(BASE, None), path):
        below = _compose(_find_base(name, chain), chain)
        _merge(composed.tree, below.tree, (), composed.origins, below.origins)
        composed.files += [file for file in below.files if file not in composed.files]
    _merge(composed.tree, values, (), composed.origins, str(path))
    composed.files.append(path)
    return composed


def read_yaml(path: Path) -> dict[Any, Any]:
    """Return one file as plain values; ``${...}`` is not resolved.

    Raises:
        ConfigError: If it cannot be read, is not YAML or is not a mapping.
    """
    try:
        plain = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OmegaConfBaseException, ValueError, OSError) as error:
        raise ConfigError(f"{path}: {error}") from error
    except Exception as error:  # the errors of the YAML parser contain line and column
        if type(error).__module__.startswith("yaml"):
            raise ConfigError(f"{path} is not valid YAML: {error}") from error
        raise
    if not isinstance(plain, dict):
        raise ConfigError(f"{path}: a config is a mapping of keys to values")
    return plain


def _bases(value: Any, path: Path) -> list[str]:
    names = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{path}: base: expected the name or path of a config, or a list of them, got {value!r}")
    return names


def _find_base(name: str, chain: tuple[Path, ...]) -> Path:
    """Search relative to the file that names the base, then among the packaged configs."""
    beside = chain[-1].parent / Path(name).expanduser()
    for candidate in (beside, Path(f"{beside}.yaml"), CONFIGS / f"{name.removesuffix('.yaml')}.yaml"):
        if candidate.is_file():
            return candidate
    raise ConfigError(
        f"{_shown(chain)}: base {name!r} is neither a file relative to {chain[-1].parent} nor a packaged config; "
        f"{nearest(name, _packaged())}"
    )


def _shown(chain: tuple[Path, ...]) -> str:
    return " -> ".join(str(path) for path in chain)


def _merge(
    below: dict[Any, Any], above: Mapping[Any, Any], at: Keys, origins: dict[Keys, str], source: str | dict[Keys, str]
) -> None:
    """Override ``below`` by ``above`` in place; ``source`` is the file of ``above``, or the origins of its values."""
    for key, value in above.items():
        place = (*at, str(key))
        if isinstance(key, str) and key.startswith("~"):
            _delete(below, key, value, at, origins, str(source))
        elif isinstance(value, dict) and isinstance(below.get(key), dict) and not _another(below[key], value):
            _merge(below[key], value, place, origins, source)
        else:
            forget(place, origins)
            below[key] = _copied(value, place, source)
            for end in leaves(value, place):
                origins[end] = source if isinstance(source, str) else source[end]


def _delete(below: dict[Any, Any], key: str, value: Any, at: Keys, origins: dict[Keys, str], source: str) -> None:
    place = Place(source, (*at, key))
    if value is not None:
        raise ConfigError(f"{place}: a key that begins with ~ is deleted, so it must have no value, got {value!r}")
    if key[1:] not in below:
        raise ConfigError(f"{place}: the base has no key {key[1:]!r} to delete; {nearest(key[1:], list(below))}")
    del below[key[1:]]
    forget((*at, key[1:]), origins)
    if not below:
        origins[at] = source


def _another(below: Mapping[Any, Any], above: Mapping[Any, Any]) -> bool:
    """Return whether the two name different components; a node without a component fits every component."""
    old, new = below.get("_component_"), above.get("_component_")
    return None not in (old, new) and resolve_component(str(old)) != resolve_component(str(new))


def _copied(value: Any, at: Keys, source: str | dict[Keys, str]) -> Any:
    """Return a deep copy. A ``~key`` in it is an error, because there is no base value to delete."""
    if isinstance(value, list):
        return [_copied(item, (*at, str(number)), source) for number, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    for key in value:
        if isinstance(key, str) and key.startswith("~"):
            raise ConfigError(f"{Place(str(source), (*at, key))}: there is no base to delete {key[1:]!r} from")
    return {key: _copied(item, (*at, str(key)), source) for key, item in value.items()}


def forget(place: Keys, origins: dict[Keys, str]) -> None:
    """Remove the origins of a place and of all places below it."""
    for keys in [keys for keys in origins if keys[: len(place)] == place]:
        del origins[keys]


def leaves(value: Any, at: Keys) -> Iterator[Keys]:
    """Yield the places below ``at`` of all values that are not a non-empty mapping or list."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    below = [place for key, item in items for place in leaves(item, (*at, str(key)))]
    yield from below or [at]
