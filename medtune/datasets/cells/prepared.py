"""A synthetic smear set on disk: images, reports and questions in the layout of the prepared data sets."""

from collections import Counter
from pathlib import Path

from PIL import Image

from medtune.data.multiple_choice import open_question
from medtune.data.randomness import sample_rng
from medtune.data.sample import Message, Sample, report_sample
from medtune.data.writing import json_bytes, jsonl_bytes, write_files
from medtune.datasets.cells.attributes import Attributes, asked_attributes, cell_report, options, sample_attributes
from medtune.datasets.cells.render import render_cell


def write_rendered_set(folder: Path, train: int, test: int, seed: int, image_size: int = 64) -> None:
    """Render cells with WBCAtt's frequencies and write them as a prepared data set.

    Args:
        folder: output folder of ``images/``, ``train.jsonl`` (reports), ``test.jsonl`` (every applicable question of
            every test cell) and ``training_majority.json``.
        train: number of training cells.
        test: number of test cells.
        seed: seed of everything random.
        image_size: side of an image in pixels.

    Raises:
        DataError: if the folder holds another set.
    """
    cells = [sample_attributes(sample_rng(seed, 0, number, "cell"), natural=1.0) for number in range(train + test)]
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for number, cell in enumerate(cells):
        _image(cell, number, seed, image_size).save(images / _name(number))
    reports = [report_sample(f"train/{_name(n)}", (_name(n),), cell_report(cells[n])) for n in range(train)]
    questions = [q for n in range(train, train + test) for q in _questions(n, cells[n])]
    files = {
        "train.jsonl": jsonl_bytes(reports),
        "test.jsonl": jsonl_bytes(questions),
        "training_majority.json": json_bytes(_majority(cells[:train])),
    }
    write_files(folder, files, overwrite=False)


def _name(number: int) -> str:
    return f"cell-{number:06d}.png"


def _image(cell: Attributes, number: int, seed: int, size: int) -> Image.Image:
    return render_cell(cell, sample_rng(seed, 0, number, "picture"), size)


def _questions(number: int, cell: Attributes) -> list[Sample]:
    return [
        Sample(
            f"test/{_name(number)}/{name}",
            (_name(number),),
            (Message("user", open_question(name)), Message("assistant", cell[name])),
            {"attribute": name, "options": options(name), "answer": cell[name]},
        )
        for name in asked_attributes(cell)
    ]


def _majority(cells: list[Attributes]) -> dict[str, str]:
    counts: dict[str, Counter[str]] = {}
    for cell in cells:
        for name in asked_attributes(cell):
            counts.setdefault(name, Counter())[cell[name]] += 1
    return {name: min(values, key=lambda value: (-values[value], value)) for name, values in counts.items()}
