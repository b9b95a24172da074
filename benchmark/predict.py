"""Answers per second of medtune's generator beside transformers' ``generate`` on the same weights.

    python benchmark/predict.py [--device cuda] [--images 24] [--rounds 5]

A mini model with random weights is exported and loaded in transformers. Each picture gets four questions of the four
lengths that the evaluation asks. Timed, in turn, round after round: transformers one question at a time (what the
papers' scripts do), transformers in padded batches, medtune one at a time, medtune in batches. Reading and resizing
the pictures belongs to the time of all four. Greedy, no stop token, so that every answer has the same length.

Beside it, on models of InternVL's and LLaVA's shape (256 and 576 tokens per image): medtune's generator with twelve
questions on each image, which reads the image's tokens once for all of them, against itself without that
(``share_prefix``). Every ratio is the median of the rounds' own ratios, in which what is compared ran side by side.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from medtune.data.sample import Message, Sample
from medtune.evaluation.provenance import commit, hardware, versions
from medtune.generation.engine.generator import Generator
from medtune.generation.requests import Request
from medtune.models.mini import (
    mini_internvl,
    mini_internvl_transform,
    mini_llava,
    mini_llava_transform,
    mini_transform,
    mini_vlm,
    train_mini_tokenizer,
)
from medtune.models.weights import save_hf

QUESTIONS = (
    "What is the cell size?",
    "Is the cell size of this cell big?",
    "What does this image show?",
    "Which is the cell size of the white blood cell in this image?\nA. big\nB. small\nAnswer with one of the options.",
)
VOCABULARY = 1024
# Processor time counts no waiting for other programs, yet all threads: medtune's, that prepares prompts, costs full.
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}
NOTES = {"wall": "meant for a machine without other work", "processor": "a machine that ran other work; see its load"}
ATTRIBUTES = (
    "cell size", "cell shape", "nucleus shape", "nuclear cytoplasmic ratio", "chromatin density", "cytoplasm vacuole",
    "cytoplasm texture", "cytoplasm colour", "granule type", "granule colour", "granularity", "kind of cell",
)  # fmt: skip
# Each model's own ratio of image tokens to text, and about its ratio of the encoder's work to the decoder's.
SHARED: dict[str, tuple[Callable, Callable, dict, dict]] = {
    "internvl": (
        mini_internvl, mini_internvl_transform, {"vision_layers": 1, "embed_dim": 256}, {"image_size": 256},
    ),
    "llava": (mini_llava, mini_llava_transform, {"vision_layers": 3, "embed_dim": 256}, {"image_size": 192}),
}  # fmt: skip


class Pictures:
    """Noise of the size of the WBCAtt pictures, by number; decoded from memory each time, as a file would be."""

    name = "noise"

    def open_images(self, sample: Sample) -> list[Image.Image]:
        """The pictures of a sample."""
        return [Image.fromarray(self._pixels(int(name))) for name in sample.images]

    def _pixels(self, seed: int) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 256, (360, 360, 3), dtype=np.uint8)


def build(folder: Path, device: torch.device) -> tuple:
    """Our model, its transform and the same weights in transformers."""
    from transformers import MllamaConfig, MllamaForConditionalGeneration

    train_mini_tokenizer(QUESTIONS, VOCABULARY, folder / "tokenizer")
    torch.manual_seed(0)
    # transformers lets text before the image attend to it; hf_rows does the same.
    ours = mini_vlm(VOCABULARY, hf_rows=True).eval().to(device)
    save_hf({name: value.cpu() for name, value in ours.state_dict().items()}, ours.family, folder / "hf")
    config = MllamaConfig.from_pretrained(folder / "hf")
    # transformers reads the state after a layer where the weights mean the state before it.
    states = config.vision_config.intermediate_layers_indices
    config.vision_config.intermediate_layers_indices = [index - 1 for index in states]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = MllamaForConditionalGeneration.from_pretrained(folder / "hf", config=config, dtype=torch.float32)
    transform = mini_transform(folder / "tokenizer")
    transform.stop_ids = []
    theirs.generation_config.eos_token_id = None
    return ours, theirs.eval().to(device), transform


def ask_medtune(model, transform, requests: list[Request], batch_size: int, new_tokens: int, device) -> dict[str, str]:
    """Answers of medtune's generator."""
    sizes = {"batch_size": batch_size, "max_new_tokens": new_tokens}
    generator = Generator(model, transform, **sizes, device=device, dtype=next(model.parameters()).dtype)
    return {answer.id: answer.text for answer in generator(requests)}


