"""Parts of the model and the objective: their parameters, whether they are trained, whether they get a gradient."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from medtune.config import nearest
from medtune.errors import ConfigError, TrainingError
from medtune.models.common.interface import Trainable
from medtune.models.common.parts import expand
from medtune.objectives.base import Stage

FROZEN = "frozen"
"""The part of the parameters that are frozen by name; no stage can train it."""

WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.")


def canonical(name: str) -> str:
    """A parameter's name without the prefixes that activation checkpointing and torch.compile add."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def check_parts(asked: Iterable[str], members: Mapping[str, list[str]]) -> list[str]:
    """Return the parts and groups asked for, after checking that each has a parameter.

    Args:
        asked: Names, as in ``trainable``.
        members: Part -> names of its parameters.

    Raises:
        ConfigError: Naming the parts that the model has, and the nearest name.
    """
    names = list(asked)
    members = {part: parameters for part, parameters in members.items() if part != FROZEN}
    have = [part for part, parameters in members.items() if parameters]
    for part in names:
        if not any(members.get(inner) for inner in expand([part], members)):
            hint = nearest(part, have)
            close = f"; {hint}" if hint.startswith("did") else ""
            raise ConfigError(f"trainable: the model has no part {part!r}; it has {', '.join(have)}{close}")
    return names


def set_aside_frozen(
    members: Mapping[str, list[str]], patterns: Sequence[str], trainable: Iterable[str]
) -> dict[str, list[str]]:
    """Move the parameters that match a pattern from their parts to the part :data:`FROZEN`.

    Args:
        members: Part -> names of its parameters.
        patterns: Names in which ``*`` stands for any text, as ``decoder.layers.0.*``.
        trainable: The parts and groups that are to be trained.

    Returns:
        The parts in their order; without a pattern, as they were.

    Raises:
        ConfigError: For a pattern that no name matches, or patterns that leave nothing of a part to train.
    """
    if not patterns:
        return dict(members)
    names = [name for inside in members.values() for name in inside]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(f"frozen: no parameter of the model matches {pattern!r}; {nearest(pattern, names)}")
    frozen = {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}
    for part in expand(trainable, members):
        inside = members.get(part)
        if inside and frozen.issuperset(inside):
            raise ConfigError(f"frozen: the whole part {part} would be frozen; leave it out of `trainable` instead.")
    kept = {part: [name for name in inside if name not in frozen] for part, inside in members.items()}
    return {**kept, FROZEN: [name for name in names if name in frozen]}


