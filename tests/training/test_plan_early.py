"""`medtune plan` where images are read as tokens: they make rows longer, with and without the tokenizer at hand."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from medtune.config import PACKAGE
from medtune.datasets import jsonl_dataset
from medtune.training import memory
from medtune.training.plan import ASSUMED_TOKENS, plan
from tests.models.tiny_early import PER_TILE, tiny_early_transform

MINI = PACKAGE / "assets" / "mini_tokenizer"
SIZES = [(8, 8), (24, 8), (8, 16)]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Plain instruction tuning of a tiny model on three samples of one, three and two tiles."""
    with (tmp_path / "train.jsonl").open("w") as file:
        for index, size in enumerate(SIZES):
            Image.new("RGB", size, "white").save(tmp_path / f"{index}.png")
            turns = [{"role": "user", "content": "What is shown?"}, {"role": "assistant", "content": "big"}]
            file.write(json.dumps({"id": str(index), "images": [f"{index}.png"], "messages": turns}) + "\n")
    values = {
        "output_dir": str(tmp_path / "run"),
        "model": {"_component_": "tests.models.tiny_early.tiny_early_vlm", "vocab_size": 1024, "max_seq_len": 1024},
        "transform": {"_component_": "tests.models.tiny_early.tiny_early_transform", "path": str(MINI)},
        "dataset": {
            "_component_": "medtune.datasets.jsonl_dataset",
            "source": str(tmp_path / "train.jsonl"),
            "image_root": str(tmp_path),
        },
        "objective": {"_component_": "medtune.objectives.SFT", "chunk_tokens": 0},
        "trainable": ["projection"],
        "dtype": "fp32",
        "batch_size": 2,
    }
    path = tmp_path / "config.yaml"
    path.write_text(f"# tune run x.py\n{json.dumps(values)}")
    return path


def test_rows_hold_their_image_tokens(config: Path) -> None:
    found = plan(str(config))
    assert not found.problems
    longest = tiny_early_transform(MINI).token_count(
        jsonl_dataset(config.parent / "train.jsonl", config.parent)[1], SIZES[1:2]
    )
    assert f"longest {longest} (3 rows" in found.text()
    assert "those of images among them" in found.text() and "images add none" not in found.text()
    assert found.memory["logits"] == memory.logits_bytes(2 * longest, 0, 1024, torch.float32)


def test_without_the_tokenizer_images_are_added_to_the_assumed_text(config: Path) -> None:
    found = plan(str(config), ["transform.path=/absent"])
    assert len(found.problems) == 1 and "/absent" in found.problems[0]
    rows = 2 * (ASSUMED_TOKENS + PER_TILE)
    assert found.memory["logits"] == memory.logits_bytes(rows, 0, 1024, torch.float32)


def test_a_sample_beyond_the_limit_is_found_by_its_image_tokens(config: Path) -> None:
    short = plan(str(config)).text().split("longest ")[1].split()[0]
    problems = plan(str(config), [f"transform.max_seq_len={int(short) - 1}"]).problems
    assert len(problems) == 1 and f"(id '1'): {short} tokens, the limit is {int(short) - 1}" in problems[0]


SHORT = 100


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("instfree/mini", "transform.path"),
        ("sft/mini_internvl", "transform.path"),
        ("task_router/mini", "dataset.files"),
    ],
)
def test_a_model_of_short_texts_is_planned_without_data_at_its_own_length(name: str, absent: str) -> None:
    """Deep fusion, early fusion and text alone: no more tokens are assumed than the model reads."""
    found = plan(name, [f"model.max_seq_len={SHORT}", "checkpoint=null", f"{absent}=/absent"])
    assert f"of {SHORT} tokens (assumed)" in found.text() and found.problems


def test_the_assumed_tokens_of_a_short_model_are_those_of_its_logits(config: Path) -> None:
    found = plan(str(config), ["transform.path=/absent", f"model.max_seq_len={SHORT}"])
    assert found.memory["logits"] == memory.logits_bytes(2 * SHORT, 0, 1024, torch.float32)


def test_samples_longer_than_the_model_reads_are_a_problem_with_its_remedy(config: Path) -> None:
    longest = int(plan(str(config)).text().split("longest ")[1].split()[0])
    found = plan(str(config), [f"model.max_seq_len={longest - 1}"])
    (problem,) = found.problems
    assert f"has {longest} tokens and the model reads at most {longest - 1}; set transform.max_seq_len" in problem
    assert found.memory["logits"] == memory.logits_bytes(2 * (longest - 1), 0, 1024, torch.float32)
    assert not plan(str(config), [f"model.max_seq_len={longest}"]).problems
