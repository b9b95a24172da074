"""The matrix of methods and families: each cell is a run of real steps on a mini model, and an answer of the result.

The cells that are listed here are what the table "Methods and families" of docs/models.md shows.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from medtune.config import instantiate
from medtune.data.sample import Message, Sample
from medtune.generation.engine.batches import PromptBatch
from medtune.generation.engine.generator import Generator
from medtune.generation.requests import Generation, Request
from medtune.models.common.names import is_adapter_key
from medtune.models.lora.bank import AdapterBank, _linear_maps
from tests.families import FAMILIES, METHODS
from tests.models.banked import random_adapter
from tests.objectives.tiny_dpo import write_pairs
from tests.runs import SGD, launch, losses, tiny
from tests.tiny_task import write_task, write_tsm

ROOT = Path(__file__).parents[2]
CELLS = [(family, method) for family in FAMILIES for method in METHODS]
SHAPES = [(16, 16), (32, 16), (16, 40), (60, 20)]
NOTHING: dict[str, Any] = {"learning_rates": {}, "trainable": ["adapter"], "optimizer": SGD, "bucket": False}


def write_rows(folder: Path, turns: Callable[[int], list[dict[str, str]]], counts: list[int]) -> dict[str, Any]:
    """Rows with as many images as ``counts`` says, each image of another size; the data set's config."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, made = [], 0
    for number, count in enumerate(counts):
        names = []
        for _ in range(count):
            shade = (40 * made % 256, 255 - 17 * made % 256, 90)
            Image.new("RGB", SHAPES[made % len(SHAPES)], shade).save(folder / f"{made}.png")
            names.append(f"{made}.png")
            made += 1
        rows.append({"id": f"row-{number}", "images": names, "messages": turns(number)})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = str(folder / "rows.jsonl")
    return {"_component_": "medtune.datasets.jsonl_dataset", "source": source, "image_root": str(folder)}


def conversation(number: int) -> list[dict[str, str]]:
    answer = "small cell size, " + "round " * (number % 3 + 1)
    return [{"role": "user", "content": "What is shown?"}, {"role": "assistant", "content": answer}]


def report(number: int) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": "big cell size, light blue cytoplasm, " + "round " * (number % 3 + 1)}]


# Text alone, one image, several images and images of several sizes stand in one batch of four.
COUNTS = [1, 0, 2, 1, 3, 0, 1, 1]


def sft(folder: Path) -> dict[str, Any]:
    objective = {"_component_": "medtune.objectives.SFT", "chunk_tokens": 5}
    return {"dataset": write_rows(folder, conversation, COUNTS), "objective": objective, "max_steps": 2}


def instfree(folder: Path) -> dict[str, Any]:
    """Warm-up of the proxy instruction, then steps that train the model under it."""
    objective = {
        "_component_": "medtune.objectives.InstFree", "alpha": 0.8, "vectors": 3, "warmup_steps": 1,
        "warmup_learning_rate": 0.02, "shuffle_separator": ",",
    }  # fmt: skip
    counts = [1, 2, 1, 1, 3, 1, 1, 2]
    return {
        "dataset": write_rows(folder, report, counts), "objective": objective, "max_steps": 2,
        "learning_rates": {"proxy": 0.01},
    }  # fmt: skip


def vitask(folder: Path) -> dict[str, Any]:
    """A step of exemplars and response alignment, then one with contrast; wide pictures beside square ones."""
    objective = {
        "_component_": "medtune.objectives.VITask", "tsm": write_tsm(folder / "tsm"), "align_steps": 1,
        "chunk_tokens": 5,
    }  # fmt: skip
    return {"dataset": write_task(folder / "data"), "objective": objective, "max_steps": 1}


def dpo(folder: Path) -> dict[str, Any]:
    """Pairs, of which one is of text alone and one has two images; the reference is the model without adapters."""
    rows = [
        {
            "id": f"pair-{number}", "images": [f"{number}-{i}.png" for i in range(count)],
            "messages": [{"role": "user", "content": "Name it."}], "chosen": "a red circle " * (number + 1),
            "rejected": "blue",
        }
        for number, count in enumerate([1, 0, 2, 1])
    ]  # fmt: skip
    objective = {"_component_": "medtune.objectives.DPO", "beta": 0.5, "chunk_tokens": 5}
    return {"dataset": write_pairs(folder / "pairs", rows), "objective": objective, "max_steps": 2}


