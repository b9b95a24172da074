"""Overrides of a config on the command line: ``key=value`` (dots separate levels, the value is YAML) and ``~key``."""

import re
from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from medtune.config.composition import Composed, Keys, forget, leaves
from medtune.errors import ConfigError


def apply_override(tree: Any, override: str) -> tuple[Keys, Any]:
    """Change an OmegaConf tree in place.

    Args:
        tree: The composed config.
        override: ``key=value`` or ``~key``. A text as the value of a component names another callable.

    Returns:
        The changed place, and the value as plain lists and scalars; None for a deleted key.

    Raises:
        ConfigError: If it has neither form, or deletes a key that does not exist.
    """
    if override.startswith("~"):
        key = override[1:]
        if not _deleted(tree, _keys(key)):
            raise ConfigError(f"override {override!r}: there is no key {key!r} to delete")
        return _keys(key), None
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"override {override!r} is not of the form key=value")
    value = _value(text)
    current = _current(tree, key)
    if isinstance(value, str) and OmegaConf.is_dict(current) and "_component_" in current:
        key = f"{key}._component_"
    # A mapping cannot be merged into a list (model.lora_parts), nor a list into a mapping.
    alike = OmegaConf.is_list(current) == OmegaConf.is_list(value)
    OmegaConf.update(tree, key, value, force_add=True, merge=alike)
    return _keys(key), OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _current(tree: Any, key: str) -> Any:
    """The value of a key; None where there is none, or one that cannot be resolved and shall be replaced."""
    return OmegaConf.select(tree, key, throw_on_resolution_failure=False)


def _deleted(tree: Any, keys: Keys) -> bool:
    """Delete a key, whatever its value is; whether there was such a key."""
    holder, leaf = (_current(tree, ".".join(keys[:-1])) if keys[1:] else tree), keys[-1] if keys else ""
    if OmegaConf.is_list(holder):
        if not (leaf.isdecimal() and int(leaf) < len(holder)):
            return False
        del holder[int(leaf)]
        return True
    if not OmegaConf.is_dict(holder) or leaf not in holder:
        return False
    del holder[leaf]
    return True


def overridden(composed: Composed, overrides: Sequence[str]) -> Any:
    """Return the OmegaConf tree of a composed config with overrides; adds them to ``composed.origins``."""
    tree = OmegaConf.create(composed.tree)
    for override in overrides:
        place, value = apply_override(tree, override)
        if not isinstance(value, dict):  # a mapping is merged into the existing value
            forget(place, composed.origins)
        source = f"{composed.path}, override {override!r}"
        composed.origins.update(dict.fromkeys(leaves(value, place), source))
    return tree


def _keys(key: str) -> Keys:
    return tuple(re.findall(r"[^.\[\]]+", key))


def _value(text: str) -> Any:
    """Parse the text of an override as YAML; a text that is not YAML, such as a single comma, is taken literally."""
    if not text.strip():
        return None
    try:
        return OmegaConf.create(f"value: {text}").value
    except Exception as error:
        if type(error).__module__.startswith("yaml"):
            return text
        raise
