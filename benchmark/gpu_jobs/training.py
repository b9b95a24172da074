"""Steps of medtune's own trainer at a model's real size, beside what ``medtune plan`` says of the same config file."""

import json
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpu_jobs.step import ModelFlops, peak_flops, timed
from medtune.config import load_config
from medtune.training.config import TrainConfig
from medtune.training.plan import plan
from medtune.training.trainer import Trainer


class Steps:
    """A trainer that has been set up, at the beginning of its last stage, and one step of that stage's first batches.

    Args:
        path: Config file of the run.
    """

    def __init__(self, path: Path) -> None:
        self.trainer = trainer = Trainer(load_config(str(path), TrainConfig))
        trainer.setup()
        last = len(trainer.progress.stages) - 1
        if last > 0:
            trainer.step = trainer.progress.first_step(last)
            trainer._enter_stage(last)
        self.batches = next(iter(trainer.feed.epoch(0, 0)))
        self.device = trainer.runtime.device

    def __call__(self) -> float:
        """One step, from the batch in host memory to the new weights; a loss that is not finite raises."""
        self.trainer._optimizer_step(self.batches)
        return 0.0

    @property
    def tokens(self) -> int:
        """Tokens of a step, those of images among them where the model reads them as text; padding is left out."""
        return sum(int(batch["padding"].sum()) for batch in self.batches)

    @property
    def samples(self) -> int:
        """Samples of a step."""
        return sum(len(batch["ids"]) for batch in self.batches)

    def operations(self) -> int:
        """Model operations of a step; see :mod:`gpu_jobs.step`."""
        with ModelFlops() as counter:
            for batch in self.batches:
                self.trainer.model.compute(self.trainer.objective, _moved(batch, self.device))
        return counter.total


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    return {key: _moved(one, device) for key, one in value.items()} if isinstance(value, dict) else value


@contextmanager
def config_file(values: dict[str, Any]) -> Iterator[Path]:
    """A run's config in a folder that goes away afterwards, with the run."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.yaml")
        same = {"output_dir": f"{folder}/run", "preflight_cache": None, "num_workers": 0}
        path.write_text(json.dumps({**same, **values}), encoding="utf-8")
        yield path


def planned(config: str, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """What ``medtune plan`` says of a config for one GPU: bytes by item, in all, and what the allocator should hold."""
    items = plan(config, overrides, gpus=1).memory
    return {"items": items, "bytes": sum(items.values()), "allocated_bytes": allocated(items)}


def allocated(items: dict[str, float]) -> float:
    """The part of a plan that lies in the allocator: not the CUDA context, and not the fragmentation."""
    return sum(size for item, size in items.items() if item != "allowance")


def beside_plan(peak: int | None, estimate: dict[str, Any]) -> dict[str, Any]:
    """A measured peak and the estimate; ``over_plan`` is peak / estimate, both without context and fragmentation."""
    over = None if peak is None else peak / estimate["allocated_bytes"]
    return {"peak_memory_bytes": peak, "plan": estimate, "over_plan": over}


def card_name(device: torch.device) -> str | None:
    """The GPU's name, None on a CPU."""
    return torch.cuda.get_device_name() if device.type == "cuda" else None


def reserved(device: torch.device) -> int | None:
    """The most that the allocator held from the card, fragmentation included; None on a CPU."""
    return torch.cuda.max_memory_reserved() if device.type == "cuda" else None


def measure(values: dict[str, Any], rounds: int, warmup: int) -> dict[str, Any]:
    """Plan a run, set it up, and time its steps.

    Args:
        values: The config; ``base`` may name a packaged one.
        rounds: Steps that are timed.
        warmup: Steps before them.
    """
    with config_file(values) as path:
        estimate = planned(str(path))
        steps = Steps(path)
        flops = steps.operations()
        for _ in range(max(warmup, 1)):
            steps()
        taken = [timed(steps, steps.device) for _ in range(rounds)]
    seconds = statistics.median(took for took, _ in taken)
    card = peak_flops(card_name(steps.device))
    return {
        "config": values,
        "peer": None,
        "time_ratio": None,
        "median_seconds": seconds,
        "seconds": [took for took, _ in taken],
        "tokens_per_step": steps.tokens,
        "tokens_per_second": steps.tokens / seconds,
        "samples_per_second": steps.samples / seconds,
        "model_flops": flops,
        "model_flops_per_second": flops / seconds,
        "model_flops_utilisation": None if card is None else flops / seconds / card,
        "reserved_memory_bytes": reserved(steps.device),
        **beside_plan(max((peak for _, peak in taken if peak is not None), default=None), estimate),
    }
