"""Where configs lie, and how one is composed of a file and the files that it is based on.

A config may name ``base: other/config``, or a list of them. The base's values are taken first, then those of the file
are put over them: mappings are merged key by key, everything else replaces what was there. A node whose ``_component_``
differs from the base's replaces the whole node, since the arguments of one callable mean nothing to another. ``key:
null`` sets the value null, and ``~key:`` (with nothing behind it) deletes the key. Of several bases the later one wins.
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
        source: Of what no file is known to hold: the config itself.
        keys: The way to the value; positions in lists are digits.
        origins: Keys -> the file or override that holds the value; what lies beneath is from there too.
    """

    source: str
    keys: Keys = ()
    origins: Mapping[Keys, str] = field(default_factory=dict)

    def at(self, key: object) -> "Place":
        """The place of a key or a position beneath this one."""
        return Place(self.source, (*self.keys, str(key)), self.origins)

    @property
    def file(self) -> str:
        """The file or override that holds the value."""
        for length in range(len(self.keys), 0, -1):
            if self.keys[:length] in self.origins:
                return self.origins[self.keys[:length]]
        beneath = {file for keys, file in self.origins.items() if keys[: len(self.keys)] == self.keys}
        return beneath.pop() if self.keys and len(beneath) == 1 else self.source

    def told_by(self, key: object) -> str:
        """This place, with the file that holds ``key`` beneath it: for what is wrong with the node as a whole."""
        own = ".".join(self.keys)
        file = self.at(key).file
        return f"{file}: {own}" if own else file

    def __str__(self) -> str:
        key = ".".join(self.keys)
        return f"{self.file}: {key}" if key else self.file


@dataclass
class Composed:
    """A config as its files give it.

    Attributes:
        path: The config's own file.
        tree: Plain values; ``${...}`` stands as it was written.
        origins: See :class:`Place`; a value is the text of a path.
        files: Every file that took part, each base before what is based on it.
    """

    path: Path
    tree: dict[Any, Any]
    origins: dict[Keys, str]
    files: list[Path]


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint naming the closest known name, or all of them when none is close."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"


def packaged_configs() -> list[str]:
    """Names of the packaged configs that can be run; files and folders that begin with ``_`` hold bases of others."""
    return sorted(name for name in _packaged() if not is_base(Path(name)))


def is_base(path: Path) -> bool:
    """Whether a path within the packaged configs is one that only others build on."""
    return any(part.startswith("_") for part in path.parts)


def _packaged() -> list[str]:
    return [path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.glob("*/*.yaml")]


def resolve_path(name_or_path: str) -> Path:
    """The file that a config name or path stands for.

    Args:
        name_or_path: A path, or the name of a packaged config such as ``instfree/mini``.

    Raises:
        ConfigError: If neither exists, or it is a packaged base that only other configs build on.
    """
    path = Path(name_or_path).expanduser()
    packaged = CONFIGS / f"{name_or_path.removesuffix('.yaml')}.yaml"
    for candidate in (path, packaged):
        if candidate.is_file():
            return _refuse_base(candidate)
    raise ConfigError(
        f"config {name_or_path!r} is neither a file nor a packaged config; {nearest(name_or_path, packaged_configs())} "
        "(`medtune ls` shows them all)"
    )


def _refuse_base(path: Path) -> Path:
    packaged = CONFIGS.resolve()
    if path.resolve().is_relative_to(packaged) and is_base(path.resolve().relative_to(packaged)):
        raise ConfigError(
            f"{path} is a base that other configs build on and cannot be run; `medtune ls` shows those that can"
        )
    return path


def compose(path: Path) -> Composed:
    """Read a config with everything that it is based on.

    Raises:
        ConfigError: For an unreadable file, a base that does not exist, bases in a circle, or ``~key`` without a key
            to delete, naming the file.
    """
    return _compose(path, ())


def _compose(path: Path, chain: tuple[Path, ...]) -> Composed:
    chain = (*chain, path)
    if path.resolve() in [above.resolve() for above in chain[:-1]]:
        raise ConfigError(f"{_shown(chain)}: the bases go in a circle; take one of them out")
    own = read_yaml(path)
    composed = Composed(path, {}, {}, [])
    for name in _bases(own.pop(BASE, None), path):
        below = _compose(_find_base(name, chain), chain)
        _merge(composed.tree, below.tree, (), composed.origins, below.origins)
        composed.files += [file for file in below.files if file not in composed.files]
    _merge(composed.tree, own, (), composed.origins, str(path))
    composed.files.append(path)
    return composed


def read_yaml(path: Path) -> dict[Any, Any]:
    """One file as plain values, ``${...}`` as it was written.

    Raises:
        ConfigError: If it cannot be read, is no YAML or no mapping.
    """
    try:
        plain = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OmegaConfBaseException, ValueError, OSError) as error:
        raise ConfigError(f"{path}: {error}") from error
    except Exception as error:  # YAML's own errors carry line and column
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
    """Relative to the file that names it, then among the packaged configs."""
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
    """Put ``above`` over ``below`` in place; ``source`` is the file of ``above``, or its own origins."""
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
        raise ConfigError(f"{place}: deletes a key of the base, so that nothing may stand behind it, got {value!r}")
    if key[1:] not in below:
        raise ConfigError(f"{place}: the base has no key {key[1:]!r} to delete; {nearest(key[1:], list(below))}")
    del below[key[1:]]
    forget((*at, key[1:]), origins)
    if not below:
        origins[at] = source


def _another(below: Mapping[Any, Any], above: Mapping[Any, Any]) -> bool:
    """Whether the two name different components; one that names none has arguments for any."""
    held, wanted = below.get("_component_"), above.get("_component_")
    return None not in (held, wanted) and resolve_component(str(held)) != resolve_component(str(wanted))


def _copied(value: Any, at: Keys, source: str | dict[Keys, str]) -> Any:
    """A deep copy, in which no ``~key`` may stand: there is nothing beneath to delete from."""
    if isinstance(value, list):
        return [_copied(item, (*at, str(number)), source) for number, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    for key in value:
        if isinstance(key, str) and key.startswith("~"):
            raise ConfigError(f"{Place(str(source), (*at, key))}: there is no base to delete {key[1:]!r} from")
    return {key: _copied(item, (*at, str(key)), source) for key, item in value.items()}


def forget(place: Keys, origins: dict[Keys, str]) -> None:
    """Drop what is known of a place and of all beneath it."""
    for keys in [keys for keys in origins if keys[: len(place)] == place]:
        del origins[keys]


def leaves(value: Any, at: Keys) -> Iterator[Keys]:
    """The places of everything that is no filled mapping or list, beneath ``at``."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [place for key, item in items for place in leaves(item, (*at, str(key)))]
    yield from found or [at]
