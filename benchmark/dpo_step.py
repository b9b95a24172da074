"""One DPO step beside one step of TRL's DPOTrainer: same weights, LoRA, pairs, optimizer and losses.

    python benchmark/dpo_step.py [--rounds 15] [--trl PYTHON] [--out FILE]

TRL runs in an environment of its own (benchmark/requirements-trl.txt): ``--trl`` names its python; without it, the
environment is made in ``--environment``, once. Models are tiny and random, of the shapes of LLaVA (336 and 224 px) and
Llama-3.2-Vision; both sides get the tokens and pixels of the same pairs, so that neither side's data pipeline is
measured. LoRA is on q and v of the language model, the vision tower is frozen, everything is in fp32, without dropout
and without activation checkpointing. Each side is a process with one thread that keeps what it frees (MALLOC_*).

Sides: ``medtune`` with the adapters switched off as its reference, ``precomputed`` with the reference's
log-probabilities given, ``trl`` (compact: its head scores answers only, as on a GPU; the baseline), ``trl_shipped``
(what TRL 1.16 does on a CPU, with the allocator's defaults). A step is what lies between a ready batch and the
optimizer's end. Steps are taken in turn, round after round, on the process's CPU time; a ratio is the median of the
rounds' own ratios. Growth is the peak of the resident process over what it held before its first step.
"""

import argparse
import json
import os
import random
import runpy
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import pad

from medtune.config import PACKAGE, Component, import_path
from medtune.data.sample import Message, Sample
from medtune.data.training_set import TrainingSet
from medtune.datasets.preferences import REJECTED
from medtune.evaluation.provenance import stamp
from medtune.losses.cross_entropy import IGNORE_INDEX
from medtune.models.common.names import is_adapter_key
from medtune.models.lora.peft import save_peft
from medtune.models.weights import save_hf
from medtune.objectives import DPO
from medtune.objectives.dpo.forms import FORMS
from medtune.objectives.dpo.items import PairItems
from medtune.training.optimization import clip_gradients, gradient_norm, make_optimizer, scale_gradients
from medtune.training.parts import TrainedParts

FOLDER = Path(__file__).resolve().parent
TOKENIZER = PACKAGE / "assets" / "mini_tokenizer"
REQUIREMENTS = FOLDER / "requirements-trl.txt"
VOCABULARY = 1024
BETA = 0.1
LORA: dict[str, Any] = {"lora_attn_modules": ["q_proj", "v_proj"], "lora_rank": 8, "lora_alpha": 16.0}
CASES: dict[str, dict[str, Any]] = {
    "llava_336": {"model": "llava", "image_size": 336},
    "llava_224": {"model": "llava", "image_size": 224},
    "llama3_2_vision_224": {"model": "llama", "image_size": 224},
}
BUILDERS = {
    "llava": ("medtune.models.mini.lora_mini_llava", "medtune.models.mini.mini_llava_transform", {}),
    "llama": ("medtune.models.mini.lora_mini_vlm", "medtune.models.mini.mini_transform", {"hf_rows": True}),
}
SIDES: dict[str, dict[str, Any]] = {
    "medtune": {"reference": "adapters_off"},
    "precomputed": {"reference": "precomputed"},
    "trl": {"compact": True},
    "trl_shipped": {"compact": False},
}
KEPT = {"MALLOC_TRIM_THRESHOLD_": "2147483647", "MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TOP_PAD_": "268435456"}
COMPARED = 12  # first steps whose losses are compared
WORDS = ("cell", "nucleus", "round", "large", "small", "granule", "pink", "shows", "the", "with", "image", "smear")


class Pairs:
    """Random pictures, questions and pairs of answers."""

    name = "pairs"

    def __init__(self, size: int, side: int, words: tuple[int, int]) -> None:
        self.size, self.side, self.words = size, side, words

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        rng = random.Random(index)
        question, chosen, rejected = (" ".join(rng.choices(WORDS, k=rng.randint(*self.words))) for _ in range(3))
        turns = (Message("user", question), Message("assistant", chosen))
        return Sample(str(index), (str(index),), turns, meta={REJECTED: rejected})

    def open_images(self, sample: Sample) -> list[Image.Image]:
        """Noise, by number."""
        pixels = np.random.default_rng(int(sample.id)).integers(0, 256, (self.side, self.side, 3), dtype=np.uint8)
        return [Image.fromarray(pixels)]


