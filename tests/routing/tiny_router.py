"""A tiny random GLiClass and a run that trains it, for tests; questions of three tasks."""

import json
from pathlib import Path
from typing import Any

import torch

from medtune.config import PACKAGE, build
from medtune.models.task_router.builders import mini_gliclass
from medtune.models.task_router.model import TaskRouterModel
from medtune.training.config import TrainConfig
from tests.routing.routed_questions import NO_TASK, QUESTIONS, TASKS

TOKENIZER = str(PACKAGE / "assets" / "mini_tokenizer")
SIZES: dict[str, Any] = {"embed_dim": 16, "layers": 1, "heads": 2, "max_seq_len": 160}


def tiny_router(labels: tuple[str, ...] = TASKS, **changes: Any) -> TaskRouterModel:
    """A router in evaluation mode whose norms and biases are random too."""
    torch.manual_seed(3)
    model = mini_gliclass(TOKENIZER, labels, **{**SIZES, **changes}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def write_questions(folder: Path) -> Path:
    """Rows of questions and tasks, JSON Lines."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"question": text, "task": task} for task, texts in QUESTIONS.items() for text in texts]
    rows += [{"question": text, "task": "none"} for text in NO_TASK]
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def run_values(questions: Path, **changes: Any) -> dict[str, Any]:
    """The keys of a tiny run."""
    dataset = {
        "_component_": "medtune.datasets.task_questions.task_questions",
        "split": "all",
        "files": str(questions),
        "no_task": [],
        "tasks": list(TASKS),
    }
    values: dict[str, Any] = {
        "model": {
            "_component_": "medtune.models.task_router.builders.mini_gliclass",
            "tokenizer": TOKENIZER,
            "labels": list(TASKS),
            **SIZES,
        },
        "transform": {
            "_component_": "medtune.models.task_router.transform.QuestionTransform",
            "tokenizer": TOKENIZER,
            "labels": list(TASKS),
            "max_seq_len": SIZES["max_seq_len"],
        },
        "dataset": dataset,
        "dataset_val": dataset,
        "objective": {"_component_": "medtune.objectives.TaskRouting"},
        "optimizer": {"_component_": "torch.optim.AdamW", "lr": 1e-3},
        "trainable": ["encoder", "head"],
        "bucket": False,
        "max_steps": 6,
        "batch_size": 6,
        "dtype": "fp32",
        "device": "cpu",
    }
    return {**values, **changes}


def config(folder: Path, values: dict[str, Any], **changes: Any) -> TrainConfig:
    """The config of a run into ``folder``."""
    return build(TrainConfig, {"output_dir": str(folder), **values, **changes}, "test")
