"""Optimizers with one group per part; gradients scaled by the global weight; clipping over all trained parameters."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from medtune.config import Component, instantiate, nearest
from medtune.errors import ConfigError
from medtune.models.common.parts import group_of
from medtune.objectives.base import Stage
from medtune.training.parts import TrainedParts


def make_optimizer(component: Component, parts: TrainedParts, trained: list[str], rates: dict[str, float]) -> Optimizer:
    """An optimizer whose groups are the trained parts.

    Args:
        component: Any optimizer of torch or bitsandbytes. Its ``lr`` is used for the parts that ``rates`` does not
            name.
        parts: Source of the parameters.
        trained: Parts to train.
        rates: Part -> learning rate; the rate of a group is used for each of its parts that has no rate of its own.

    Raises:
        ConfigError: If a part has no learning rate, or the optimizer is :func:`unfit`.
    """
    default = component.get("lr")
    groups: list[dict[str, Any]] = []
    for part in parts.rate_groups(trained, rates):
        members = parts.select([part])
        rate = rates.get(part, rates.get(group_of(part) or part, default))
        if rate is None:
            raise ConfigError(f"optimizer: give lr, or learning_rates.{part}")
        groups.append({"params": list(members.values()), "lr": rate, "part": part, "base_lr": rate})
    meshes = [p.device_mesh.size() for g in groups for p in g["params"] if isinstance(p, DTensor)]
    if problem := unfit(component, max(meshes, default=1)):
        raise ConfigError(f"optimizer: {problem}")
    optimizer: Optimizer = instantiate(component, groups)
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ConfigError(f"optimizer: {component.path} evaluates the loss itself, which a trainer of steps cannot do")
    return optimizer


def unfit(component: Component, processes: int) -> str | None:
    """Why no run can use an optimizer, or None.

    Args:
        component: The optimizer.
        processes: Over how many the parameters are sharded; 1 if they are not.
    """
    if component.path.startswith("torchao."):
        paged = "" if processes > 1 else ", or bitsandbytes.optim.PagedAdamW8bit for moments of 8 bits"
        return (
            f"{component.path} keeps its state in tensors that a checkpoint cannot hold; use torch.optim.AdamW{paged}"
        )
    if processes > 1 and component.path.startswith("bitsandbytes."):
        return (
            f"{component.path} cannot update parameters sharded over {processes} processes; use torch.optim.AdamW, or "
            "run in one process"
        )
    return None


def check_rates(
    rates: dict[str, float], stages: Sequence[Stage], parts: TrainedParts, idle: dict[str, list[str]]
) -> None:
    """Refuse parts that no stage can train, and a learning rate that no part would use.

    Args:
        rates: The config's ``learning_rates``.
        stages: Stages of the run.
        parts: The parts of the model and the objective.
        idle: The objective's own parts; a rate for a part that is empty in this mode may stay in the config.

    Raises:
        ConfigError: Naming the part.
    """
    asked = {part for stage in stages for part in parts.known(stage.trainable)}
    trained = set(parts.expand(asked))
    for part in rates:
        if trained.isdisjoint(parts.expand([part])) and idle.get(part) != []:
            known = {*parts.members, *(group_of(name) or name for name in parts.members)}
            hint = "" if part in known else nearest(part, sorted(known))
            raise ConfigError(
                f"learning_rates.{part}: this run trains {', '.join(sorted(asked))}, not {part}; add it to "
                f"`trainable`, or leave the rate out (~learning_rates.{part})"
                + (f"; {hint}" if hint.startswith("did") else "")
            )


def set_rates(optimizer: Optimizer, factor: float) -> None:
    """Set every group's learning rate to its base rate times ``factor``."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def scale_gradients(trained: dict[str, nn.Parameter], own: set[str], factor: float, world: int) -> None:
    """Turn summed gradients into the gradient of the global mean.

    FSDP has averaged the model's gradients over processes. The objective's own parameters are replicated on every
    process, so their gradients are summed here.

    Args:
        trained: Trained parameters by name.
        own: Names of those that belong to the objective.
        factor: One divided by the global weight (supervised tokens of the step).
        world: Number of processes.
    """
    for name, parameter in trained.items():
        if world > 1 and name in own:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad.mul_(factor)
        elif parameter.grad is not None:
            parameter.grad.mul_(factor * world)


def gradient_norm(parameters: list[nn.Parameter]) -> Tensor:
    """The 2-norm over sharded and replicated gradients together, in fp32; a scalar on the parameters' device."""
    squares = []
    gradients = [p.grad for p in parameters if p.grad is not None]
    sharded = [g for g in gradients if isinstance(g, DTensor)]
    whole = [g for g in gradients if not isinstance(g, DTensor)]
    if sharded:
        total = torch.nn.utils.get_total_norm(sharded)
        squares.append((total.full_tensor() if isinstance(total, DTensor) else total).float() ** 2)
    if whole:
        squares.append(torch.nn.utils.get_total_norm(whole).float() ** 2)
    return torch.stack(squares).sum().sqrt() if squares else torch.zeros(())


def clip_gradients(parameters: list[nn.Parameter], norm: float, largest: float) -> None:
    """Scale all gradients so that their common norm is at most ``largest``."""
    factor = largest / (norm + 1e-6)
    if factor < 1.0:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)


def optimizer_state(optimizer: Optimizer, names: dict[int, str]) -> tuple[list[tuple[str, Tensor]], dict[str, Any]]:
    """Optimizer state as tensors (with the sharding of their parameters) and numbers, named ``parameter|key``."""
    tensors: list[tuple[str, Tensor]] = []
    numbers: dict[str, Any] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for key, value in optimizer.state.get(parameter, {}).items():
                name = f"{names[id(parameter)]}|{key}"
                if isinstance(value, Tensor):
                    tensors.append((name, value))
                else:
                    numbers[name] = value
    return tensors, numbers


def restore_optimizer(
    optimizer: Optimizer, names: dict[int, str], tensors: dict[str, Tensor], numbers: dict[str, Any]
) -> None:
    """Restore the state that :func:`optimizer_state` returned, on any number of processes."""
    saved: dict[str, dict[str, Any]] = {}
    for name, value in [*numbers.items(), *tensors.items()]:
        parameter_name, _, key = name.rpartition("|")
        saved.setdefault(parameter_name, {})[key] = value
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        index: {key: _placed(value, parameter) for key, value in saved[names[id(parameter)]].items()}
        for index, parameter in enumerate(parameters)
        if names[id(parameter)] in saved
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _placed(value: Any, parameter: Tensor) -> Any:
    return like(value, parameter) if isinstance(value, Tensor) else value


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """``value`` with the sharding of ``parameter``, if both have the same shape."""
    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        return torch.distributed.tensor.distribute_tensor(
            value.to(parameter.device), parameter.device_mesh, parameter.placements
        )
    return value
