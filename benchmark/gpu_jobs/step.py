"""One step of a method beside torchtune's stock step, on one model with random weights.

Both steps train vision encoder, projection and fusion layers of the same model instance with the same optimizer, on the
same tokens and images: forward, backward, scaling, clipping, update. They are timed in turn, round after round. The
stock side is the loss step of torchtune's own recipe file. Peak memory is the allocator's, reset before each step;
paged optimizer states lie outside of it.

Floating-point operations are counted while a forward pass runs, two for each multiply-add of linear maps,
convolutions and attention (all pairs, also those that a causal mask hides). The backward pass adds one such product
for each input that needs a gradient and one for each weight that is trained. What activation checkpointing computes
again is not counted, so utilisation is of the model's own operations, over the dense bf16 peak of the card.
"""

import argparse
import contextlib
import resource
import runpy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
import torchtune
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torchtune import training
from torchtune.modules import TanhGate, TransformerCrossAttentionLayer, TransformerSelfAttentionLayer
from torchtune.modules.loss import CEWithChunkedOutputLoss

from medtune.config import Component
from medtune.errors import TrainingError
from medtune.models.llama3_2_vision import llama3_2_vision_11b
from medtune.models.llama3_2_vision._collate import BatchLayout, collate
from medtune.models.mini import mini_vlm
from medtune.objectives import InstFree
from medtune.objectives.base import Objective
from medtune.training.optimization import clip_gradients, gradient_norm, make_optimizer, scale_gradients
from medtune.training.parts import TrainedParts

TRAINED = ("vision", "projection", "fusion")
OPTIMIZERS = {
    "paged_adamw8bit": {"_component_": "bitsandbytes.optim.PagedAdamW8bit", "lr": 2e-5, "min_8bit_size": 1 << 20},
    "adamw": {"_component_": "torch.optim.AdamW", "lr": 2e-5},
}
CHUNKS = 8
CLIP = 1.0
VECTORS = 8
OPEN_GATE = 0.5  # published weights have open gates; new ones would make the gradient of every fusion layer zero
# Dense bf16 peak in TFLOP/s by a part of the card's name, the more particular name first (NVIDIA's data sheets).
PEAKS = {"H100 PCIe": 756.0, "H100 NVL": 835.0, "H100": 989.4, "H200 NVL": 835.0, "H200": 989.4, "A100": 312.0}


@dataclass(frozen=True)
class Size:
    """A model and what a batch for it needs to know."""

    name: str
    build: Callable[[str], Any]
    image_size: int
    patch_size: int
    vocab_size: int
    placeholder_id: int
    dtype: torch.dtype


REAL = Size(
    "llama3_2_vision_11b",
    lambda mode: llama3_2_vision_11b(encoder_mode=mode),
    560,
    14,
    128_256,
    118_075,
    torch.bfloat16,
)
TINY = Size(
    "mini_vlm",
    lambda mode: mini_vlm(
        1024, image_size=16, embed_dim=32, vision_layers=2, decoder_layers=2, heads=2, encoder_mode=mode
    ),
    16,
    8,
    1024,
    700,
    torch.float32,
)
METHODS: dict[str, Callable[[], Objective]] = {"instfree": lambda: InstFree(mode="momentum", vectors=VECTORS)}
"""A method's name and its objective; whatever trains on image, prompt and report can be added."""


@dataclass
class Bench:
    """One model, one optimizer and one batch, which both steps share."""

    model: Any
    objective: Objective
    optimizer: torch.optim.Optimizer
    parts: TrainedParts
    trainable: tuple[str, ...]
    batch: dict[str, Any]
    device: torch.device


@dataclass(frozen=True)
class Step:
    """A training step: ``forward`` gives the summed loss and the count it is divided by, ``update`` does the rest."""

    forward: Callable[[], tuple[Tensor, Tensor]]
    update: Callable[[Tensor, Tensor], None]

    def __call__(self) -> float:
        """Run it; returns the mean loss.

        Raises:
            TrainingError: If the loss is not finite: such a step measures nothing.
        """
        loss, weight = self.forward()
        self.update(loss, weight)
        mean = float(loss.detach() / weight)
        if mean != mean or abs(mean) == float("inf"):
            raise TrainingError(f"the loss is {mean}; lower the learning rate")
        return mean


