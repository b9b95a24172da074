"""Builds the model: directly on the device for one process, on the meta device and sharded for several."""

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torchtune import training
from torchtune.modules import TransformerCrossAttentionLayer, TransformerSelfAttentionLayer

from medtune.config import instantiate
from medtune.errors import ConfigError, ModelError
from medtune.models.common.interface import Trainable
from medtune.models.common.names import is_adapter_key, state_dict_names
from medtune.models.lora.nf4 import is_single
from medtune.models.weights import load_weights
from medtune.objectives.base import Objective
from medtune.objectives.companions import load_companions
from medtune.training.adapter import adapter_tensors
from medtune.training.config import TrainConfig
from medtune.training.fingerprint import base_fingerprint
from medtune.training.parts import check_parts, set_aside_frozen
from medtune.training.runtime import Runtime

__all__ = [
    "DTYPES",
    "adapter_start",
    "base_fingerprint",
    "build_companions",
    "build_model",
    "checkpoint_activations",
    "finish",
    "offloading",
    "shard",
]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Members = dict[str, list[str]]


def build_model(config: TrainConfig, runtime: Runtime) -> tuple[Any, Members]:
    """Build the model and load its weights. With one process it is not yet wrapped for activation checkpointing.

    Args:
        config: ``model``, ``checkpoint``, ``dtype``, ``seed`` and the memory switches are read.
        runtime: Device and number of processes.

    Returns:
        The model on its device, sharded by FSDP2 if there are several processes, and the parameter names of its parts,
        read before any wrapping.
    """
    dtype = DTYPES[config.dtype]
    if runtime.world > 1:
        return _build_sharded(config, runtime, dtype)
    torch.manual_seed(config.seed)
    with training.set_default_dtype(dtype), runtime.device:
        model = instantiate(config.model)
    members = set_aside_frozen(model.parts(), config.frozen, config.trainable)
    _check_parts(config, members)  # before the weights, which may take minutes, are read
    loaded: set[str] = set()
    if config.checkpoint:
        state = {**load_weights(config.checkpoint, model), **adapter_tensors(config, model)}
        _load_base(model, state)
        loaded = set(state)
    with torch.no_grad():
        keys = state_dict_names(model)
        for name, parameter in model.named_parameters():
            if is_adapter_key(name) and keys[name] not in loaded:
                parameter.copy_(adapter_start(keys[name], parameter, config.seed))
    return model, members


def _check_parts(config: TrainConfig, members: Members) -> None:
    """Refuse parts that the model does not have.

    Raises:
        ConfigError: Naming the parts that it has.
    """
    check_parts(config.trainable, members)
    if config.export == "peft" and not any(part.startswith("adapter") for part in members):
        raise ConfigError("export: peft writes an adapter, and this model has none; take a builder with LoRA, or hf")


def build_companions(objective: Objective, config: TrainConfig, runtime: Runtime) -> dict[str, nn.Module]:
    """The frozen models that a method uses in addition to the trained one, on the device and in evaluation mode.

    A companion with a loader is replicated on every process. A reference is built and sharded like the trained model.
    It has the weights that the run starts from (base and ``adapter``), or those that the companion names, so that a
    resumed run builds the same reference.

    Raises:
        MedtuneError: On every process, if a companion cannot be loaded.
    """
    companions = objective.companions()
    models = runtime.on_all_ranks(lambda: load_companions(companions))
    for model in models.values():
        model.to(runtime.device)
    for name, companion in companions.items():
        if companion.is_reference:
            given = companion.weights
            start = (
                dataclasses.replace(config, checkpoint=given, adapter=None, keep_optimizer=False) if given else config
            )
            try:
                reference, _ = build_model(start, runtime)
            except ModelError as error:
                raise ModelError(f"{companion.title}, which is built like the trained model: {error}") from error
            models[name] = reference.eval().requires_grad_(False)
    return models


def _load_base(model: nn.Module, state: dict[str, Tensor]) -> None:
    missing, unexpected = model.load_state_dict(state, strict=False)
    absent = [name for name in missing if not is_adapter_key(name)]
    if absent or unexpected:
        raise ModelError(
            f"the checkpoint does not fit the model: {len(absent)} tensors missing (first: {absent[:3]}), "
            f"{len(unexpected)} unknown (first: {list(unexpected)[:3]}); check `model` and `checkpoint`"
        )


