"""The parts of a model, and the group ``adapter`` that holds the LoRA parameters of each part.

A part is named after what it is (``vision``, ``projection``, ``fusion``, ``decoder``). Its adapters are a separate
part, ``adapter.vision`` and so on. The text before the dot names the group: ``adapter`` means the adapters of all
parts.
"""

from collections.abc import Callable, Collection, Iterable, Mapping

from torch import nn

from medtune.errors import ModelError
from medtune.models.common.rows import adapter_ids

ADAPTER = "adapter"


def sort_parameters(
    model: nn.Module, known: tuple[str, ...], part_of: Callable[[str, nn.Parameter], str]
) -> dict[str, list[str]]:
    """Sort every parameter of a model into exactly one part.

    Args:
        model: a model with or without adapters.
        known: its parts.
        part_of: (name, parameter) -> the part that the parameter belongs to, for LoRA parameters too.

    Returns:
        part -> names as in ``named_parameters``, in their order: each of ``known``, then ``adapter.<part>`` for those
        that hold adapters.
    """
    # By identity, not by name: activation checkpointing inserts a level into names.
    adapters = adapter_ids(model)
    parts: dict[str, list[str]] = {part: [] for part in (*known, *(f"{ADAPTER}.{part}" for part in known))}
    for name, parameter in model.named_parameters():
        part = part_of(name, parameter)
        parts[f"{ADAPTER}.{part}" if id(parameter) in adapters else part].append(name)
    return {part: names for part, names in parts.items() if names or part in known}


def group_of(part: str) -> str | None:
    """The group that a part belongs to, or None: ``adapter`` for ``adapter.vision``."""
    group, dot, _ = part.partition(".")
    return group if dot else None


def expand(names: Iterable[str], known: Collection[str]) -> list[str]:
    """Replace each group by its parts. Other names stay. Each name occurs once in the result.

    Args:
        names: names of parts and groups.
        known: the existing parts.
    """
    expanded: dict[str, None] = {}
    for name in names:
        inner = [] if name in known else [part for part in known if group_of(part) == name]
        expanded |= dict.fromkeys(inner or [name])
    return list(expanded)


def names_of(part: str, members: Mapping[str, list[str]]) -> list[str]:
    """The parameters of a part, or of every part of a group; none if a model has no such part.

    Args:
        part: name of a part or a group.
        members: part -> its parameters, as ``parts()`` of a model gives them.
    """
    return [name for inner in expand([part], members) for name in members.get(inner, [])]


def require_adapters_only(model: nn.Module, trained: Iterable[str], purpose: str) -> None:
    """Reject a run that would change the base model, which is the model without its adapters.

    Args:
        model: has ``parts()``.
        trained: parts and groups that are trained, as in ``Stage.trainable``; names that are not parts of the model,
            such as those of a method, are ignored.
        purpose: what needs the base model, for the message: "a reference without a second model".

    Raises:
        ModelError: if other parts are trained, which the message names, or if the model has no adapters.
    """
    members: dict[str, list[str]] = model.parts()  # type: ignore[operator]
    changed = [part for part in expand(trained, members) if members.get(part) and group_of(part) != ADAPTER]
    if changed:
        raise ModelError(
            f"{purpose} takes the model with its adapters switched off, but this run also trains "
            f"{', '.join(changed)}; take them out of `trainable`"
        )
    if not any(group_of(part) == ADAPTER for part in members):
        raise ModelError(
            f"{purpose} takes the model with its adapters switched off, and it has none; choose a lora_ "
            "builder as `model`"
        )