@torch.inference_mode()
def ask_transformers(
    model, transform, requests: list[Request], batch_size: int, new_tokens: int, device
) -> dict[str, str]:
    """Answers of transformers' generate, with the same prompts and tiles."""
    answers = {}
    for start in range(0, len(requests), batch_size):
        chunk = requests[start : start + batch_size]
        items = [transform(r.sample, r.source.open_images(r.sample), inference=True) for r in chunk]
        batch = transform.collate(items, pad_side="left")
        ones = torch.ones(len(chunk), 1, dtype=torch.long, device=device)
        images = batch["vision"]["images"].to(device, model.dtype)
        padding = model.config.vision_config.max_num_tiles - images.shape[2]  # as transformers' processor pads
        tokens = model.generate(
            input_ids=batch["tokens"].to(device),
            attention_mask=batch["padding"].long().to(device),
            pixel_values=F.pad(images, (0, 0, 0, 0, 0, 0, 0, padding)),
            aspect_ratio_ids=ones,
            aspect_ratio_mask=F.pad(ones[:, :, None], (0, padding)),
            cross_attention_mask=F.pad(batch["vision_mask"][:, :, :1, None].long().to(device), (0, padding)),
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=transform.pad_id,
        )
        for request, row in zip(chunk, tokens[:, batch["tokens"].shape[1] :].tolist(), strict=True):
            answers[request.id] = transform.decode(row)
    return answers