class ModelFlops(TorchFunctionMode):
    """Adds up the operations of a step while its forward pass runs; see the head of this file for what counts."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function and count it."""
        out = func(*args, **(kwargs or {}))
        if func is F.linear or func is F.conv2d:
            taken, weight = args[:2]
            gradients = int(taken.requires_grad) + int(weight.requires_grad)
            self.total += 2 * out.numel() * weight[0].numel() * (1 + gradients)
        elif func is F.scaled_dot_product_attention:
            q, k, v = args[:3]
            scores = q.requires_grad or k.requires_grad
            gradients = sum(map(int, (scores, q.requires_grad, k.requires_grad, v.requires_grad)))
            self.total += 2 * q.numel() * k.shape[-2] * (2 + gradients)
        return out


def make_batch(size: Size, batch_size: int, tokens: int, device: torch.device) -> dict[str, Any]:
    """Rows of equal length: a prompt of one image and the placeholders, then a report of random words.

    Raises:
        TrainingError: If ``tokens`` leave no room for a report.
    """
    head, tail = 5, 5  # as many tokens as the chat format has around the user's turn
    prompt = head + 1 + VECTORS + tail
    if tokens <= prompt:
        raise TrainingError(f"--tokens must be more than the {prompt} of the prompt, got {tokens}")
    generator = torch.Generator().manual_seed(0)

    def words(count: int) -> list[int]:
        return torch.randint(size.placeholder_id, (count,), generator=generator).tolist()

    items = []
    for row in range(batch_size):
        report = words(tokens - prompt)
        start = [*words(head), size.vocab_size, *[size.placeholder_id] * VECTORS, *words(tail)]
        tile = torch.randn(1, 3, size.image_size, size.image_size, generator=generator)
        items.append(
            {
                "id": str(row),
                "tokens": start + report,
                "labels": [-100] * prompt + report,
                "images": [tile],
                "aspect_ratio": [torch.tensor([1, 1])],
            }
        )
    features = (size.image_size // size.patch_size) ** 2 + 1
    layout = BatchLayout(0, size.vocab_size, size.image_size, features)
    batch = collate(items, layout, pad_side="right", images=1, tiles=1, dtype=size.dtype)
    batch["vision"] = {name: value.to(device) for name, value in batch["vision"].items()}
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def build(options: argparse.Namespace, size: Size, device: torch.device) -> Bench:
    """Model, objective and optimizer, made on the device in the model's type; nothing passes through host memory."""
    torch.manual_seed(0)
    with training.set_default_dtype(size.dtype), device:
        model = size.build(options.encoder_mode)
    for module in model.modules():
        if isinstance(module, TanhGate):
            torch.nn.init.constant_(module.scale, OPEN_GATE)
    objective = METHODS[options.method]()
    objective.bind(model, SimpleNamespace(placeholder_text="", placeholder_id=size.placeholder_id), 0)
    objective.to(device)
    parts = TrainedParts(model, objective, {**model.parts(), **objective.parts()})
    if options.activation_checkpointing:
        layers = {TransformerSelfAttentionLayer, TransformerCrossAttentionLayer}
        training.set_activation_checkpointing(model, auto_wrap_policy=layers)
    stage = objective.stages(TRAINED, 1, None)[-1]
    parts.train_only(stage.trainable)
    objective.begin_stage(stage)
    optimizer = make_optimizer(Component(**OPTIMIZERS[options.optimizer]), parts, list(stage.trainable), {})
    batch = make_batch(size, options.batch_size, options.tokens, device)
    return Bench(model, objective, optimizer, parts, stage.trainable, batch, device)


def medtune_step(bench: Bench) -> Step:
    """What the trainer does with one micro-batch of the method's last stage."""
    trained = bench.parts.select(bench.trainable)

    def forward() -> tuple[Tensor, Tensor]:
        output = bench.model.compute(bench.objective, bench.batch)
        return output.loss_sum, output.weight

    def update(loss: Tensor, weight: Tensor) -> None:
        loss.backward()
        scale_gradients(trained, set(), 1.0 / float(weight), 1)
        parameters = list(trained.values())
        clip_gradients(parameters, float(gradient_norm(parameters)), CLIP)
        bench.optimizer.step()
        bench.optimizer.zero_grad(set_to_none=True)
        bench.objective.after_step()

    return Step(forward, update)


def stock_step(bench: Bench) -> Step:
    """The stock recipe's step: its own loss method, its scaling and its clipping; placeholders are plain tokens."""
    path = Path(torchtune.__file__).parents[1] / "recipes" / "full_finetune_single_device.py"
    loss_step = runpy.run_path(str(path), run_name="stock")["FullFinetuneRecipeSingleDevice"]._loss_step
    model, batch = bench.model, bench.batch
    model.set_num_output_chunks(CHUNKS)
    recipe = SimpleNamespace(
        _model=model,
        _loss_fn=CEWithChunkedOutputLoss(CHUNKS),
        activations_handling_ctx=contextlib.nullcontext(),
        ignore_labels_cache=torch.full((len(batch["tokens"]), 1), -100, device=bench.device),
    )

    def forward() -> tuple[Tensor, Tensor]:
        vision = {key: batch["vision"][key] for key in ("images", "aspect_ratio")}
        inputs = {"encoder_input": vision, "encoder_mask": batch["vision_mask"]}
        inputs |= {"tokens": batch["tokens"], "labels": batch["labels"]}
        tokens = (batch["labels"] != -100).sum()
        return loss_step(recipe, inputs) * tokens, tokens

    def update(loss: Tensor, weight: Tensor) -> None:
        loss.backward()
        training.scale_grads(model, 1 / weight)
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=CLIP)
        bench.optimizer.step()
        bench.optimizer.zero_grad(set_to_none=True)

    return Step(forward, update)


