"""One VITask step beside its plain form: same weights, same batch, same losses and gradients, less work.

    python benchmark/vitask_step.py [--rounds 10] [--model internvl] [--device cpu] [--out FILE]
    python benchmark/vitask_step.py --model internvl2_2b --device cuda --dtype bfloat16 --out FILE

The plain form is Eq. 7 as it is written: each of its six distributions (L_Van; L_EP; student and teacher of L_RDA;
positive and negative of L_CRT) has its own run of the vision encoder, of the task-specific model where there is an
exemplar, and of the language model, and whole logits. The teacher, which is detached, runs without a graph. Both sides
train adapters and connector; encoder, projection and task-specific model are frozen. Optimizer and
clipping are left out.

Time is measured in turns as in train_step.py; a ratio is the median over rounds. ``cached`` is the same step with the
image features and exemplars given, as from a cache on disk, against the same plain form. Operations are counted by
torch, forward and backward, attention included. The defaults keep two proportions of the paper's model: an encoder that
costs 0.6 of a forward pass of the decoder, and prompts that are for the most part image. ``internvl2_2b`` is the
paper's model at its own sizes with random weights, beside a ViT-B/16; the mini tokenizer writes its words.
"""

import argparse
import contextlib
import json
import runpy
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchtune.training import set_default_dtype

from medtune.config import PACKAGE, import_path
from medtune.data.sample import Message, Sample
from medtune.data.training_set import TrainingSet
from medtune.evaluation.provenance import stamp
from medtune.losses.contrastive_response import contrastive_response
from medtune.losses.cross_entropy import IGNORE_INDEX, shifted_targets, token_cross_entropy
from medtune.losses.response_alignment import response_alignment
from medtune.models.classifier.tsm import LabelledSet, TaskModel
from medtune.models.common.chat_template import llama3
from medtune.models.common.early_transform import EarlyFusionTransform
from medtune.models.internvl import lora_internvl2_2b
from medtune.models.internvl._images import DynamicTiler
from medtune.models.internvl._model_builders import INTERNVL2_2B
from medtune.models.llama3_2_vision._transform import PLACEHOLDER
from medtune.models.lora.options import ATTENTION
from medtune.models.mini._tokenizer import MiniTokenizer
from medtune.modules.exemplar import TokenRows, exemplar_rows
from medtune.objectives import VITask
from medtune.objectives.base import Stage
from medtune.training.optimization import scale_gradients

MEASURE = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("train_step.py")), run_name="measure"))
CLASSES = ("melanocytic nevi", "dermatofibroma", "basal cell carcinoma", "vascular lesions")
QUESTION = "Analyze the given dermatoscope image for diagnosis. The possible diagnoses are: {}."
SETS = {"pictures": LabelledSet("multi_class", CLASSES)}
TOKENIZER = PACKAGE / "assets" / "mini_tokenizer"
REAL = "internvl2_2b"
MODELS = {
    "internvl": ("medtune.models.mini.lora_mini_internvl", "medtune.models.mini.mini_internvl_transform"),
    "llava": ("medtune.models.mini.lora_mini_llava", "medtune.models.mini.mini_llava_transform"),
    "llama": ("medtune.models.mini.lora_mini_vlm", "medtune.models.mini.mini_transform"),
}
ALPHA, BETA = 1.0, 1.0


class Pictures:
    """Random pictures of a few classes under one instruction; every sample has a negative."""

    name = "pictures"

    def __init__(self, size: int, side: int) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (size, side, side, 3), dtype=np.uint8)
        self.images = [Image.fromarray(one) for one in pixels]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        answer = CLASSES[index % len(CLASSES)]
        turns = (Message("user", QUESTION.format("; ".join(CLASSES))), Message("assistant", answer))
        return Sample(str(index), (str(index),), turns)

    def open_images(self, sample: Sample) -> list[Image.Image]:
        """The pictures that a sample names."""
        return [self.images[int(name)] for name in sample.images]


class Bench(SimpleNamespace):
    """Model, method, batch and trained parameters."""

    model: Any
    objective: VITask
    batch: dict[str, Any]
    trained: dict[str, torch.nn.Parameter]


def mini(options: argparse.Namespace) -> tuple[Any, Any, TaskModel]:
    """A mini model with adapters, its transform, and a small vision transformer."""
    builder, transforming = (import_path(path) for path in MODELS[options.model])
    sizes = {name: getattr(options, name) for name in ("embed_dim", "vision_layers", "decoder_layers", "image_size")}
    model = builder(vocab_size=1024, lora_rank=8, lora_attn_modules=ATTENTION, apply_lora_to_mlp=True, **sizes)
    shape = {"patch_size": 8, "embed_dim": options.tsm_dim, "num_heads": 4, "depth": options.tsm_layers}
    tsm = TaskModel("vit_tiny_patch16_224", SETS, options.tsm_image_size, arguments=shape)
    return model, transforming(TOKENIZER, image_size=options.image_size), tsm


