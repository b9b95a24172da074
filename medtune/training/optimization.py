"""Optimizers with one group per part, gradients scaled once by the global count, clipping over everything trained."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from medtune.config import Component, instantiate
from medtune.errors import ConfigError
from medtune.training.parts import TrainedParts


def make_optimizer(component: Component, parts: TrainedParts, trained: list[str], rates: dict[str, float]) -> Optimizer:
    """An optimizer whose groups are the trained parts.

    Args:
        component: Any torch optimizer, or bitsandbytes'. Its ``lr`` holds where ``rates`` is silent.
        parts: Source of the parameters.
        trained: Parts to train.
        rates: Part -> learning rate.

    Raises:
        ConfigError: If the optimizer has no rate, or cannot work on sharded parameters.
    """
    default = component.get("lr")
    groups: list[dict[str, Any]] = []
    for part in trained:
        members = parts.select([part])
        rate = rates.get(part, default)
        if rate is None:
            raise ConfigError(f"optimizer: give lr, or learning_rates.{part}")
        groups.append({"params": list(members.values()), "lr": rate, "part": part, "base_lr": rate})
    if component.path.startswith("bitsandbytes.") and any(isinstance(p, DTensor) for g in groups for p in g["params"]):
        raise ConfigError(
            f"optimizer: {component.path} cannot update parameters sharded over processes; use torch.optim.AdamW or "
            "torchao.optim.AdamW8bit, or run in one process"
        )
    return instantiate(component, groups)


def set_rates(optimizer: Optimizer, factor: float) -> None:
    """Set every group's learning rate to its base rate times ``factor``."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def scale_gradients(parts: TrainedParts, names: list[str], factor: float, world: int) -> None:
    """Turn summed gradients into the gradient of the global mean.

    FSDP has averaged the model's gradients over processes; the objective's own parameters are whole on every process,
    so theirs are summed here.

    Args:
        parts: Source of the parameters.
        names: Trained parameters.
        factor: One over the global weight (supervised tokens of the step).
        world: Number of processes.
    """
    named, own = parts.named(), dict(parts.objective.named_parameters())
    for name in names:
        gradient = named[name].grad
        if world > 1 and name in own:
            if gradient is None:
                gradient = named[name].grad = torch.zeros_like(named[name])
            torch.distributed.all_reduce(gradient)
            gradient.mul_(factor)
        elif gradient is not None:
            gradient.mul_(factor * world)


def gradient_norm(parameters: list[nn.Parameter]) -> Tensor:
    """The 2-norm over sharded and whole parameters together, in fp32; a scalar on the parameters' device."""
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


def clip_gradients(parameters: list[nn.Parameter], norm: Tensor, largest: float) -> None:
    """Scale all gradients so that their common norm is at most ``largest``."""
    factor = torch.clamp(largest / (norm + 1e-6), max=1.0)
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(factor.to(parameter.grad.dtype))


def optimizer_tensors(optimizer: Optimizer, names: dict[int, str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Optimizer state as whole CPU tensors and plain numbers, keyed ``parameter|key``.

    A collective when parameters are sharded: call it on every process.
    """
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for key, value in optimizer.state.get(parameter, {}).items():
                name = f"{names[id(parameter)]}|{key}"
                if isinstance(value, Tensor):
                    tensors[name] = whole_cpu(value)
                else:
                    numbers[name] = value
    return tensors, numbers


def restore_optimizer(
    optimizer: Optimizer, names: dict[int, str], tensors: dict[str, Tensor], numbers: dict[str, Any]
) -> None:
    """Put back what :func:`optimizer_tensors` took, onto any number of processes."""
    state: dict[int, dict[str, Any]] = {}
    index = 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            prefix = f"{names[id(parameter)]}|"
            entry: dict[str, Any] = {k.removeprefix(prefix): v for k, v in numbers.items() if k.startswith(prefix)}
            for key, value in ((k, v) for k, v in tensors.items() if k.startswith(prefix)):
                entry[key.removeprefix(prefix)] = like(value, parameter)
            if entry:
                state[index] = entry
            index += 1
    template = optimizer.state_dict()
    optimizer.load_state_dict({"state": state, "param_groups": template["param_groups"]})


def whole_cpu(value: Tensor) -> Tensor:
    """A tensor gathered from its shards, on the CPU, owning its memory."""
    full = value.full_tensor() if isinstance(value, DTensor) else value
    return full.detach().to("cpu", copy=True).contiguous()


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """``value`` sharded as ``parameter`` is, when it has its shape."""
    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        return torch.distributed.tensor.distribute_tensor(
            value.to(parameter.device), parameter.device_mesh, parameter.placements
        )
    return value
