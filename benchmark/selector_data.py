"""Preferences of known truth on WBCAtt's reports: good answers name the right attributes, bad ones have some exchanged.

People are right but for a few slips, and there are few of them. The model that rates sees only some attributes, and its
ratings are noisy; there are many of them.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medtune.config import instantiate, load_config
from medtune.data.sample import Message, Sample
from medtune.datasets import jsonl_dataset
from medtune.models.weights import load_weights
from medtune.training.config import TrainConfig

QUESTION = "Describe the cell."
CROP = 0.5625
KINDS = (
    "cell size", "cell shape", "nucleus shape", "nuclear cytoplasmic ratio", "chromatin density", "cytoplasm texture",
    "cytoplasm colour", "granule type", "granule colour",
)  # fmt: skip
LABEL = "label"
SEEN = ("cell size", "cell shape", "nuclear cytoplasmic ratio")
"""Attributes that the rating model sees: outlines and sizes, no colour, no granule, no detail of the nucleus."""
ALONE = ("granularity", "cytoplasm vacuole")
"""Phrases without an alternative."""
BATCH = 64


@dataclass(frozen=True)
class Sizes:
    """How many of everything.

    Attributes:
        human: Questions that people have answered.
        rated: Images whose two answers the model rates.
        test: Test images, on each of which people compare two answers.
        pairs: Pairs drawn from the ratings.
        generated: Images of the data that is selected from.
        slips: Share of people's choices that are turned round.
        noise: Standard deviation of the ratings, on a scale of 0 to 10.
    """

    human: int = 200
    rated: int = 1000
    test: int = 600
    pairs: int = 6000
    generated: int = 1000
    slips: float = 0.1
    noise: float = 2.0


def kind_of(phrase: str) -> str:
    """Return the attribute that a phrase of a report names; ``label`` for the type of the cell."""
    return next((kind for kind in (*KINDS, *ALONE) if phrase.endswith(kind)), LABEL)


def phrases_of(report: str) -> list[str]:
    """Return the phrases of a report."""
    return report.split(", ")


def alternatives(reports: Sequence[str]) -> dict[str, list[str]]:
    """Return the phrases of each attribute that has more than one."""
    found: dict[str, set[str]] = {}
    for report in reports:
        for phrase in phrases_of(report):
            if phrase not in ALONE:
                found.setdefault(kind_of(phrase), set()).add(phrase)
    return {kind: sorted(phrases) for kind, phrases in found.items() if len(phrases) > 1}


def exchanged(report: str, count: int, known: Mapping[str, Sequence[str]], rng: random.Random) -> str:
    """Return a report of which ``count`` attributes have another value."""
    phrases = phrases_of(report)
    places = [place for place, phrase in enumerate(phrases) if phrase not in ALONE and kind_of(phrase) in known]
    for place in rng.sample(places, min(count, len(places))):
        others = [phrase for phrase in known[kind_of(phrases[place])] if phrase != phrases[place]]
        phrases[place] = rng.choice(others)
    return ", ".join(phrases)


def right_share(answer: str, truth: str, kinds: Sequence[str] | None = None) -> float:
    """Return the share of a true report's attributes that an answer names.

    Args:
        answer: the answer.
        truth: the true report.
        kinds: attributes that count; None counts all that have alternatives.
    """
    said = set(phrases_of(answer.strip().rstrip(".")))
    asked = [
        phrase for phrase in phrases_of(truth) if phrase not in ALONE and (kinds is None or kind_of(phrase) in kinds)
    ]
    return sum(phrase in said for phrase in asked) / len(asked) if asked else 1.0


@dataclass(frozen=True)
class Encoder:
    """Features of the packaged mini model: means of its image features and of its token embeddings."""

    model: Any
    transform: Any

    @classmethod
    def packaged(cls) -> "Encoder":
        """Return the untuned mini base model."""
        config = load_config("sft/mini", TrainConfig)
        model = instantiate(config.model)
        model.load_state_dict(load_weights(str(config.checkpoint), model))
        transform = instantiate(config.transform)
        transform.dtype = torch.float32
        return cls(model.float().eval(), transform)

    @torch.inference_mode()
    def images(self, samples: Sequence[Sample], source: Any) -> NDArray[np.float32]:
        """Return the mean of each image's features, ``[n, d]``, of length 1."""
        found = []
        for start in range(0, len(samples), BATCH):
            items = [dict(self.transform(one, source.open_images(one))) for one in samples[start : start + BATCH]]
            found.append(self.model.encode(self.transform.collate(items)["vision"]).mean(1))
        return torch.nn.functional.normalize(torch.cat(found), dim=-1).numpy()

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the mean of each text's token embeddings, ``[n, d]``, of length 1."""
        found = []
        for start in range(0, len(texts), BATCH):
            said = [Sample("t", (), (Message("assistant", text),)) for text in texts[start : start + BATCH]]
            batch = self.transform.collate([dict(self.transform(one, [])) for one in said])
            real = (batch["labels"] >= 0).float().unsqueeze(-1)
            read = self.model.decoder.tok_embeddings(batch["tokens"])
            found.append((read * real).sum(1) / real.sum(1))
        return torch.nn.functional.normalize(torch.cat(found), dim=-1).numpy()


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def choice_row(name: str, sample: Sample, answers: Sequence[str], first: bool, who: str) -> dict[str, Any]:
    """Return one choice between two answers, as the annotation page exports it."""
    return {
        "id": name,
        "images": list(sample.images),
        "messages": [{"role": "user", "content": f"<image>\n{QUESTION}"}],
        "answers": list(answers),
        "preference": "first" if first else "second",
        "annotator": who,
    }


