"""One InstFree step beside one step of torchtune's stock full fine-tuning recipe: same mini weights, tokens and parts.

    python benchmark/train_step.py [--rounds 30] [--batch-size 16] [--device cpu]

Both train vision, projection and fusion of one model with one AdamW; the decoder is frozen. The stock side runs the
loss step of torchtune's own recipe file (found beside torchtune, never copied), scales the gradients and clips as
that recipe does. Its prompt holds the proxy's placeholders too, as ordinary words, so that both sides see the same
tokens. All steps are timed in turn, round after round; a ratio is the median over rounds. Time is the process's CPU
time (one thread), on a GPU wall time. Peak memory is what a step allocates at most beyond weights and optimizer state,
counted by torch's profiler (the allocator on a GPU).

Three more ratios tell what the difference is made of: see ISOLATED.
"""

import argparse
import contextlib
import ctypes
import itertools
import json
import runpy
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torchtune
from torch import Tensor
from torchtune import training
from torchtune.modules.loss import CEWithChunkedOutputLoss

from medtune.config import PACKAGE, Component
from medtune.data.items import SampleItems
from medtune.data.training_set import TrainingSet
from medtune.datasets.cells import rendered_cells_dataset
from medtune.evaluation.provenance import stamp
from medtune.models.mini import mini_transform, mini_vlm
from medtune.objectives import InstFree
from medtune.training.optimization import clip_gradients, gradient_norm, make_optimizer, scale_gradients
from medtune.training.parts import TrainedParts

TRAINED = ("vision", "projection", "fusion")
ADAMW = Component(_component_="torch.optim.AdamW", lr=1e-5)
CHUNKS = 8
Step = Callable[[], Tensor]
"""Takes one optimizer step and returns the mean loss it began with."""
HEADLINE = ("medtune", "torchtune")
ISOLATED = {
    "written_instruction_both": ("medtune_text", "torchtune_text", "no proxy: both read one short written instruction"),
    "proxy_gradient_cut": ("medtune_fixed", "torchtune", "the proxy is read and not trained"),
    "against_shorter_prompt": ("medtune", "torchtune_text", "N proxy vectors against one short written instruction"),
}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def build(mode: str, batch_size: int, device: torch.device) -> tuple[Any, InstFree, dict[str, Any], TrainedParts]:
    """Model, bound objective, one batch and the parts; the same random weights for every mode."""
    torch.manual_seed(0)
    transform = mini_transform(PACKAGE / "assets" / "mini_tokenizer")
    with device:
        model = mini_vlm(vocab_size=1024, encoder_mode="torchtune")
    objective = InstFree(mode=mode, shuffle_separator=",")
    objective.bind(model, transform, 0)
    objective.to(device)
    source = rendered_cells_dataset(batch_size, 0, "reports")
    samples = TrainingSet(source, SampleItems(objective.sample_transform()), transform, 0)
    batch = transform.collate([samples[(0, i, True)] for i in range(batch_size)])
    tensors = {key: value for key, value in batch.items() if isinstance(value, torch.Tensor | dict)}
    torchtune.utils.batch_to_device(tensors, device)
    parts = TrainedParts(model, objective, {**model.parts(), **objective.parts()})
    return model, objective, {**batch, **tensors}, parts


