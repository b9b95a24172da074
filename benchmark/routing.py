"""Questions per second of a mixed stream of seven tasks, each task with an adapter of its own.

    OMP_NUM_THREADS=1 python benchmark/routing.py [--rounds 9] [--out FILE]

The model has InternVL3's architecture (Qwen2.5 decoder), tiny and random; adapters of rank 8 are on all seven linear
maps of each decoder layer, saved as PEFT writes them. Every question has an image of its own, all have equally many
words, and answers have no stop token, so all are of one length. The ways, taken in turn in every round on the process's
CPU time:

- ``load_and_merge``: for each question the adapter is read from disk and merged into the base weights, the question is
  answered, and the base weights are restored (ME-VLIP, section 2.3)
- ``merge``: the same with all adapters in memory
- ``switch``: the bank of adapters, one question after the other
- ``mixed_batch``: the bank, in batches of mixed tasks, through the backend of ``predict``
- ``single_adapter``: torchtune's LoRA with one adapter for all questions, in the same batches
- ``base``: no adapter, in the same batches

A ratio is the median of the rounds' own ratios. Routing a question is not among the times. ``switch_ms`` is what a
forward pass of one token for a whole batch takes longer after the route of every row has changed. Memory counts the
bytes of all tensors of the process that are alive.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from medtune.config import PACKAGE, Component
from medtune.data.sample import Message, Sample
from medtune.evaluation.provenance import stamp
from medtune.generation.backends.base import AnswerSettings
from medtune.generation.engine.generator import Generator
from medtune.generation.requests import Request
from medtune.models.lora.merging import WeightMerger
from medtune.models.lora.peft import load_peft, read_peft, save_peft
from medtune.models.mini import lora_mini_internvl, mini_internvl, mini_internvl_transform
from medtune.models.weights import save_hf
from medtune.routing.backend import RoutedAnswers, RoutedModel
from medtune.routing.extension import RoutedAdapters, with_adapter

TOKENIZER = PACKAGE / "assets" / "mini_tokenizer"
VOCABULARY = 1024
TASKS = (
    "classification", "multi_label_classification", "detection", "instance_detection", "counting", "regression",
    "report_generation",
)  # fmt: skip
WORDS = ("cell", "nucleus", "round", "large", "small", "granule", "pink", "shows", "the", "with", "image", "smear")
LORA: dict[str, Any] = {"lora_rank": 8, "lora_alpha": 16.0, "apply_lora_to_mlp": True}
BATCHED = ("mixed_batch", "single_adapter", "base")


class Noise:
    """Images of noise, by number; decoded from memory, as a file would be."""

    name = "noise"

    def __init__(self, side: int) -> None:
        self.side = side

    def open_images(self, sample: Sample) -> list[Image.Image]:
        """The image of a sample."""
        pixels = np.random.default_rng(int(sample.images[0])).integers(0, 256, (self.side, self.side, 3), np.uint8)
        return [Image.fromarray(pixels)]


def questions(options: argparse.Namespace) -> list[Request]:
    """The stream: the tasks take turns, each question has an image of its own."""
    source = Noise(options.image_size)
    made = []
    for number in range(options.questions):
        rng = np.random.default_rng(number)
        text = " ".join(rng.choice(WORDS, options.words))
        task = TASKS[number % len(TASKS)]
        sample = Sample(str(number), (str(number),), (Message("user", f"<image>{text}"),), {"task": task})
        made.append(with_adapter(Request(sample.id, sample, source), task, task))
    return made


class World:
    """Base weights and adapters on disk, and the ways to answer with them.

    Args:
        options: Sizes.
        folder: Where the files are written.
    """

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.sizes = {name: getattr(options, name) for name in ("image_size", "embed_dim", "decoder_layers")}
        self.sizes |= {"decoder": "qwen2", "vision_layers": options.vision_layers, "vocab_size": VOCABULARY}
        self.sizes["heads"] = options.embed_dim // 32
        self._write()
        self.transform = mini_internvl_transform(TOKENIZER, image_size=options.image_size)
        self.transform.stop_ids = []
        self.requests = questions(options)
        before = tensor_bytes()
        self.routed = self._routed()
        self.held = tensor_bytes() - before
        self.bank = self.routed._generator.extension.bank  # type: ignore[attr-defined]
        self.family = self.bank.model.family
        self.dense = self._model(mini_internvl)
        self.stash = {task: self._read(task) for task in TASKS}
        self.merger = WeightMerger(self.dense, self.stash)
        self.single = self._model(lora_mini_internvl, **LORA)
        self.single.load_state_dict(self.dense.state_dict(), strict=False)
        self._answers: dict[str, str] = {}

    def _model(self, builder: Callable[..., Any], **lora: Any) -> Any:
        torch.manual_seed(0)
        return builder(**self.sizes, **lora).eval()

    def _write(self) -> None:
        base = self._model(mini_internvl)
        save_hf(base.state_dict(), base.family, self.folder / "base")
        model = self._model(lora_mini_internvl, **LORA)
        for number, task in enumerate(TASKS):
            generator = torch.Generator().manual_seed(number)
            state = {
                key: torch.randn(value.shape, generator=generator)
                * (0.3 if ".lora_b." in key else value.shape[1] ** -0.5)
                for key, value in model.state_dict().items()
                if ".lora_" in key
            }
            save_peft(state, model, self.folder / task, str(self.folder / "base"))

    def _routed(self) -> RoutedAnswers:
        """The backend as a config would make it."""
        options = self.options
        model = {"_component_": "medtune.models.mini.mini_internvl", **self.sizes}
        if options.nf4:
            model |= {"_component_": "medtune.models.mini.qlora_mini_internvl", **LORA}
        transform = {"_component_": "medtune.models.mini.mini_internvl_transform", "path": str(TOKENIZER)}
        backend = RoutedModel(
            Component(model),
            Component(**transform, image_size=options.image_size),
            str(self.folder / "base"),
            {task: str(self.folder / task) for task in TASKS},
            mode="oracle",
            batch_size=options.batch_size,
        )
        answers = backend.open(AnswerSettings(options.new_tokens, torch.device("cpu"), torch.float32))
        answers._generator.transform.stop_ids = []  # type: ignore[attr-defined]
        return answers

    def _read(self, task: str) -> Any:
        return read_peft(self.folder / task, self.family)

    def generator(self, model: Any, batch_size: int, extension: RoutedAdapters | None = None) -> Generator:
        """Our generator on a model."""
        sizes = {"batch_size": batch_size, "max_new_tokens": self.options.new_tokens}
        return Generator(model, self.transform, **sizes, extension=extension)

    def load_and_merge(self) -> dict[str, str]:
        """Read the adapter of each question, merge it, answer, restore."""
        return self._merged(self._read)

    def merge(self) -> dict[str, str]:
        """The same from memory."""
        return self._merged(lambda task: self.stash[task])

    def _merged(self, read: Callable[[str], Any]) -> dict[str, str]:
        answers, generator = {}, self.generator(self.dense, 1)
        for request in self.requests:
            self.merger.adapters["now"] = read(request.notes["adapter"])
            with self.merger.merged("now"):
                answers.update(told(generator([request])))
        return answers

    def switch(self) -> dict[str, str]:
        """One question after the other, each with its adapter of the bank."""
        return told(self.generator(self.bank.model, 1, RoutedAdapters(self.bank))(self.requests))

    def mixed_batch(self) -> dict[str, str]:
        """Batches of mixed tasks."""
        return told(answer for batch in self.routed.batches(self.requests) for answer in batch)

    def single_adapter(self) -> dict[str, str]:
        """All questions with one adapter, as torchtune computes it."""
        self.single.load_state_dict(load_peft(self.folder / TASKS[0], self.single), strict=False)
        return told(self.generator(self.single, self.options.batch_size)(self.requests))

    def base(self) -> dict[str, str]:
        """All questions without an adapter."""
        return told(self.generator(self.dense, self.options.batch_size)(self.requests))

    def alone(self) -> dict[str, str]:
        """Each question alone, with torchtune's LoRA of its adapter: what every way must answer."""
        answers: dict[str, str] = {}
        for task in TASKS:
            self.single.load_state_dict(load_peft(self.folder / task, self.single), strict=False)
            own = [request for request in self.requests if request.notes["adapter"] == task]
            answers.update(told(self.generator(self.single, 1)(own)))
        return answers

    def switch_milliseconds(self, repeats: int = 60) -> float:
        """How much longer one token for a batch takes after all rows have changed their adapter."""
        rows = self.options.batch_size
        tokens, model = torch.ones(rows, 1, dtype=torch.long), self.bank.model
        routes = [[(row + shift) % len(TASKS) for row in range(rows)] for shift in (0, 1)]
        times: dict[str, list[float]] = {"kept": [], "changed": []}
        with torch.inference_mode():
            for number in range(2 * repeats):
                kind = "changed" if number % 2 else "kept"
                start = time.process_time()
                self.bank.set_route(routes[(number + 1) // 2 % 2])
                model.hidden(tokens)
                times[kind].append(time.process_time() - start)
        return 1000 * (statistics.median(times["changed"]) - statistics.median(times["kept"]))


def told(answers: Any) -> dict[str, str]:
    """Text by id."""
    return {answer.id: answer.text for answer in answers}


def tensor_bytes() -> int:
    """Bytes of all tensors that are alive; shared memory counts once."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor):  # isinstance would ask deprecated objects of torch for their class
            for part in parts_of(thing):
                storage = part.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def parts_of(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The plain tensors of a tensor; an NF4 tensor has several."""
    if type(tensor).__name__ == "NF4Tensor":
        names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
        return [getattr(tensor, name) for name in names]
    return [] if tensor.is_meta else [tensor]


def memory(world: World) -> dict[str, Any]:
    """What the backend holds beside the sizes of base and adapters."""
    base = sum(part.nbytes for parameter in world.bank.model.parameters() for part in parts_of(parameter.data))
    adapters = sum(tensor.nbytes for adapter in world.stash.values() for tensor in adapter.state.values())
    return {
        "base_bytes": base,
        "adapters_bytes": adapters,
        "held_bytes": world.held,
        "memory_over_base_and_adapters": world.held / (base + adapters),
    }


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Time the ways in turn."""
    world = World(options, folder)
    ways: dict[str, Callable[[], dict[str, str]]] = {
        "load_and_merge": world.load_and_merge,
        "merge": world.merge,
        "switch": world.switch,
        "mixed_batch": world.mixed_batch,
        "single_adapter": world.single_adapter,
        "base": world.base,
    }
    if options.nf4:  # no adapter can be merged into NF4, and torchtune's LoRA here is on a dense base
        ways = {name: ways[name] for name in ("switch", "mixed_batch")}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    answers: dict[str, dict[str, str]] = {}
    names = list(ways)
    for number in range(options.rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = time.process_time()
            answers[name] = ways[name]()
            if number:  # the first round warms up
                rates[name].append(len(world.requests) / (time.process_time() - start))
    return {**summary(world, rates, answers), "memory": memory(world)}


def summary(world: World, rates: dict[str, list[float]], answers: dict[str, dict[str, str]]) -> dict[str, Any]:
    """Ratios, and the share of answers that are those of each adapter alone."""

    def ratio(one: str, other: str) -> float | None:
        if one not in rates or other not in rates:
            return None
        return statistics.median(a / b for a, b in zip(rates[one], rates[other], strict=True))

    reference = answers["switch"] if world.options.nf4 else world.alone()
    ours = [name for name in answers if name not in ("single_adapter", "base")]
    return {
        "questions_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "speedup_vs_merge": ratio("mixed_batch", "load_and_merge"),
        "speedup_vs_stashed_merge": ratio("mixed_batch", "merge"),
        "speedup_vs_switch": ratio("mixed_batch", "switch"),
        "relative_to_single_adapter": ratio("mixed_batch", "single_adapter"),
        "relative_to_base": ratio("mixed_batch", "base"),
        "switch_ms": world.switch_milliseconds(),
        "same_answers": {
            name: sum(answers[name][key] == text for key, text in reference.items()) / len(reference) for name in ours
        },
        "different_answers": len(set(reference.values())),
        "all_rounds": rates,
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    sizes = {
        "rounds": 9, "questions": 64, "batch-size": 16, "words": 8, "new-tokens": 32, "image-size": 64,
        "embed-dim": 256, "vision-layers": 2, "decoder-layers": 6,
    }  # fmt: skip
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--nf4", action="store_true", help="an NF4 base, as with QLoRA: the two ways of the bank only")
    parser.add_argument("--out", type=Path, default=Path("benchmark/results/routing.json"))
    return parser.parse_args(arguments)


def main() -> int:
    """Measure and write benchmark/results/routing.json."""
    options = parse()
    torch.set_num_threads(1)
    about = {**stamp(sys.argv[0], sys.argv[1:]), "rounds": options.rounds}
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options, Path(folder))
    load = {"at": "the end, 1, 5 and 15 minutes", "processes": os.getloadavg()}
    sizes = {key: value for key, value in vars(options).items() if key not in ("out", "rounds")}
    result = {**about, "clock": "process CPU, one thread", "machine_load": load, "sizes": sizes, **found}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in result.items() if key != "all_rounds"}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