def _build_sharded(config: TrainConfig, runtime: Runtime, dtype: torch.dtype) -> tuple[Any, Members]:
    with training.set_default_dtype(dtype), torch.device("meta"):
        model = instantiate(config.model)
    members = set_aside_frozen(model.parts(), config.frozen, config.trainable)
    _check_parts(config, members)
    if config.checkpoint:
        full = {**load_weights(config.checkpoint, model), **adapter_tensors(config, model)}
    else:
        torch.manual_seed(config.seed)
        with training.set_default_dtype(dtype):
            full = instantiate(config.model).state_dict()
    checkpoint_activations(model, config)
    try:
        shard(model)
    except AssertionError as error:  # raised by torchao if the shards are not equal
        raise ConfigError(
            f"model: its 4-bit weights cannot be split over {runtime.world} processes ({error}); start another number "
            "of processes, or use LoRA without quantize_base"
        ) from error
    for name, placeholder in model.state_dict().items():
        if is_adapter_key(name) and not (config.checkpoint and name in full):
            full[name] = adapter_start(name, placeholder, config.seed)
    try:
        training.load_from_full_model_state_dict(model, full, runtime.device, strict=True)
    except AttributeError as error:
        raise ModelError(f"the checkpoint holds a tensor that the model lacks: {error}") from error
    with training.set_default_dtype(dtype), runtime.device:
        for module in model.modules():
            if hasattr(module, "rope_init"):
                module.rope_init()
    left = [name for name, value in _all_tensors(model) if value.is_meta]
    if left:
        raise ModelError(f"{len(left)} tensors have no value after loading (first: {left[:3]})")
    return model, members


def _all_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def shard(model: nn.Module) -> None:
    """Apply FSDP2: every transformer layer is a unit, the root has the rest, and its forward method is ``compute``."""
    if any(is_single(parameter) for parameter in model.parameters()):
        raise ConfigError("model.double_quant: false is for one process only; leave it out, or start one process")
    for _, module in reversed(list(model.named_modules())):
        if isinstance(module, nn.ModuleList):
            for layer in module:
                fully_shard(layer)
    fully_shard(model)
    register_fsdp_forward_method(model, "compute")


def checkpoint_activations(model: nn.Module, config: TrainConfig) -> None:
    """Wrap self- and cross-attention layers so that their activations are recomputed in the backward pass."""
    if config.activation_checkpointing:
        training.set_activation_checkpointing(
            model, auto_wrap_policy={TransformerSelfAttentionLayer, TransformerCrossAttentionLayer}
        )


def finish(model: Any, config: TrainConfig, runtime: Runtime) -> None:
    """Apply activation checkpointing (for one process; sharded models already have it) and compilation."""
    if runtime.world == 1:
        checkpoint_activations(model, config)
    if config.compile:
        training.compile_model(model, verbose=False)


def offloading(model: Trainable, config: TrainConfig, runtime: Runtime) -> contextlib.AbstractContextManager[Any]:
    """The context of a forward pass: it moves saved activations to host memory if the config asks for it.

    Raises:
        ConfigError: Without a GPU.
    """
    if not config.activation_offloading:
        return contextlib.nullcontext()
    if runtime.device.type != "cuda":
        raise ConfigError("activation_offloading needs a GPU; set activation_offloading=false")
    # The tensors that the output head saves are needed again immediately, so they stay on the GPU.
    stay = training.NoOpManager()
    head = model.output_head()
    if head is not None:
        head.register_forward_pre_hook(lambda *_: stay.__enter__())
        head.register_forward_hook(lambda *_: stay.__exit__(), always_call=True)
    return training.OffloadActivations()


def adapter_start(key: str, like: Tensor, seed: int) -> Tensor:
    """The initial value of an adapter, drawn from the seed and the adapter's name: equal for any number of processes.

    ``lora_a`` is Kaiming-uniform with a = sqrt(5), so U(-1/sqrt(fan_in), 1/sqrt(fan_in)); ``lora_b`` is zero (Hu et al.
    2021, 4.1).

    Args:
        key: State-dict key.
        like: Tensor of the wanted shape and type; may be on the meta device.
        seed: The run's seed.
    """
    shape = tuple(like.shape)
    if "lora_b" in key:
        return torch.zeros(shape, dtype=like.dtype)
    digest = hashlib.sha256(f"{seed}|{key}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    bound = 1.0 / math.sqrt(shape[-1])
    return ((torch.rand(shape, generator=generator) * 2 - 1) * bound).to(like.dtype)
