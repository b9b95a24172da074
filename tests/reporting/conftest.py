"""Four made-up models on made-up cells, evaluated by the real evaluator."""

import json
import random
from pathlib import Path

import pytest
from PIL import Image

from medtune.data.sample import Message, Sample
from medtune.evaluation.evaluation import evaluate
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.registry import PROTOCOLS, plan_queries
from tests.evaluation.ranked import save_run

VALUES = {
    "cell size": ["big", "small"],
    "cell shape": ["irregular", "round"],
    "nucleus shape": ["irregular", "segmented-bilobed", "unsegmented-band", "unsegmented-round"],
    "nuclear cytoplasmic ratio": ["high", "low"],
    "cytoplasm colour": ["blue", "light blue", "purple blue"],
    "granule type": ["coarse", "round", "small"],
    "label": ["Basophil", "Eosinophil", "Lymphocyte"],
}
# name: share of right values, share of answers in the asked form
MODELS = {"untuned": (0.45, 1.0), "FT": (0.7, 0.3), "InstFree": (0.75, 0.99), "InstFree w/ RS": (0.85, 0.97)}


def make_questions(images: int) -> list[Sample]:
    rng = random.Random(0)
    return [
        Sample(
            f"q{image}-{attribute}",
            (f"cells/{image}.png",),
            (Message("user", f"What is the {attribute}?"), Message("assistant", answer)),
            {"attribute": attribute, "options": options, "answer": answer},
        )
        for image in range(images)
        for attribute, options in VALUES.items()
        for answer in [rng.choice(options)]
    ]


def answer_query(query, skill: float, form: float, rng: random.Random) -> Prediction:
    meta = query.meta
    report = ", ".join(f"{rng.choice(options)} {attribute}" for attribute, options in VALUES.items()) + "."
    skill = 0.4 if meta["swapped"] else skill
    value = meta["answer"] if rng.random() < skill else rng.choice(meta["options"])
    if query.continuations:
        scores = [0.0 if option == value else -2.0 for option in meta["options"]]
        return Prediction(query.id, query.task, query.prompt, "", query.references, {**meta, "scores": scores})
    texts = {
        "open": f"The {meta['attribute']} is {value}.",
        "yes_no": "Yes." if value == meta.get("asked_value") else "No.",
        "multiple_choice": f"The correct answer is {'ABCDEF'[meta['options'].index(value)]}.",
        "description": "This image shows a white blood cell that is stained for the microscope.",
    }
    text = texts[query.task] if rng.random() < form else report
    return Prediction(query.id, query.task, query.prompt, text, query.references, meta)


def write_run(folder: Path, samples: list[Sample], name: str, seed: int = 0, trained: bool = True) -> Path:
    rng = random.Random(f"{name}{seed}")
    queries = plan_queries(samples, PROTOCOLS, swapped=["open", "multiple_choice"])
    rows = [answer_query(query, *MODELS[name], rng) for query in queries]
    majority = {attribute: options[0] for attribute, options in VALUES.items()}
    done = evaluate(samples, rows, majority, name=name, swapped=["open", "multiple_choice"], resamples=60)
    provenance = {
        "versions": {"medtune": "0"},
        "commit": None,
        "config": {"seed": 0},
        "seed": 0,
        "config_hash": "ab" * 32,
    }
    save_run(folder, {**done.results, "provenance": provenance}, done.verdicts, rows)
    if trained:
        steps = [
            {"step": s, "loss": 3 / (1 + s / 20), "lr/vision": 5e-4 * (1 - s / 100), "lr/proxy": 1e-3}
            for s in range(100)
        ]
        steps += [{"step": 99, "validation_loss": 0.6}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
        (folder / "config.yaml").write_text(f"output_dir: runs/{name}\nseed: 0\n")
    return folder


@pytest.fixture(scope="session")
def questions() -> list[Sample]:
    return make_questions(12)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, questions: list[Sample]) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    return [write_run(root / f"run{place}", questions, name, trained=place > 0) for place, name in enumerate(MODELS)]


@pytest.fixture
def open_image():
    def open_one(path: str) -> Image.Image:
        shade = int(path.split("/")[1].split(".")[0]) * 15 % 255
        return Image.new("RGB", (64, 64), (shade, 120, 200))

    return open_one
