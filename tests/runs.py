"""Whole training runs for tests: tiny, in forked processes that may be killed, on one process or two over gloo."""

import json
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from medtune.config import build
from medtune.training.config import TrainConfig

TINY: dict[str, Any] = {
    "model": {
        "_component_": "medtune.models.mini.mini_vlm",
        "vocab_size": 1024,
        "embed_dim": 16,
        "vision_layers": 2,
        "decoder_layers": 2,
        "image_size": 16,
    },
    "transform": {
        "_component_": "medtune.models.mini.mini_transform",
        "path": "${asset}",
        "image_size": 16,
    },
    "dataset": {
        "_component_": "medtune.datasets.cells.rendered_cells_dataset",
        "size": 22,
        "seed": 5,
        "kind": "reports",
        "image_size": 16,
    },
    "objective": {
        "_component_": "medtune.objectives.InstFree",
        "alpha": 0.8,
        "warmup_steps": 4,
        "shuffle_separator": ",",
        "warmup_learning_rate": 0.02,
    },
    "optimizer": {"_component_": "torch.optim.AdamW", "lr": 2e-3},
    "learning_rates": {"proxy": 0.01},
    "schedule": {"kind": "cosine", "warmup_steps": 2},
    "trainable": ["vision", "projection", "fusion"],
    "max_steps": 8,
    "batch_size": 4,
    "clip_grad_norm": 1.0,
    "dtype": "fp32",
    "device": "cpu",
    "export": "torchtune",
    "seed": 11,
}
CELLS = "medtune.datasets.cells.rendered_cells_dataset"
SFT: dict[str, Any] = {
    "objective": {"_component_": "medtune.objectives.SFT", "chunk_tokens": 0},
    "learning_rates": {},
    "dataset": {**TINY["dataset"], "kind": "instructions"},
}
"""Changes that make the run plain visual instruction tuning."""
LORA = {
    **TINY["model"],
    "_component_": "medtune.models.mini.lora_mini_vlm",
    "lora_attn_modules": ["q_proj", "v_proj", "output_proj"],
    "apply_lora_to_mlp": True,
    "lora_rank": 2,
    "lora_alpha": 8,
}
SGD = {"_component_": "torch.optim.SGD", "lr": 0.05, "momentum": 0.9}


def tiny(folder: Path, **changes: Any) -> TrainConfig:
    """A tiny InstFree run into ``folder``; dicts in ``changes`` are merged one level deep, an empty one replaces."""
    values = json.loads(json.dumps(TINY))
    for key, value in changes.items():
        merge = isinstance(value, dict) and value and isinstance(values.get(key), dict)
        same = merge and value.get("_component_") in (None, values[key].get("_component_"))
        values[key] = {**values[key], **value} if same else value
    values["transform"]["path"] = str(Path(__file__).parents[1] / "medtune" / "assets" / "mini_tokenizer")
    return build(TrainConfig, {"output_dir": str(folder), **values}, "test")


def launch(
    config: TrainConfig, world: int = 1, harm: Callable[[], None] | None = None, kill_after: float | None = None
) -> list[int]:
    """Run a config in ``world`` forked processes.

    Args:
        config: The run.
        world: Processes, over gloo on the loopback address.
        harm: Called in each child before the run; patches in whatever shall go wrong.
        kill_after: Seconds after which every process is killed with SIGKILL.

    Returns:
        Exit codes; negative for a signal.
    """
    context = multiprocessing.get_context("fork")
    port = _free_port() if world > 1 else 0
    children = [context.Process(target=_child, args=(config, rank, world, port, harm)) for rank in range(world)]
    for child in children:
        child.start()
    return [code or 0 for code in ended(children, kill_after if kill_after is not None else 240)]


def ended(children: Sequence[BaseProcess], seconds: float = 120) -> list[int | None]:
    """Exit codes, negative for a signal; a process that still runs after so many seconds is killed."""
    for child in children:
        child.join(seconds)
        if child.is_alive():
            child.kill()
            child.join()
    return [child.exitcode for child in children]


def _child(config: TrainConfig, rank: int, world: int, port: int, harm: Callable[[], None] | None) -> None:
    from medtune.errors import MedtuneError
    from medtune.training.trainer import Trainer

    torch.set_num_threads(1)
    if world > 1:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
        )
    if harm is not None:
        harm()
    try:
        status = Trainer(config).run()
    except MedtuneError as error:
        Path(config.output_dir, f"error_{rank}.txt").write_text(f"{type(error).__name__}: {error}")
        status = 2
    os._exit(status)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without what a clock decides."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines]


def losses(folder: Path) -> list[float]:
    """Training losses in order."""
    return [line["loss"] for line in metrics(folder) if "loss" in line]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The exported weights, and the objective's state of the last checkpoint."""
    last = sorted((folder / "checkpoints").glob("step_*"))[-1]
    exported = load_file(folder / "weights" / "model.safetensors")
    return {**exported, **{f"objective.{k}": v for k, v in load_file(last / "objective.safetensors").items()}}


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Largest absolute difference over tensors of the same names."""
    assert first.keys() == second.keys()
    return max((first[k].double() - second[k].double()).abs().max().item() for k in first)


def die_at(step: int) -> Callable[[], None]:
    """Make a run end, with status 9 and without a word, when it begins this step."""

    def harm() -> None:
        from medtune.training.trainer import Trainer

        original = Trainer._optimizer_step

        def instead(self: Trainer, batches: list) -> int:
            if self.step == step:
                os._exit(9)
            return original(self, batches)

        Trainer._optimizer_step = instead  # type: ignore[method-assign]

    return harm


def keep_gradients() -> None:
    """Make a run write the gradients of every step, before they are clipped, to gradients_STEP.safetensors."""
    from medtune.training.trainer import Trainer

    original = Trainer._guard

    def guard(self: Trainer, *values: Any) -> None:
        grads = [(name, parameter.grad) for name, parameter in self.trained.items()]
        whole = {name: getattr(grad, "full_tensor", lambda grad=grad: grad)() for name, grad in grads}
        if self.runtime.is_main:
            save_file(whole, self.folder / f"gradients_{self.step}.safetensors")
        original(self, *values)

    Trainer._guard = guard  # type: ignore[method-assign]


def kill_self() -> None:
    """End this process as a crash would."""
    os.kill(os.getpid(), signal.SIGKILL)
