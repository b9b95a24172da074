"""A composed config as one editable YAML file, with comments and with the origin of each block."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from medtune.config.composition import CONFIGS, Composed, compose, leaves, resolve_path
from medtune.config.overrides import overridden

_KEY = re.compile(r"^([A-Za-z_]\w*):")


def show(name_or_path: str, overrides: Sequence[str] = ()) -> str:
    """Return the text of a config composed with its bases and with overrides.

    Args:
        name_or_path: A packaged config or a path.
        overrides: As for the recipe.

    Raises:
        ConfigError: If it cannot be composed.
    """
    composed = compose(resolve_path(name_or_path))
    composed.tree = OmegaConf.to_container(overridden(composed, overrides), resolve=False)  # type: ignore[assignment]
    return composed_text(composed)


def composed_text(composed: Composed) -> str:
    """Return one YAML file that is equivalent to a config and its bases.

    It begins with the header comment of the config's own file. A block whose values all come from one file is copied
    from there with its comments. Comments name the files that blocks come from. ``${...}`` is not resolved.
    """
    text = composed.path.read_text(encoding="utf-8")
    header = _header(text)
    if len(composed.files) == 1 and set(composed.origins.values()) <= {str(composed.path)}:
        return text
    previous, texts = "", {str(path): _blocks(path.read_text(encoding="utf-8")) for path in composed.files}
    lines = [*header, ""]
    for key in _in_order(composed, texts[str(composed.path)]):
        sources = {composed.origins[place] for place in leaves(composed.tree[key], (str(key),))}
        source = sources.pop() if len(sources) == 1 else ""
        if source != previous or not source:
            lines.append(f"# from {', '.join(_names(composed, key)) if not source else _name(source, composed)}")
        previous = source
        block = texts.get(source, {}).get(key, [])
        lines += block if _says(block, key, composed.tree[key]) else _written(key, composed.tree[key])
    return "\n".join(lines).strip("\n") + "\n"


def _header(text: str) -> list[str]:
    lines = text.splitlines()
    end = next((at for at, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return lines[:end]


def _blocks(text: str) -> dict[str, list[str]]:
    """Return top-level key -> its lines, with the comment above it."""
    blocks: dict[str, list[str]] = {}
    above: list[str] = []
    for line in text.splitlines()[len(_header(text)) :]:
        match = _KEY.match(line)
        if match:
            blocks[match[1]] = [*above, line]
            above = []
        elif line.startswith("#"):
            above.append(line)
        elif line.strip() and blocks:
            blocks[list(blocks)[-1]] += [*above, line]
            above = []
    return blocks


def _in_order(composed: Composed, own_keys: Iterable[str]) -> list[Any]:
    """Return the config's own keys first, in its order, then the keys of its bases."""
    first = [key for key in own_keys if key in composed.tree]
    return [*first, *(key for key in composed.tree if key not in first)]


def _says(block: list[str], key: Any, value: Any) -> bool:
    """Return whether the lines define exactly this value, because the file may hold only a part of it."""
    if not block:
        return False
    return bool(OmegaConf.to_container(OmegaConf.create("\n".join(block)), resolve=False) == {key: value})


def _written(key: Any, value: Any, indent: str = "") -> list[str]:
    """Return a block in YAML: one line per mapping entry, the component's path first, short lists on one line."""
    if isinstance(value, dict) and value:
        keys = sorted(value, key=lambda name: name != "_component_")
        return [f"{indent}{key}:", *(line for name in keys for line in _written(name, value[name], f"{indent}  "))]
    if isinstance(value, list) and not any(isinstance(item, dict | list) for item in value):
        return [f"{indent}{key}: [{', '.join(map(_scalar, value))}]"]
    return [f"{indent}{line}" for line in OmegaConf.to_yaml(OmegaConf.create({key: value})).splitlines()]


def _scalar(value: Any) -> str:
    text = OmegaConf.to_yaml(OmegaConf.create([value])).strip().removeprefix("- ")
    plain = not isinstance(value, str) or (re.fullmatch(r"[\w./-]+", value) and text == value)
    return text if plain else "'" + value.replace("'", "''") + "'"


def _names(composed: Composed, key: Any) -> list[str]:
    """Return the sources of a block, each base before the files that override it."""
    sources = [composed.origins[place] for place in leaves(composed.tree[key], (str(key),))]
    order = [*map(str, composed.files), *sources]
    return [_name(source, composed) for source in dict.fromkeys(order) if source in sources]


def _name(source: str, composed: Composed) -> str:
    """Return a packaged file's config name, another file's path, or an override unchanged."""
    if source.startswith(f"{composed.path}, "):
        return source.removeprefix(f"{composed.path}, ")
    path = Path(source)
    if path.resolve().is_relative_to(CONFIGS.resolve()):
        return path.resolve().relative_to(CONFIGS.resolve()).with_suffix("").as_posix()
    return source