def build(settings: dict[str, Any]) -> tuple[Any, Any]:
    """The model with its adapters and the transform; the same weights in every process."""
    builder, transforming, more = BUILDERS[settings["model"]]
    sizes = {name: settings[name] for name in ("image_size", "patch_size")}
    depth = {name: settings[name] for name in ("embed_dim", "vision_layers", "decoder_layers")}
    torch.manual_seed(0)
    parts = {"lora_parts": ("decoder",), "vocab_size": VOCABULARY}
    model = import_path(builder)(**LORA, **parts, **sizes, **depth, **more)
    return model, import_path(transforming)(TOKENIZER, **sizes)


def batches(settings: dict[str, Any], transform: Any, form: str) -> list[dict[str, Any]]:
    """The batches of a form, which the steps take in turn."""
    size, count = settings["batch_size"], settings["batches"]
    source = Pairs(size * count, settings["image_size"], tuple(settings["words"]))
    items = PairItems(FORMS[form])
    samples = TrainingSet(source, items, transform, 0)
    made = []
    for begin in range(0, size * count, size):
        made.append(items.collate([samples[(0, index, True)] for index in range(begin, begin + size)], transform))
    return made


def write_for_trl(settings: dict[str, Any], folder: Path) -> None:
    """Weights, adapters and batches as transformers, PEFT and TRL read them."""
    model, transform = build(settings)
    state = model.state_dict()
    save_hf({k: v for k, v in state.items() if not is_adapter_key(k)}, model.family, folder / "hf")
    save_peft({k: v for k, v in state.items() if is_adapter_key(k)}, model, folder / "adapter", None)
    tensors = {}
    for number, batch in enumerate(batches(settings, transform, "plain")):
        rows = trl_rows(batch, transform.pad_id, settings["model"])
        tensors.update({f"{number}.{name}": tensor.contiguous() for name, tensor in rows.items()})
    save_file(tensors, folder / "batches.safetensors")


def trl_rows(batch: dict[str, Any], pad_id: int, model: str) -> dict[str, Tensor]:
    """A batch of TRL's: the chosen rows, then the rejected ones, each with its image."""
    runs = [batch["runs"][side] for side in ("chosen", "rejected")]
    width = max(run["tokens"].shape[1] for run in runs)

    def both(name: str, fill: int) -> Tensor:
        return torch.cat([pad(run[name], (0, width - run[name].shape[1]), value=fill) for run in runs])

    tokens, labels = both("tokens", pad_id), both("labels", IGNORE_INDEX)
    real = tokens != pad_id
    rows = {"input_ids": tokens, "attention_mask": real.long(), "completion_mask": (labels != IGNORE_INDEX).long()}
    images = torch.cat([batch["vision"]["images"]] * 2)
    if model == "llava":
        return {**rows, "pixel_values": images.flatten(0, 2)}
    ones = torch.ones(len(tokens), 1, dtype=torch.long)
    sees = [run["vision_mask"][:, :, :1] for run in runs]
    sees = [pad(one, (0, 0, 0, width - one.shape[1])) for one in sees]
    return {
        **rows,
        "pixel_values": images,
        "aspect_ratio_ids": ones,
        "aspect_ratio_mask": ones[:, :, None].clone(),
        "cross_attention_mask": torch.cat(sees)[..., None].long(),
    }


