"""The parts of what is trained: which parameters they hold, whether they train, whether a gradient reaches them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from medtune.config import nearest
from medtune.errors import ConfigError, TrainingError
from medtune.models.common.interface import Trainable
from medtune.models.common.parts import expand

WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.")


def canonical(name: str) -> str:
    """A parameter's name without what activation checkpointing and torch.compile put into it."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def check_parts(asked: Iterable[str], members: Mapping[str, list[str]]) -> list[str]:
    """The parts and groups asked for, if each holds a parameter.

    Args:
        asked: Names, as in ``trainable``.
        members: Part -> its parameters.

    Raises:
        ConfigError: Naming what the model has, and the nearest name.
    """
    names = list(asked)
    have = [part for part, parameters in members.items() if parameters]
    for part in names:
        if not any(members.get(inner) for inner in expand([part], members)):
            hint = nearest(part, have)
            close = f"; {hint}" if hint.startswith("did") else ""
            raise ConfigError(f"trainable: the model has no part {part!r}; it has {', '.join(have)}{close}")
    return names


@dataclass
class TrainedParts:
    """Every parameter of the model and the objective, by part.

    Wherever a part is asked for, a group may stand for all of its parts: ``adapter`` for ``adapter.vision``,
    ``adapter.decoder`` and so on.

    Attributes:
        members: Part name -> names of its parameters; an objective's parts stand beside the model's.
    """

    model: Trainable
    objective: nn.Module
    members: dict[str, list[str]]

    def named(self) -> dict[str, nn.Parameter]:
        """Canonical name -> parameter, the objective's beside the model's."""
        model = {canonical(name): parameter for name, parameter in self.model.named_parameters()}
        return {**model, **dict(self.objective.named_parameters())}

    def select(self, parts: Iterable[str]) -> dict[str, nn.Parameter]:
        """Name -> parameter of the named parts, in a fixed order."""
        named = self.named()
        return {name: named[name] for part in self.known(parts) for name in self.names_of(part)}

    def names_of(self, part: str) -> list[str]:
        """Parameters of a part; those of a group's parts in the order in which the model has them."""
        if part in self.members:
            return self.members[part]
        own = {name for inner in self.expand([part]) for name in self.members[inner]}
        return [name for name in self.named() if name in own]

    def expand(self, parts: Iterable[str]) -> list[str]:
        """The named parts, with the parts of a group in its place."""
        return expand(parts, self.members)

    def rate_groups(self, trained: Iterable[str], rates: Iterable[str]) -> list[str]:
        """What gets a learning rate of its own: a group stays whole unless one of its parts is named beside it."""
        trained = list(trained)
        named = {*trained, *rates}
        found: dict[str, None] = {}
        for part in trained:
            inner = self.expand([part])
            found |= dict.fromkeys(inner if named.intersection(inner) else [part])
        return list(found)

    def known(self, parts: Iterable[str]) -> list[str]:
        """The parts asked for; a ConfigError names what the model has when one is not there."""
        return check_parts(parts, self.members)

    def train_only(self, parts: Iterable[str]) -> None:
        """Make exactly these parts trainable; everything else is frozen."""
        wanted = {name for part in self.expand(self.known(parts)) for name in self.members[part]}
        for prefix, module in _unsharded_one_by_one(self.model):
            for name, parameter in module.named_parameters(prefix):
                if parameter.is_floating_point():
                    parameter.requires_grad_(canonical(name) in wanted)
        for name, parameter in self.objective.named_parameters():
            parameter.requires_grad_(name in wanted)

    def table(self, parts: Iterable[str]) -> str:
        """Parts with their total, trainable and frozen parameters, as text."""
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
    """Visit each unit of FSDP while its parameters are whole, then the model as it rests.

    FSDP keeps two sets of parameters, and a flag such as ``requires_grad`` must be set on both. One unit at a time is
    gathered, since a GPU may not hold the whole model.
    """
    if not any(p.is_meta for p in model.parameters()):
        units = [(prefix, module) for prefix, module in model.named_modules() if isinstance(module, FSDPModule)]
        for prefix, unit in units:
            unit.unshard()
            yield prefix, unit
            unit.reshard()
    yield "", model


class GradientWatch:
    """Checks in the first steps of a stage that a gradient reaches every part that is said to be trained.

    Args:
        members: Part -> parameter names, the trained parts only.
        patience: Steps within which each part must have seen a gradient.
    """

    def __init__(self, members: dict[str, list[str]], patience: int = 8) -> None:
        self.waiting = dict(members)
        self.left = patience

    def reached(self, named: dict[str, nn.Parameter], device: torch.device) -> Tensor:
        """Look at the gradients of one step, before they are cleared, without waiting for the device.

        Returns:
            For each waiting part whether a gradient reached it on this process, as 0 or 1, fp64; empty when none waits.
        """
        found = [_reached([named[name] for name in members], device) for members in self.waiting.values()]
        return torch.stack(found).double() if found else torch.zeros(0, dtype=torch.float64, device=device)

    def note(self, reached: Sequence[float]) -> None:
        """Take in what :meth:`reached` gave, summed over processes.

        Raises:
            TrainingError: When a trained part has seen no gradient for ``patience`` steps.
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
    found = torch.zeros((), dtype=torch.bool, device=device)
    for gradient in (parameter.grad for parameter in parameters):
        if gradient is not None:
            local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
            found = found | (local != 0).any()
    return found