def internvl2_2b() -> tuple[Any, Any, TaskModel]:
    """The paper's model and classifier, with the adapters of ``vitask/internvl2_2b_single_device``."""
    model = lora_internvl2_2b(ATTENTION, apply_lora_to_mlp=True, lora_rank=16, lora_alpha=32.0, lora_dropout=0.0)
    transform = EarlyFusionTransform(
        MiniTokenizer(TOKENIZER),
        llama3(),
        DynamicTiler(INTERNVL2_2B.image_size, 1),
        image_id=INTERNVL2_2B.image_id,
        tokens_per_tile=INTERNVL2_2B.tokens_per_tile,
        max_seq_len=4096,
        placeholder_text=PLACEHOLDER,
    )
    return model, transform, TaskModel("vit_base_patch16_224", SETS, 224)


def build(options: argparse.Namespace, device: torch.device) -> Bench:
    """Everything from fixed seeds; adapters and connector are trained, as in stage 1, under the losses of stage 2."""
    torch.manual_seed(0)
    with set_default_dtype(getattr(torch, options.dtype)), device:
        model, transform, tsm = internvl2_2b() if options.model == REAL else mini(options)
    transform.dtype = getattr(torch, options.dtype)
    for name, parameter in model.named_parameters():
        if "lora_b" in name:  # zero at the start, so that the other half of an adapter would get no gradient
            torch.nn.init.normal_(parameter, std=0.02)
    objective = VITask(tsm="in memory", alpha=ALPHA, beta=BETA, chunk_tokens=options.chunk_tokens)
    objective.attach({"tsm": tsm.float().eval().requires_grad_(False).to(device)})
    objective.bind(model, transform, 0)
    objective.to(device)
    pictures = Pictures(4 * options.batch_size, options.image_size)
    stage = Stage("contrast", ())
    items = objective.items(pictures, np.arange(len(pictures)), stage)
    objective.begin_stage(stage)
    samples = TrainingSet(pictures, items, transform, 0)
    batch = items.collate([samples[(0, index, True)] for index in range(options.batch_size)], transform)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    trained.update({f"objective.{name}": p for name, p in objective.named_parameters()})
    return Bench(model=model, objective=objective, batch=moved(batch, device), trained=trained, tsm=tsm)


def moved(value: Any, device: torch.device) -> Any:
    """A batch on the device."""
    if isinstance(value, Tensor):
        return value.to(device)
    return {key: moved(one, device) for key, one in value.items()} if isinstance(value, dict) else value


def plain_loss(bench: Bench) -> tuple[Tensor, Tensor]:
    """Eq. 7, each term from runs of its own."""
    model, objective, batch = bench.model, bench.objective, bench.batch
    count = len(batch["tokens"])
    own = {name: value[:count] for name, value in batch["vision"].items()}
    other = {name: value[count:] for name, value in batch["vision"].items()}
    rows = TokenRows(batch["tokens"], batch["vision_mask"], batch["labels"])
    text = batch["negative"]
    negative = TokenRows(text["tokens"], text["vision_mask"], text["labels"])

    def logits(rows: TokenRows, vision: dict[str, Tensor], exemplar: bool = False) -> tuple[Tensor, Tensor]:
        replace = None
        if exemplar:
            with torch.no_grad():
                features = bench.tsm.features(batch["exemplar_pixels"], "cls")
            ids = {"image_id": objective._image_id, "placeholder_id": objective._placeholder_id}
            rows = exemplar_rows(rows, "cls", **ids, pad_id=objective._pad_id, count=1)
            replace = rows.placeholders, objective.connector(features)
        hidden = model.hidden(rows.tokens, model.encode(vision), vision_mask=rows.vision_mask, replace=replace)
        targets = shifted_targets(rows.labels).flatten()
        asked = targets != IGNORE_INDEX
        return model.logits(hidden).flatten(0, 1)[asked], targets[asked]

    van = token_cross_entropy(*logits(rows, own))[0]
    ep = token_cross_entropy(*logits(rows, own, exemplar=True))[0]
    student, targets = logits(rows, own)
    with torch.no_grad():
        teacher, _ = logits(rows, own, exemplar=True)
    rda = response_alignment(student, teacher, targets)[0]
    positive, _ = logits(rows, own)
    crt = contrastive_response(positive, logits(negative, other)[0], targets)[0]
    return van + ep + ALPHA * rda + BETA * crt, targets.new_tensor(len(targets))