class OurSide:
    """medtune's side: what the trainer does in one step, on ready batches."""

    def __init__(self, settings: dict[str, Any], reference: str) -> None:
        self.model, transform = build(settings)
        self.batches = batches(settings, transform, "shared")
        cache = "in memory" if reference == "precomputed" else None
        self.objective = DPO(reference=reference, reference_cache=cache, beta=BETA)
        self.objective.bind(self.model, transform, 0)
        self.model.train()
        parts = TrainedParts(self.model, self.objective, {**self.model.parts(), **self.objective.parts()})
        stage = self.objective.stages(("adapter",), 1, None)[0]
        parts.train_only(stage.trainable)
        self.objective.begin_stage(stage)
        rate = Component(_component_="torch.optim.AdamW", lr=settings["lr"], weight_decay=0.0)
        self.optimizer = make_optimizer(rate, parts, list(stage.trainable), {})
        self.trained = parts.select(stage.trainable)
        if reference == "precomputed":
            with torch.no_grad():
                for batch in self.batches:
                    batch["precomputed"] = self.objective._reference_outputs(self.model, batch)

    def step(self, number: int) -> float:
        """Take a step; the loss it began with."""
        output = self.model.compute(self.objective, self.batches[number % len(self.batches)])
        output.loss_sum.backward()
        weight = float(output.weight)
        scale_gradients(self.trained, set(), 1.0 / weight, 1)
        parameters = list(self.trained.values())
        clip_gradients(parameters, float(gradient_norm(parameters)), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.after_step()
        return float(output.loss_sum.detach()) / weight


def serve(settings: dict[str, Any]) -> None:
    """Be a worker of the parent."""
    torch.set_num_threads(1)
    side = OurSide(settings, settings["reference"])
    module = SimpleNamespace(**runpy.run_path(str(FOLDER / "dpo_step_worker.py"), run_name="worker"))
    worker = module.Worker(side.model.encoder, side.model.decoder.tok_embeddings)
    number = 0
    while True:
        worker.wait()
        worker.done(side.step(number))
        number += 1


def form_differences(settings: dict[str, Any]) -> dict[str, float]:
    """Largest difference of a gradient between one row per pair and two, on the first batch, and the largest one."""
    model, transform = build(settings)
    model.train()
    for name, parameter in model.named_parameters():
        if "lora_b" in name:  # zero at the start, which would leave lora_a without gradients
            torch.nn.init.normal_(parameter, std=0.02)
    found = {}
    for form in FORMS:
        objective = DPO(form=form, beta=BETA)
        objective.bind(model, transform, 0)
        model.zero_grad()
        output = model.compute(objective, batches({**settings, "batches": 1}, transform, form)[0])
        (output.loss_sum / output.weight).backward()
        found[form] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return {
        "max_gradient_difference": float((found["shared"] - found["plain"]).abs().max()),
        "largest_gradient": float(found["plain"].abs().max()),
    }


class Peer:
    """A worker process, asked line by line."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sys.stderr, text=True, env=environment
        )
        self.about = self._answer()

    def ask(self, command: str) -> dict[str, Any]:
        """Send a command; its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        """Let it end."""
        self.process.communicate("end\n")

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker ended with status {self.process.wait()}; see its message above")
        return json.loads(line)


def start(side: str, settings: dict[str, Any], folder: Path, trl: str) -> Peer:
    """Start a side's process."""
    told = {**settings, **SIDES[side], "beta": BETA, "tokenizer": str(TOKENIZER / "tokenizer.json")}
    told |= {"checkpointing": False, "state_before_layer": settings["model"] == "llama"}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **({} if side == "trl_shipped" else KEPT)}
    if side.startswith("trl"):
        environment.pop("PYTHONPATH", None)
        return Peer([trl, str(FOLDER / "dpo_step_trl.py"), str(folder), json.dumps(told)], environment)
    return Peer([sys.executable, str(FOLDER / "dpo_step.py"), "--serve", json.dumps(told)], environment)


def measure(settings: dict[str, Any], rounds: int, trl: str) -> dict[str, Any]:
    """One case, all sides in turn."""
    with tempfile.TemporaryDirectory() as made:
        write_for_trl(settings, Path(made))
        peers = {side: start(side, settings, Path(made), trl) for side in SIDES}
        losses = {side: [peer.ask("step")["loss"] for _ in range(COMPARED)] for side, peer in peers.items()}
        times: dict[str, list[float]] = {side: [] for side in peers}
        names = list(peers)
        for number in range(rounds):
            first = number % len(names)
            for side in names[first:] + names[:first]:
                times[side].append(peers[side].ask("step")["seconds"])
        memory = {side: peer.ask("memory") for side, peer in peers.items()}
        counts = {side: peer.ask("count") for side, peer in peers.items()}
        for peer in peers.values():
            peer.end()
    return {**settings, **form_differences(settings), **summary(settings, losses, times, memory, counts)}