def medtune_step(mode: str, batch_size: int, device: torch.device) -> Step:
    """What the trainer does in the joint stage of InstFree, on one micro-batch."""
    model, objective, batch, parts = build(mode, batch_size, device)
    stage = objective.stages(TRAINED, 1, None)[-1]
    parts.train_only(stage.trainable)
    objective.begin_stage(stage)
    optimizer = make_optimizer(ADAMW, parts, list(stage.trainable), {})
    trained = parts.select(stage.trainable)

    def step() -> Tensor:
        output = model.compute(objective, batch)
        output.loss_sum.backward()
        scale_gradients(trained, set(), 1.0 / float(output.weight), 1)
        parameters = list(trained.values())
        clip_gradients(parameters, float(gradient_norm(parameters)), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        objective.after_step()
        return output.loss_sum.detach() / output.weight

    return step


def stock_step(mode: str, batch_size: int, device: torch.device) -> Step:
    """The stock recipe's step on the tokens of ``mode``: its own loss method, then its own scaling and clipping."""
    path = Path(torchtune.__file__).parents[1] / "recipes" / "full_finetune_single_device.py"
    loss_step = runpy.run_path(str(path), run_name="stock")["FullFinetuneRecipeSingleDevice"]._loss_step
    model, _, batch, parts = build(mode, batch_size, device)
    parts.train_only(TRAINED)
    trained = list(parts.select(TRAINED).values())
    optimizer = torch.optim.AdamW(trained, lr=ADAMW["lr"])
    model.set_num_output_chunks(CHUNKS)
    shift = torch.full((batch_size, 1), -100, device=device)
    recipe = SimpleNamespace(
        _model=model,
        _loss_fn=CEWithChunkedOutputLoss(CHUNKS),
        activations_handling_ctx=contextlib.nullcontext(),
        ignore_labels_cache=shift,
    )

    def step() -> Tensor:
        vision = {key: batch["vision"][key] for key in ("images", "aspect_ratio")}
        inputs = {
            "tokens": batch["tokens"],
            "labels": batch["labels"],
            "encoder_input": vision,
            "encoder_mask": batch["vision_mask"],
        }
        tokens = (inputs["labels"] != -100).sum()
        loss = loss_step(recipe, inputs)
        (loss * tokens).backward()
        training.scale_grads(model, 1 / tokens)
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def keep_freed_memory() -> None:
    """Tell glibc to keep what is freed.

    It gives large blocks back to the system and faults them in again, thousands of pages a step, more for the one side
    or the other by accident of what was built first.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)


def seconds(step: Step, device: torch.device) -> float:
    """CPU time of one step; on a GPU wall time."""
    if device.type != "cuda":
        started = time.process_time()
        step()
        return time.process_time() - started
    torch.cuda.synchronize()
    started = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def peak_bytes(step: Step, device: torch.device) -> int:
    """Largest sum of memory that one step holds beyond what lives before it: activations, logits, gradients."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events))


def measure(steps: dict[str, Step], rounds: int, device: torch.device) -> tuple[dict, dict]:
    """Peak bytes of each step, and its seconds in each round; every round begins with another step."""
    for step in steps.values():
        step()
    memory = {name: peak_bytes(step, device) for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(seconds(steps[name], device))
    return memory, times


def ratios(memory: dict, times: dict, ours: str, theirs: str) -> dict[str, Any]:
    """Time and memory of one step over another's."""
    by_round = [mine / other for mine, other in zip(times[ours], times[theirs], strict=True)]
    return {
        "time_ratio": statistics.median(by_round),
        "time_ratio_quartiles": statistics.quantiles(by_round, n=4),
        "memory_ratio": memory[ours] / memory[theirs],
    }


def main() -> int:
    """Measure and write benchmark/results/train_step.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmark/results/train_step.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    device = torch.device(options.device)
    size = options.batch_size
    steps = {
        "medtune": medtune_step("momentum", size, device),
        "torchtune": stock_step("momentum", size, device),
        "medtune_fixed": medtune_step("fixed", size, device),
        "medtune_text": medtune_step("text", size, device),
        "torchtune_text": stock_step("text", size, device),
    }
    memory, times = measure(steps, options.rounds, device)
    result = {
        **stamp(sys.argv[0], sys.argv[1:]),
        "rounds": options.rounds,
        "batch_size": size,
        "clock": "wall" if device.type == "cuda" else "process CPU, one thread",
        **ratios(memory, times, *HEADLINE),
        "isolated": {
            name: {"what": what, **ratios(memory, times, ours, theirs)}
            for name, (ours, theirs, what) in ISOLATED.items()
        },
        "median_seconds": {name: statistics.median(values) for name, values in times.items()},
        "peak_bytes": memory,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    shown = ("time_ratio", "time_ratio_quartiles", "memory_ratio", "isolated", "median_seconds", "peak_bytes")
    print(json.dumps({key: result[key] for key in shown}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