def measure(arguments: argparse.Namespace) -> dict:
    """Time the four ways in turn."""
    device = torch.device(arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs, transform = build(Path(folder), device)
    source = Pictures()
    requests = [
        Request(f"{image}/{i}", Sample(f"{image}/{i}", (str(image),), (Message("user", text),)), source)
        for image, (i, text) in itertools.product(range(arguments.images), enumerate(QUESTIONS))
    ]
    ways: dict[str, tuple[Callable, object, int]] = {
        "transformers_one_by_one": (ask_transformers, theirs, 1),
        "transformers_batched": (ask_transformers, theirs, arguments.batch_size),
        "medtune_one_by_one": (ask_medtune, ours, 1),
        "medtune_batched": (ask_medtune, ours, arguments.batch_size),
    }
    jobs = {
        name: lambda ask=ask, model=model, size=size: ask(
            model, transform, requests, size, arguments.new_tokens, device
        )
        for name, (ask, model, size) in ways.items()
    }
    return summary(*timed(jobs, len(requests), arguments))


def timed(
    jobs: dict[str, Callable[[], dict[str, str]]], count: int, arguments: argparse.Namespace
) -> tuple[dict[str, list[float]], dict[str, dict[str, str]]]:
    """Answers per second of each job in each round, the jobs of a round in turn; and what they answered."""
    rates: dict[str, list[float]] = {name: [] for name in jobs}
    answers: dict[str, dict[str, str]] = {}
    clock = CLOCKS[arguments.clock]
    for round_number in range(arguments.rounds + 1):
        for name, job in jobs.items():
            start = clock()
            answers[name] = job()
            if round_number:  # the first round warms up
                rates[name].append(count / (clock() - start))
    return rates, answers


def ratio(rates: dict[str, list[float]], one: str, other: str) -> float:
    """How many times faster one way is: the median over the rounds."""
    return statistics.median(a / b for a, b in zip(rates[one], rates[other], strict=True))


def measure_shared(arguments: argparse.Namespace) -> dict:
    """Twelve questions on each image, their beginning read once or twelve times, on each shape."""
    found = {}
    for name, (build_model, build_transform, sizes, image) in SHARED.items():
        with tempfile.TemporaryDirectory() as folder:
            train_mini_tokenizer(QUESTIONS, VOCABULARY, folder)
            transform = build_transform(folder, **image)
        torch.manual_seed(0)
        model = build_model(VOCABULARY, **sizes, **image).eval().to(arguments.device)
        transform.stop_ids = []
        source = Pictures()
        requests = [
            Request(f"{image}/{i}", Sample(f"{image}/{i}", (str(image),), (Message("user", f"{text}?"),)), source)
            for image, (i, text) in itertools.product(range(arguments.shared_images), enumerate(ATTRIBUTES))
        ]
        found[name] = compare_shared(model, transform, requests, arguments)
    return found


def compare_shared(model, transform, requests: list[Request], arguments: argparse.Namespace) -> dict:
    """One shape's rates, and what was read."""
    read: dict[str, int] = {}

    def ask(share: bool) -> dict[str, str]:
        generator = Generator(
            model,
            transform,
            batch_size=2 * len(ATTRIBUTES),
            max_new_tokens=arguments.new_tokens,
            device=arguments.device,
            dtype=next(model.parameters()).dtype,
            share_prefix=share,
        )
        answers = {answer.id: answer.text for answer in generator(requests)}
        read["shared" if share else "plain"] = generator.tokens_read
        return answers

    jobs = {"plain": lambda: ask(False), "shared": lambda: ask(True)}
    rates, answers = timed(jobs, len(requests), arguments)
    return {
        "shared_prefix_speedup": ratio(rates, "shared", "plain"),
        "answers_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "all_rounds": rates,
        "prompt_tokens": sum(transform.token_count(request.sample) for request in requests) // len(requests),
        "prompt_tokens_read": read,
        "same_answers": sum(answers["shared"][key] == text for key, text in answers["plain"].items()) / len(requests),
        "questions": len(requests),
        "different_answers": len(set(answers["plain"].values())),
    }


def summary(rates: dict[str, list[float]], answers: dict[str, dict[str, str]]) -> dict:
    """Medians, their ratios, and how many answers agree."""
    reference = answers["transformers_one_by_one"]
    median = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "unit": "answers per second of the clock, median over the rounds",
        "answers_per_second": median,
        "all_rounds": rates,
        "speedup": ratio(rates, "medtune_batched", "transformers_one_by_one"),
        "speedup_over_transformers_batched": ratio(rates, "medtune_batched", "transformers_batched"),
        "same_answers": {
            name: sum(found[key] == text for key, text in reference.items()) / len(reference)
            for name, found in answers.items()
        },
        "questions": len(reference),
        "different_answers": len(set(reference.values())),
    }


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--clock", default="wall", choices=CLOCKS, help="processor: on a machine with other work")
    parser.add_argument("--shared-images", type=int, default=4)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "predict.json")
    arguments = parser.parse_args()
    result = {
        **measure(arguments),
        "shared_prefix": measure_shared(arguments),
        "settings": {key: str(value) for key, value in vars(arguments).items() if key != "output"},
        "threads": torch.get_num_threads(),
        "command": " ".join(["python", "benchmark/predict.py", *sys.argv[1:]]),
        "commit": commit(),
        "versions": versions(),
        "machine": NOTES[arguments.clock],
        "machine_load": {"at": "the end, 1, 5 and 15 minutes", "processes": os.getloadavg()},
        "hardware": {**hardware(), "gpu": torch.cuda.get_device_name() if arguments.device == "cuda" else None},
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    told = ("answers_per_second", "speedup", "speedup_over_transformers_batched", "same_answers")
    print(json.dumps({key: result[key] for key in told}, indent=2))
    print(json.dumps({name: found["shared_prefix_speedup"] for name, found in result["shared_prefix"].items()}))


if __name__ == "__main__":
    main()