def model_flops(step: Step) -> int:
    """Operations of one step, from one forward pass."""
    with ModelFlops() as counter:
        step.forward()
    return counter.total


def timed(step: Step, device: torch.device) -> tuple[float, int | None]:
    """Seconds of one step and its peak memory in bytes, None on a CPU."""
    if device.type != "cuda":
        started = time.perf_counter()
        step()
        return time.perf_counter() - started, None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - started, torch.cuda.max_memory_allocated()


def peak_flops(name: str | None) -> float | None:
    """Dense bf16 operations a second of a card, None for one that the table lacks."""
    return next((1e12 * value for part, value in PEAKS.items() if name is not None and part in name), None)


def measure(options: argparse.Namespace, size: Size, device: torch.device) -> dict[str, Any]:
    """Build, warm up, time both steps in turn and sum up."""
    bench = build(options, size, device)
    steps = {options.method: medtune_step(bench), "torchtune": stock_step(bench)}
    flops = {name: model_flops(step) for name, step in steps.items()}
    for _ in range(options.warmup):
        for step in steps.values():
            step()
    before = torch.cuda.memory_allocated() if device.type == "cuda" else None
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    memory: dict[str, list[int | None]] = {name: [] for name in steps}
    for round_number in range(options.rounds):
        for name in list(steps) if round_number % 2 else list(reversed(steps)):
            took, peak = timed(steps[name], device)
            seconds[name].append(took)
            memory[name].append(peak)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    ours, theirs = seconds[options.method], seconds["torchtune"]
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    trained = bench.parts.select(bench.trainable)
    return {
        "model": size.name,
        "parameters": {"all": _count(bench.model.parameters()), "trained": _count(trained.values())},
        "steps": {name: _summary(options, seconds[name], memory[name], flops[name], peak_flops(gpu)) for name in steps},
        "time_ratio": statistics.median(ratios),
        "time_ratio_range": [min(ratios), max(ratios)],
        "memory_before_bytes": before,
        "host_memory_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "gpu": gpu,
        "gpu_peak_flops": peak_flops(gpu),
    }


def _count(parameters: Any) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _summary(
    options: argparse.Namespace, seconds: list[float], memory: list[int | None], flops: int, peak: float | None
) -> dict[str, Any]:
    median = statistics.median(seconds)
    known = [one for one in memory if one is not None]
    return {
        "median_seconds": median,
        "seconds": seconds,
        "samples_per_second": options.batch_size / median,
        "tokens_per_second": options.batch_size * options.tokens / median,
        "peak_memory_bytes": max(known) if known else None,
        "model_flops": flops,
        "model_flops_per_second": flops / median,
        "model_flops_utilisation": None if peak is None else flops / median / peak,
    }
