"""The job of exact resume: a whole run, and one that is killed in the middle and started again."""

import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from gpu_jobs.setting import Setting
from medtune.config import load_config
from medtune.training.config import TrainConfig
from medtune.training.trainer import Trainer

KILLED = 9  # status of a run that ended without a word


def config(folder: Path, setting: Setting) -> dict[str, Any]:
    """An InstFree run of 20 steps; on a GPU with a model large enough for the kernels that real ones use."""
    sizes = {"image_size": 16, "embed_dim": 16, "vision_layers": 2, "decoder_layers": 2}
    if not setting.tiny:
        sizes = {"image_size": 224, "embed_dim": 512, "vision_layers": 8, "decoder_layers": 8}
    return {
        "base": "instfree/mini",
        "output_dir": str(folder),
        "checkpoint": None,
        "dataset_val": None,
        "preflight_cache": None,
        "model": {"vocab_size": 1024, "patch_size": 8 if setting.tiny else 14, **sizes},
        "transform": {"image_size": sizes["image_size"]},
        "dataset": {"size": 40, "image_size": sizes["image_size"]},
        "objective": {"warmup_steps": 4},
        "max_steps": 6 if setting.tiny else 16,  # beside the four steps of the proxy's warm-up
        "batch_size": 2 if setting.tiny else 8,
        "save_every_steps": 3 if setting.tiny else 5,
        "export": "torchtune",
        "dtype": "fp32" if setting.tiny else "bf16",
        "device": str(setting.device),
    }


def train(path: Path, die: int | None) -> int:
    """A run in a process of its own.

    Args:
        path: Its config file.
        die: The step at whose beginning the process ends without a word; None lets it finish.

    Returns:
        The process's status.
    """
    child = multiprocessing.get_context("fork").Process(target=_child, args=(path, die))
    child.start()
    child.join()
    return child.exitcode or 0


def _child(path: Path, die: int | None) -> None:
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True, warn_only=True)
    original = Trainer._optimizer_step

    def step(self: Trainer, batches: list) -> int:
        if self.step == die:
            os._exit(KILLED)
        return original(self, batches)

    Trainer._optimizer_step = step  # type: ignore[method-assign]
    os._exit(Trainer(load_config(str(path), TrainConfig)).run())


def losses(folder: Path) -> list[float]:
    """The loss of every step, in order."""
    lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The exported model and the method's own state."""
    last = max((folder / "checkpoints").glob("step_*"), key=lambda path: int(path.name.split("_")[1]))
    own = load_file(last / "objective.safetensors")
    exported = load_file(folder / "weights" / "model.safetensors")
    return {**exported, **{f"objective.{name}": value for name, value in own.items()}}


def resume(setting: Setting) -> dict[str, Any]:
    """Whether a run that was killed and resumed ends with the losses and weights of one that was not."""
    die = 5 if setting.tiny else 11
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        statuses, runs = [], {name: Path(folder, name) for name in ("whole", "again", "killed")}
        for name, dying in (("whole", None), ("again", None), ("killed", die), ("killed", None)):
            path = Path(folder, f"{name}.yaml")
            path.write_text(json.dumps(config(runs[name], setting)), encoding="utf-8")
            began = time.perf_counter()
            statuses.append(train(path, dying))
            found.setdefault("seconds_of_runs", []).append(time.perf_counter() - began)
        if statuses != [0, 0, KILLED, 0]:
            raise RuntimeError(f"the runs ended with {statuses}, not with [0, 0, {KILLED}, 0]; see their output above")
        for name in ("again", "killed"):
            found["resumed" if name == "killed" else "run_again"] = difference(runs["whole"], runs[name])
        found["steps"] = len(losses(runs["whole"]))
    return {"peer": "the same run without a kill", "killed_at": die, "bitwise": found["resumed"]["bitwise"], **found}


def difference(one: Path, other: Path) -> dict[str, Any]:
    """The largest differences between two runs, and whether they are the same in every bit."""
    first, second = weights(one), weights(other)
    if first.keys() != second.keys() or len(losses(one)) != len(losses(other)):
        raise RuntimeError(f"{one.name} and {other.name} have other tensors or other numbers of steps")
    return {
        "bitwise": losses(one) == losses(other)
        and all(torch.equal(value, second[key]) for key, value in first.items()),
        "largest_loss_difference": max(abs(a - b) for a, b in zip(losses(one), losses(other), strict=True)),
        "largest_weight_difference": max(
            float((value.double() - second[key].double()).abs().max()) for key, value in first.items()
        ),
    }