def conversation_row(name: str, sample: Sample, answer: str) -> dict[str, Any]:
    """Return a conversation of one turn in LLaVA's format."""
    said = [{"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": answer}]
    return {"id": name, "image": sample.images[0], "conversations": said}


def write_seed(folder: Path, prepared: Path, images: str, seed: int, sizes: Sizes, encoder: Encoder) -> None:
    """Write the preferences, the data to select from, and the features of one seed.

    Args:
        folder: gets ``human.jsonl``, ``test.jsonl``, ``rated.jsonl``, ``ratings.jsonl``, ``generated.jsonl``,
            ``truth.json``, ``features.npy`` and ``ids.txt``.
        prepared: prepared WBCAtt.
        images: its images.
        seed: decides images, exchanges, slips and noise.
        sizes: how many of everything.
        encoder: makes the features.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    train = jsonl_dataset(str(prepared / "train.jsonl"), images, center_crop=CROP)
    test = jsonl_dataset(str(prepared / "test_reports.jsonl"), images, center_crop=CROP)
    places = list(range(len(train)))
    rng.shuffle(places)
    known = alternatives([train[place].messages[-1].content for place in places])
    drawn = iter(places)
    answers: dict[str, tuple[Sample, str]] = {}

    def choices(samples: Sequence[Sample], who: str, slips: float) -> list[dict[str, Any]]:
        rows = []
        for number, sample in enumerate(samples):
            truth = sample.messages[-1].content
            pair = [truth, exchanged(truth, rng.randint(1, 4), known, rng)]
            turned = rng.random() < 0.5
            pair = pair[::-1] if turned else pair
            name = f"{who}{number}"
            rows.append(choice_row(name, sample, pair, turned == (rng.random() < slips), who))
            answers.update({f"{name}/answer_{at}": (sample, text) for at, text in enumerate(pair, start=1)})
        return rows

    write_lines(folder / "human.jsonl", choices([train[next(drawn)] for _ in range(sizes.human)], "human", sizes.slips))
    asked = random.Random(0).sample(range(len(test)), sizes.test)  # the same test images for every seed
    write_lines(folder / "test.jsonl", choices([test[place] for place in asked], "test", 0.0))
    rated, ratings, generated = [], [], []
    for number in range(sizes.rated):
        sample = train[next(drawn)]
        truth = sample.messages[-1].content
        for half in (0, 1):
            name = f"rated{number}_{half}"
            answer = exchanged(truth, rng.randint(0, 4), known, rng)
            value = 10 * right_share(answer, truth, SEEN) + rng.gauss(0, sizes.noise)
            rated.append(conversation_row(name, sample, answer))
            ratings.append({"id": f"{name}/turn_1", "rating": min(10, max(0, round(value)))})
            answers[f"{name}/turn_1"] = sample, answer
    truths = {}
    for number in range(sizes.generated):
        sample = train[next(drawn)]
        truth = sample.messages[-1].content
        answer = exchanged(truth, 4, known, rng) if number % 2 else truth
        generated.append(conversation_row(f"made{number}", sample, answer))
        truths[f"made{number}"] = right_share(answer, truth)
        answers[f"made{number}/turn_1"] = sample, answer
    for name, rows in (("rated", rated), ("ratings", ratings), ("generated", generated)):
        write_lines(folder / f"{name}.jsonl", rows)
    (folder / "truth.json").write_text(json.dumps(truths), encoding="utf-8")
    _write_features(folder, answers, train, encoder)


def _write_features(folder: Path, answers: Mapping[str, tuple[Sample, str]], source: Any, encoder: Encoder) -> None:
    every = {sample.images[0]: sample for sample, _ in answers.values()}
    seen = encoder.images(list(every.values()), source)
    place = {image: at for at, image in enumerate(every)}
    texts = list(dict.fromkeys(text for _, text in answers.values()))
    read = encoder.texts(texts)
    line = {text: at for at, text in enumerate(texts)}
    rows = [np.concatenate([read[line[text]], seen[place[sample.images[0]]]]) for sample, text in answers.values()]
    np.save(folder / "features.npy", np.stack(rows).astype(np.float32))
    (folder / "ids.txt").write_text("\n".join(answers), encoding="utf-8")