@dataclass
class TrainedParts:
    """Every parameter of the model and the objective, by part.

    The name of a group can be used in place of its parts: ``adapter`` means ``adapter.vision``, ``adapter.decoder`` and
    so on.

    Attributes:
        members: Part name -> names of its parameters, for the model and the objective.
    """

    model: Trainable
    objective: nn.Module
    members: dict[str, list[str]]

    def named(self) -> dict[str, nn.Parameter]:
        """Canonical name -> parameter, for the model and the objective."""
        model = {canonical(name): parameter for name, parameter in self.model.named_parameters()}
        return {**model, **dict(self.objective.named_parameters())}

    def select(self, parts: Iterable[str]) -> dict[str, nn.Parameter]:
        """Name -> parameter of the named parts, in a fixed order."""
        named = self.named()
        return {name: named[name] for part in self.known(parts) for name in self.names_of(part)}

    def names_of(self, part: str) -> list[str]:
        """Names of the parameters of a part; for a group, in the order of the model's parameters."""
        if part in self.members:
            return self.members[part]
        inside = {name for inner in self.expand([part]) for name in self.members[inner]}
        return [name for name in self.named() if name in inside]

    def expand(self, parts: Iterable[str]) -> list[str]:
        """The named parts, with each group replaced by its parts."""
        return expand(parts, self.members)

    def trained_in(self, stages: Iterable[Stage]) -> dict[str, nn.Parameter]:
        """The parameters that one of the stages trains, by name."""
        return self.select(self.expand([part for stage in stages for part in stage.trainable]))

    def rate_groups(self, trained: Iterable[str], rates: Iterable[str]) -> list[str]:
        """The parts and groups with one learning rate each: a group is split only if one of its parts is named too."""
        trained = list(trained)
        named = {*trained, *rates}
        groups: dict[str, None] = {}
        for part in trained:
            inner = self.expand([part])
            groups |= dict.fromkeys(inner if named.intersection(inner) else [part])
        return list(groups)

    def known(self, parts: Iterable[str]) -> list[str]:
        """The parts asked for; if one does not exist, a ConfigError names those that the model has."""
        return check_parts(parts, self.members)

    def train_only(self, parts: Iterable[str]) -> None:
        """Make exactly these parts trainable and freeze all others."""
        wanted = {name for part in self.expand(self.known(parts)) for name in self.members[part]}
        for prefix, module in _unsharded_one_by_one(self.model):
            for name, parameter in module.named_parameters(prefix):
                if parameter.is_floating_point():
                    parameter.requires_grad_(canonical(name) in wanted)
        for name, parameter in self.objective.named_parameters():
            parameter.requires_grad_(name in wanted)

    def table(self, parts: Iterable[str]) -> str:
        """A text table of the parts with the number of all, trainable and frozen parameters."""
        trained, named = set(self.expand(parts)), self.named()
        wide = max(12, *(len(part) + 2 for part in self.members))
        lines = [f"{'part':<{wide}}{'parameters':>16}{'trainable':>16}{'frozen':>16}"]
        sums = [0, 0]
        for part, members in self.members.items():
            total = sum(named[name].numel() for name in members)
            live = total if part in trained else 0
            sums = [sums[0] + total, sums[1] + live]
            lines.append(f"{part:<{wide}}{total:>16,}{live:>16,}{total - live:>16,}")
        lines.append(f"{'all':<{wide}}{sums[0]:>16,}{sums[1]:>16,}{sums[0] - sums[1]:>16,}")
        return "\n".join(lines)


def _unsharded_one_by_one(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield each FSDP unit while its parameters are unsharded, then the model in its sharded state.

    FSDP keeps two sets of parameters, and a flag such as ``requires_grad`` must be set on both. Only one unit at a time
    is gathered, because a GPU may be too small for the whole model.
    """
    if not any(p.is_meta for p in model.parameters()):
        units = [(prefix, module) for prefix, module in model.named_modules() if isinstance(module, FSDPModule)]
        for prefix, unit in units:
            unit.unshard()
            yield prefix, unit
            unit.reshard()
    yield "", model


class GradientWatch:
    """Checks in the first steps of a stage that every trained part gets a gradient.

    Args:
        members: Part -> parameter names, for the trained parts only.
        patience: Number of steps within which each part must get a gradient.
    """

    def __init__(self, members: dict[str, list[str]], patience: int = 8) -> None:
        self.waiting = dict(members)
        self.left = patience

    def reached(self, named: dict[str, nn.Parameter], device: torch.device) -> Tensor:
        """Check the gradients of one step, before they are cleared, without waiting for the device.

        Returns:
            For each part that has had no gradient yet, whether it got one on this process: 0 or 1, fp64. Empty if there
            is no such part.
        """
        flags = [_reached([named[name] for name in members], device) for members in self.waiting.values()]
        return torch.stack(flags).double() if flags else torch.zeros(0, dtype=torch.float64, device=device)

    def note(self, reached: Sequence[float]) -> None:
        """Record the values of :meth:`reached`, summed over processes.

        Raises:
            TrainingError: If a trained part has had no gradient for ``patience`` steps.
        """
        if not self.waiting:
            return
        for part, value in zip(list(self.waiting), reached, strict=True):
            if value:
                del self.waiting[part]
        self.left -= 1
        if self.waiting and self.left <= 0:
            raise TrainingError(
                f"no gradient has reached {', '.join(self.waiting)} although it is set to train; "
                "check `trainable` and that the samples hold images"
            )


def _reached(parameters: list[nn.Parameter], device: torch.device) -> Tensor:
    """Whether any of these parameters has a gradient that is not zero; a scalar on the device."""
    reached = torch.zeros((), dtype=torch.bool, device=device)
    for gradient in (parameter.grad for parameter in parameters):
        if gradient is not None:
            local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
            reached = reached | (local != 0).any()
    return reached