RUNS: dict[str, Callable[[Path], dict[str, Any]]] = {"SFT": sft, "InstFree": instfree, "VITask": vitask, "DPO": dpo}


class Pictures:
    """Opens a picture of another size and shade for each name."""

    name = "pictures"

    def open_images(self, sample: Sample) -> list[Image.Image]:
        return [Image.new("RGB", SHAPES[int(name)], (60 * int(name), 200, 30)) for name in sample.images]


def requests() -> list[Request]:
    """Questions on text alone, on one image and on three images of several sizes."""
    asked = [("t", ()), ("a", ("0",)), ("b", ("1",)), ("c", ("0", "2", "3"))]
    question = (Message("user", "What is shown?"),)
    return [Request(name, Sample(name, images, question), Pictures()) for name, images in asked]


def answers(model: Any, transform: Any, cls: type[Generator] = Generator, **attributes: Any) -> dict[str, str]:
    generator = cls(model.eval(), transform, batch_size=4, max_new_tokens=6)
    vars(generator).update(attributes)
    return {answer.id: answer.text for answer in generator(requests())}


def cells() -> Iterator[Any]:
    for family, method in CELLS:
        reason = FAMILIES[family].not_built.get(method)
        marks = [pytest.mark.skip(reason=f"not built: {reason}")] if reason else []
        yield pytest.param(family, method, marks=marks, id=f"{family}-{method}")


@pytest.mark.parametrize(("family", "method"), cells())
def test_a_method_trains_a_family_and_the_model_answers(family: str, method: str, tmp_path: Path) -> None:
    entry = FAMILIES[family]
    config = tiny(tmp_path / "run", **{
        **NOTHING, **(RUNS[method] if method in RUNS else sft)(tmp_path), "model": entry.adapted,
        "transform": dict(entry.transform), "batch_size": 4,
    })  # fmt: skip
    transform = instantiate(config.transform)
    if method == "routing":
        routed(entry.plain, transform)
        return
    assert launch(config) == [0]
    assert all(torch.tensor(losses(tmp_path / "run")).isfinite())
    model = instantiate(entry.plain)
    torch.manual_seed(config.seed)
    started: dict[str, torch.Tensor] = instantiate(entry.adapted).state_dict()
    before = {name: tensor for name, tensor in started.items() if not is_adapter_key(name)}
    after = load_file(tmp_path / "run" / "weights" / "model.safetensors")
    model.load_state_dict({name: after[name] for name in before})
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert moved and all(name.startswith("decoder.") for name in moved), "adapters of the decoder are trained"
    found = answers(model, transform)
    assert found.keys() == {"t", "a", "b", "c"}
    assert answers(model, transform) == found


class Routed(Generator):
    """Answers each request with the adapter that is chosen for it."""

    bank: AdapterBank
    chosen: dict[str, int]

    def _answer(self, batch: PromptBatch) -> list[Generation]:
        with self.bank.route([self.chosen[request.id] for request in batch.requests]):
            return super()._answer(batch)


def routed(plain: dict[str, Any], transform: Any) -> None:
    """Each row of a batch is answered by its task's adapter, as when that adapter is alone on the model."""
    torch.manual_seed(11)
    model = instantiate(plain)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    maps = [name for name in _linear_maps(model) if name.startswith("decoder.layers.") and ".attn." in name]
    given = {str(seed): random_adapter(model, maps, 2, 8.0, seed=seed) for seed in (1, 2)}
    order = [request.id for request in requests()]
    bank = AdapterBank(model, given)
    try:
        each = [
            answers(model, transform, Routed, bank=bank, chosen=dict.fromkeys(order, place)) for place in (-1, 0, 1)
        ]
        chosen = {name: place % 3 - 1 for place, name in enumerate(order)}
        mixed = answers(model, transform, Routed, bank=bank, chosen=chosen)
    finally:
        bank.close()
    assert mixed == {name: each[chosen[name] + 1][name] for name in order}
    assert len({tuple(found.values()) for found in each}) == 3, "the adapters change nothing"
    assert answers(model, transform) == each[0]


def test_the_documents_table_is_this_list() -> None:
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    section = text.partition("## Methods and families")[2].partition("\n## ")[0]
    assert re.search(r"\(\d{4}-\d{2}-\d{2}\)", section), "the table says when it was filled in"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    assert rows[0] == ["family", *METHODS]
    expected = [
        [entry.title, *("not built" if method in entry.not_built else "tested" for method in METHODS)]
        for entry in FAMILIES.values()
    ]
    assert rows[2:] == expected