def summary(
    settings: dict[str, Any],
    losses: dict[str, list[float]],
    times: dict[str, list[float]],
    memory: dict[str, dict[str, int]],
    counts: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """Ratios to compact TRL, and what they come from."""

    def time_ratio(ours: str, theirs: str) -> float:
        return statistics.median(a / b for a, b in zip(times[ours], times[theirs], strict=True))

    def share(values: dict[str, dict[str, Any]], key: str, ours: str = "medtune", theirs: str = "trl") -> float:
        return values[ours][key] / values[theirs][key]

    by_round = [a / b for a, b in zip(times["medtune"], times["trl"], strict=True)]
    pairs = settings["batch_size"]
    return {
        "time_ratio": time_ratio("medtune", "trl"),
        "time_ratio_quartiles": statistics.quantiles(by_round, n=4),
        "precomputed_time_ratio": time_ratio("precomputed", "trl"),
        "memory_ratio": share(memory, "growth_bytes"),
        "precomputed_memory_ratio": share(memory, "growth_bytes", "precomputed"),
        "process_memory_ratio": share(memory, "process_bytes"),
        "tensor_peak_ratio": share(counts, "tensor_bytes"),
        "encodes_per_pair": counts["medtune"]["encodes"] / pairs,
        "lm_tokens_ratio": share(counts, "lm_tokens"),
        "precomputed_lm_tokens_ratio": share(counts, "lm_tokens", "precomputed"),
        "as_shipped": {
            "time_ratio": time_ratio("medtune", "trl_shipped"),
            "precomputed_time_ratio": time_ratio("precomputed", "trl_shipped"),
            "memory_ratio": share(memory, "growth_bytes", theirs="trl_shipped"),
        },
        "max_loss_difference": max(
            abs(one - other)
            for side in ("medtune", "precomputed")
            for one, other in zip(losses[side], losses["trl"], strict=True)
        ),
        "losses": losses,
        "median_seconds": {side: statistics.median(values) for side, values in times.items()},
        "memory": memory,
        "tensor_peak_bytes": {side: one["tensor_bytes"] for side, one in counts.items()},
        "per_pair": {
            side: {"encodes": one["encodes"] / pairs, "lm_tokens": one["lm_tokens"] / pairs}
            for side, one in counts.items()
        },
    }


def environment(options: argparse.Namespace) -> str:
    """TRL's python; its environment is made if there is none."""
    if options.trl is not None:
        return str(options.trl)
    python = options.environment / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(options.environment)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "-r", str(REQUIREMENTS)], check=True)
    return str(python)


def peer_versions(python: str) -> dict[str, str]:
    """Versions of the packages that TRL's side runs on."""
    names = [line.partition("==")[0] for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines() if "==" in line]
    code = (
        "import json, sys; from importlib.metadata import version; "
        "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
    )
    done = subprocess.run([python, "-c", code, *names], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trl", type=Path, help="python of an environment with benchmark/requirements-trl.txt")
    parser.add_argument("--environment", type=Path, default=Path(".venv-trl"), help="made if --trl is absent")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--batches", type=int, default=4, help="different ones, taken in turn")
    parser.add_argument("--words", type=int, nargs=2, default=(20, 40), help="fewest and most of a question or answer")
    parser.add_argument("--image-size", type=int, help="of every case")
    parser.add_argument("--patch-size", type=int, default=14)
    parser.add_argument("--embed-dim", type=int, default=128)
    parser.add_argument("--vision-layers", type=int, default=6)
    parser.add_argument("--decoder-layers", type=int, default=4)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--out", type=Path, default=Path("benchmark/results/dpo_step.json"))
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def settings_of(options: argparse.Namespace, case: str) -> dict[str, Any]:
    """Sizes of a case."""
    names = ("batch_size", "batches", "words", "patch_size", "embed_dim", "vision_layers", "decoder_layers", "lr")
    settings = {**CASES[case], **{name: getattr(options, name) for name in names}}
    return settings if options.image_size is None else {**settings, "image_size": options.image_size}


def main() -> int:
    """Measure and write benchmark/results/dpo_step.json."""
    options = parse()
    if options.serve is not None:
        serve(json.loads(options.serve))
    trl = environment(options)
    about = {**stamp(sys.argv[0], sys.argv[1:]), "peer_versions": peer_versions(trl), "rounds": options.rounds}
    cases: dict[str, Any] = {}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for case in options.only:
        cases[case] = measure(settings_of(options, case), options.rounds, trl)
        load = {"at": "the end, 1, 5 and 15 minutes", "processes": os.getloadavg()}
        result = {**about, "clock": "process CPU, one thread", "machine_load": load, "cases": cases}
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(case, json.dumps(cases[case], indent=1), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
