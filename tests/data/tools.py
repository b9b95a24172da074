"""What the data tests share: a model transform that needs no model, and small files of samples."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from medtune.data.sample import Message, Sample
from medtune.errors import DataError


class LetterTransform:
    """One token per character; the user's turns are not supervised."""

    max_seq_len = 200

    def __call__(self, sample: Sample, images: list[Image.Image]) -> dict[str, Any]:
        tokens = [ord(letter) for message in sample.messages for letter in message.content]
        if len(tokens) > self.max_seq_len:
            raise DataError(f"sample {sample.id}: {len(tokens)} tokens, the limit is {self.max_seq_len}")
        labels = [
            ord(letter) if message.role == "assistant" else -100
            for message in sample.messages
            for letter in message.content
        ]
        pixels = [torch.tensor(image.getpixel((0, 0))) for image in images]
        return {"id": sample.id, "tokens": tokens, "labels": labels, "images": pixels}

    def collate(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        width = max(len(item["tokens"]) for item in items)
        rows = {name: [item[name] + [fill] * (width - len(item[name])) for item in items] for name, fill in FILLS}
        batch: dict[str, Any] = {name: torch.tensor(values) for name, values in rows.items()}
        return {**batch, "images": [item["images"] for item in items], "ids": [item["id"] for item in items]}

    def token_counts(self, sample: Sample, sizes: object = None) -> tuple[int, int]:
        learned = sum(len(message.content) for message in sample.messages if message.role == "assistant")
        return sum(len(message.content) for message in sample.messages), learned

    def tile_count(self, width: int, height: int) -> int:
        return -(-width // 16) * -(-height // 16)


FILLS = (("tokens", 0), ("labels", -100))


def shuffle_letters(sample: Sample, rng: random.Random) -> Sample:
    """A sample transform that shows which generator it was given."""
    letters = list(sample.messages[-1].content)
    rng.shuffle(letters)
    return Sample(
        sample.id, sample.images, (*sample.messages[:-1], Message("assistant", "".join(letters))), sample.meta
    )


def unchanged(sample: Sample, rng: random.Random) -> Sample:
    return sample


def row(id: str, text: str = "round cell", images: tuple[str, ...] = ()) -> dict[str, Any]:
    """A report as it stands on disk."""
    return {"id": id, "images": list(images), "messages": [{"role": "assistant", "content": text}], "meta": {}}


def write_rows(path: Path, rows: list[Any]) -> Path:
    """Write JSON Lines; text is written as it is."""
    lines = [line if isinstance(line, str) else json.dumps(line) for line in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def write_pictures(folder: Path, count: int) -> Path:
    """Write 0.png, 1.png, ... whose grey is their number."""
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (16 + number, 16), (number, number, number)).save(folder / f"{number}.png")
    return folder