def our_loss(bench: Bench, given: dict[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """The method's step; ``given`` holds features that need not be computed."""
    output = bench.model.compute(bench.objective, {**bench.batch, **(given or {})})
    return output.loss_sum, output.weight


def step(bench: Bench, loss: Callable[[], tuple[Tensor, Tensor]]) -> Callable[[], None]:
    """Forward, backward and the division by the number of response tokens; gradients are kept until the next."""

    def run() -> None:
        for parameter in bench.trained.values():
            parameter.grad = None
        total, weight = loss()
        total.backward()
        scale_gradients(bench.trained, set(), 1.0 / weight.item(), 1)
        bench.loss = total.item() / weight.item()

    return run


class Everything(contextlib.nullcontext):
    """In place of the counter's tally by module, whose hooks cannot bear a gradient that is taken in a forward pass."""

    parents = frozenset({"Global"})


def operations(run: Callable[[], None]) -> int:
    """Floating-point operations of a step, with attention as plain products so that its backward pass is counted."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = Everything()
    with sdpa_kernel(SDPBackend.MATH), counter:
        run()
    return int(counter.get_total_flops())


def differences(bench: Bench, steps: dict[str, Callable[[], None]]) -> dict[str, Any]:
    """Loss per response token of each side, and the largest differences from the plain form."""
    losses, gradients = {}, {}
    for name, run in steps.items():
        run()
        losses[name] = bench.loss
        gradients[name] = {key: p.grad.clone() for key, p in bench.trained.items() if p.grad is not None}
    plain = gradients["plain"]
    assert all(plain.keys() == one.keys() for one in gradients.values())
    gaps = {
        name: max(float((one[key] - plain[key]).abs().max()) for key in plain)
        for name, one in gradients.items()
        if name != "plain"
    }
    return {
        "losses": losses,
        "max_loss_difference": max(abs(value - losses["plain"]) for value in losses.values()),
        "max_gradient_difference": max(gaps.values()),
        "largest_gradient": max(float(value.abs().max()) for value in plain.values()),
        "parameters_compared": len(plain),
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=[*MODELS, REAL], default="internvl")
    parser.add_argument("--embed-dim", type=int, default=256)
    parser.add_argument("--vision-layers", type=int, default=1)
    parser.add_argument("--decoder-layers", type=int, default=5)
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--tsm-layers", type=int, default=4)
    parser.add_argument("--tsm-dim", type=int, default=96)
    parser.add_argument("--tsm-image-size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--chunk-tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of model and pixels")
    parser.add_argument("--out", type=Path, default=Path("benchmark/results/vitask_step.json"))
    return parser.parse_args(arguments)


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Run both sides."""
    device = torch.device(options.device)
    bench = build(options, device)
    with torch.no_grad():
        given = {
            "features": bench.model.encode(bench.batch["vision"]),
            "exemplar_features": bench.objective.exemplar_features(bench.batch),
        }
    steps = {
        "medtune": step(bench, lambda: our_loss(bench)),
        "plain": step(bench, lambda: plain_loss(bench)),
        "cached": step(bench, lambda: our_loss(bench, given)),
    }
    same = differences(bench, steps)
    flops = {name: operations(run) for name, run in steps.items()}
    memory, times = MEASURE.measure(steps, options.rounds, device)
    cached = MEASURE.ratios(memory, times, "cached", "plain")
    image = bench.batch["tokens"] == bench.objective._image_id
    return {
        **same,
        **MEASURE.ratios(memory, times, "medtune", "plain"),
        "cached_time_ratio": cached["time_ratio"],
        "cached_memory_ratio": cached["memory_ratio"],
        "operations_ratio": flops["medtune"] / flops["plain"],
        "cached_operations_ratio": flops["cached"] / flops["plain"],
        "operations": flops,
        "median_seconds": {name: statistics.median(values) for name, values in times.items()},
        "operations_per_second": {name: flops[name] / statistics.median(values) for name, values in times.items()},
        "peak_bytes": memory,
        "tokens_per_row": bench.batch["tokens"].shape[1],
        "image_tokens_per_row": int(image.sum(dim=1).max()),
        "response_tokens": int((bench.batch["labels"] != IGNORE_INDEX).sum()),
    }


def main() -> int:
    """Measure and write benchmark/results/vitask_step.json."""
    options = parse()
    torch.set_num_threads(1)
    MEASURE.keep_freed_memory()
    found = measured(options)
    result = {
        **stamp(sys.argv[0], sys.argv[1:]),
        **{name: value for name, value in vars(options).items() if name != "out"},
        "clock": "wall" if options.device != "cpu" else "process CPU, one thread",
        **found,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
