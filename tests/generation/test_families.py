"""The mini model of each family: the engine under random arrivals, and beginnings that are read once."""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch

from medtune.generation.engine.continuous import Engine
from medtune.generation.engine.generator import Generator
from medtune.models.mini import (
    mini_gemma3,
    mini_gemma3_transform,
    mini_internvl,
    mini_internvl_transform,
    mini_llava,
    mini_llava_transform,
    mini_qwen2_5_vl,
    mini_qwen2_5_vl_transform,
    mini_transform,
    mini_vlm,
)
from tests.generation.conftest import PictureSource, Setup, randomised
from tests.generation.test_engine import alone, run, text, varied

SIZES = {"embed_dim": 32, "vision_layers": 2, "decoder_layers": 2, "heads": 2, "max_seq_len": 256}
IMAGES = {"image_size": 32}
TILES = {**IMAGES, "max_num_tiles": 4}
FAMILIES: dict[str, tuple[Callable, Callable, dict, dict, float]] = {
    "llama3_2_vision": (mini_vlm, mini_transform, TILES, TILES, 0.3),
    "internvl": (mini_internvl, mini_internvl_transform, IMAGES, {**IMAGES, "max_num_tiles": 2}, 0.4),
    "llava": (mini_llava, mini_llava_transform, IMAGES, IMAGES, 0.4),
    "qwen2_5_vl": (mini_qwen2_5_vl, mini_qwen2_5_vl_transform, {"patch_size": 4}, {"patch_size": 4}, 0.5),
    "gemma3": (partial(mini_gemma3, window=24), mini_gemma3_transform, IMAGES, IMAGES, 0.1),
}


@pytest.fixture(params=FAMILIES, scope="module")
def family(request, tokenizer) -> Setup:
    folder, vocabulary = tokenizer
    build, transform, sizes, images, std = FAMILIES[request.param]
    torch.manual_seed(2)
    model = randomised(build(vocabulary, **SIZES, **sizes), std)
    for name, parameter in model.named_parameters():
        if name.endswith("q_norm.scale"):  # with flat attention an output tied to the embeddings repeats itself
            parameter.data.add_(4)
    return Setup(model, transform(folder, max_seq_len=256, **images), PictureSource())


@pytest.mark.parametrize("seed", range(2))
def test_answers_under_random_arrivals_equal_those_alone(family, seed):
    rng = random.Random(seed)
    requests = [replace(request, max_new_tokens=2 + 7 * i % 12) for i, request in enumerate(varied(family, 14))]
    expected = {request.id: alone(family, request).text for request in requests}
    assert len(set(expected.values())) > 10, "the model answers all alike"
    schedule: dict[int, list] = {}
    for request in rng.sample(requests, len(requests)):
        schedule.setdefault(rng.randrange(15), []).append(request)
    with Engine(family.model, family.transform, slots=4) as engine:
        found = run(engine, schedule)
    assert {name: text(events) for name, events in found.items()} == expected


def test_questions_on_one_image_read_it_once(family, monkeypatch):
    monkeypatch.setattr("medtune.generation.engine.prefixes.WORTH", 2.0)
    requests = [
        family.request(f"{image}/{i}", f"what {'cell ' * i}", image, max_new_tokens=6)
        for image in ("wide-1", "large-2")
        for i in range(6)
    ]
    found = {}
    for share in (False, True):
        generator = Generator(family.model, family.transform, batch_size=12, share_prefix=share)
        found[share] = {answer.id: answer.text for answer in generator(requests)}, generator.tokens_read
    assert found[True][0] == found[False][0]
    assert len(set(found[True][0].values())) > 4
    assert found[True][1] < 0.75 * found[False][1]
