"""The jobs of generation: the 11B beside transformers' ``generate`` on the same weights, the 8B with shared prompts."""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torchtune.modules import TanhGate
from torchtune.training import set_default_dtype

from gpu_jobs.parts import TOKENIZER, transform
from gpu_jobs.scripts import script
from gpu_jobs.setting import Setting
from gpu_jobs.step import OPEN_GATE
from medtune.data.sample import Message, Sample
from medtune.generation.requests import Request
from medtune.models.internvl import internvl3_8b
from medtune.models.llama3_2_vision import llama3_2_vision_11b
from medtune.models.mini import mini_internvl, mini_internvl_transform, mini_transform, mini_vlm

QUESTIONS_ALONE = 8  # so many of the 64 are asked one at a time: the rate is the same, and the minutes are few

# With four slots for tiles, as the 11B has, of which an image fills one.
MINI_11B: dict[str, Any] = {
    "vocab_size": 1024,
    "image_size": 16,
    "embed_dim": 32,
    "vision_layers": 2,
    "decoder_layers": 2,
    "max_num_tiles": 4,
    "hf_rows": True,
}


def predict_11b(setting: Setting) -> dict[str, Any]:
    """Answers per second with four questions on each of 16 pictures, beside transformers on the same weights."""
    bench = script("predict")
    images, new_tokens, batch_size = (2, 4, 4) if setting.tiny else (16, 32, 32)
    with set_default_dtype(setting.dtype), setting.device:
        torch.manual_seed(0)
        ours = mini_vlm(**MINI_11B) if setting.tiny else llama3_2_vision_11b(hf_rows=True)
    for module in ours.modules():
        if isinstance(module, TanhGate):
            torch.nn.init.constant_(module.scale, OPEN_GATE)
    theirs = in_transformers(ours.eval(), setting)
    reading = mini_transform(TOKENIZER, image_size=16 if setting.tiny else 560)
    reading.stop_ids = []
    requests = asked(bench, range(images), bench.QUESTIONS)
    few = requests[: 2 if setting.tiny else QUESTIONS_ALONE]
    ways: dict[str, tuple[Callable, Any, list[Request], int]] = {
        "transformers_one_by_one": (bench.ask_transformers, theirs, few, 1),
        "transformers_batched": (bench.ask_transformers, theirs, requests, batch_size),
        "medtune_one_by_one": (bench.ask_medtune, ours, few, 1),
        "medtune_batched": (bench.ask_medtune, ours, requests, batch_size),
    }
    rates, answers = _rates(ways, reading, new_tokens, setting)
    reference = answers["transformers_batched"]
    return {
        "peer": "transformers' generate on the same weights",
        "answers_per_second": {name: statistics.median(found) for name, found in rates.items()},
        "all_rounds": rates,
        "speedup": bench.ratio(rates, "medtune_batched", "transformers_one_by_one"),
        "speedup_over_transformers_batched": bench.ratio(rates, "medtune_batched", "transformers_batched"),
        "same_answers": {
            name: sum(reference[key] == text for key, text in found.items()) / len(found)
            for name, found in answers.items()
        },
        "different_answers": len(set(reference.values())),
        "questions": {"batched": len(requests), "one_by_one": len(few)},
        "new_tokens": new_tokens,
        "batch_size": batch_size,
        "peak_memory_bytes": _peak(setting),
    }


def in_transformers(ours: Any, setting: Setting) -> Any:
    """The same weights in transformers, copied from one model on the device to the other; no file is written."""
    from transformers import MllamaConfig, MllamaForConditionalGeneration

    config = MllamaConfig.from_dict(ours.family.hf_config())
    # transformers reads the state after a layer where the weights mean the state before it.
    states = config.vision_config.intermediate_layers_indices
    config.vision_config.intermediate_layers_indices = [index - 1 for index in states]
    with set_default_dtype(setting.dtype), setting.device:
        theirs = MllamaForConditionalGeneration(config)
    published = ours.family.tune_to_hf(dict(ours.state_dict()))
    theirs.load_state_dict({ours.family.live_name(name): value for name, value in published.items()})
    theirs.generation_config.eos_token_id = None
    return theirs.eval()


def asked(bench: Any, images: range, questions: tuple[str, ...]) -> list[Request]:
    """Every question on every picture."""
    source = bench.Pictures()
    return [
        Request(f"{image}/{i}", Sample(f"{image}/{i}", (str(image),), (Message("user", text),)), source)
        for image, (i, text) in itertools.product(images, enumerate(questions))
    ]


def _rates(
    ways: dict[str, tuple[Callable, Any, list[Request], int]], reading: Any, new_tokens: int, setting: Setting
) -> tuple[dict[str, list[float]], dict[str, dict[str, str]]]:
    """Answers per second of each way in each round, the ways of a round in turn; the first round warms up."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    answers: dict[str, dict[str, str]] = {}
    for round_number in range(min(setting.rounds, 2) + 1):
        for name, (ask, model, requests, size) in ways.items():
            began = time.perf_counter()
            answers[name] = ask(model, reading, requests, size, new_tokens, setting.device)
            if round_number:
                rates[name].append(len(requests) / (time.perf_counter() - began))
    return rates, answers


def predict_8b_shared(setting: Setting) -> dict[str, Any]:
    """Twelve questions on each picture, what they begin with read once or twelve times."""
    bench = script("predict")
    with set_default_dtype(setting.dtype), setting.device:
        torch.manual_seed(0)
        model = mini_internvl(1024, image_size=64, embed_dim=32) if setting.tiny else internvl3_8b()
    if setting.tiny:
        reading = mini_internvl_transform(TOKENIZER, image_size=64)
    else:
        reading = transform("internvl3_8b")
    reading.stop_ids = []
    requests = asked(bench, range(1 if setting.tiny else 6), tuple(f"{text}?" for text in bench.ATTRIBUTES))
    options = argparse.Namespace(
        rounds=min(setting.rounds, 2), clock="wall", new_tokens=4 if setting.tiny else 32, device=str(setting.device)
    )
    found = bench.compare_shared(model.eval(), reading, requests, options)
    own = "medtune's generator without shared prompts; no other library beside it"
    return {"peer": own, **found, "new_tokens": options.new_tokens, "peak_memory_bytes": _peak(setting)}


def _peak(setting: Setting) -> int | None:
    """Bytes that the allocator held at most, both models together where there are two."""
    return None if setting.tiny else torch.cuda.max_memory_allocated()
