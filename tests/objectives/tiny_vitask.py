"""Models, batches and gradients for tests of VITask."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medtune.config import instantiate
from medtune.data.sample import Sample
from medtune.data.training_set import TrainingSet
from medtune.objectives.base import Stage
from medtune.objectives.companions import load_companions
from medtune.objectives.vitask.objective import VITask

TOKENIZER = Path(__file__).parents[2] / "medtune" / "assets" / "mini_tokenizer"
SIZES = {"embed_dim": 16, "vision_layers": 1, "decoder_layers": 2, "image_size": 16}
BUILDERS = {"cross-attention": "vlm", "internvl": "internvl", "llava": "llava", "gemma3": "gemma3"}
CHOSEN = [0, 3, 2, 4, 20]  # blobs, bars, a wide blob, bars, and the lone row without a negative
ALIGN, CONTRAST = Stage("align", ()), Stage("contrast", ())


def family(name: str) -> tuple[Any, Any]:
    """A model of random weights, and its transform, which cuts wide pictures into several tiles where it can."""
    kind = BUILDERS[name]
    torch.manual_seed(5)
    sizes = {**SIZES, "max_num_tiles": 2} if kind == "vlm" else SIZES
    model = instantiate({"_component_": f"medtune.models.mini.mini_{kind}", "vocab_size": 1024, **sizes})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    tiles = {} if name in ("llava", "gemma3") else {"max_num_tiles": 2}
    path = {"vlm": "mini_transform"}.get(kind, f"mini_{kind}_transform")
    transform = instantiate(
        {"_component_": f"medtune.models.mini.{path}", "path": str(TOKENIZER), "image_size": 16, **tiles}
    )
    return model, transform


def bound(task: SimpleNamespace, model: Any, transform: Any, stage: Stage = CONTRAST, **arguments: Any) -> VITask:
    arguments = {"tsm": task.tsm, "alpha": 0.7, "beta": 1.3, "chunk_tokens": 3, **arguments}
    objective = VITask(**arguments)
    objective.attach(load_companions(objective.companions()))
    objective.bind(model, transform, seed=2)
    if objective.connector is not None:
        with torch.no_grad():
            objective.connector.linear_2.weight.mul_(20)  # so that an exemplar changes an untrained model's answer
    objective.begin_stage(stage)
    return objective


def batch_of(task: SimpleNamespace, objective: VITask, transform: Any, chosen: list[int] = CHOSEN) -> dict[str, Any]:
    stage = CONTRAST if getattr(objective, "contrast", False) else ALIGN
    items = objective.items(task.source, np.arange(len(task.source)), stage)
    samples = TrainingSet(task.source, items, transform, seed=3)
    return items.collate([samples[(0, index, True)] for index in chosen], transform)


def loss_and_gradients(model: Any, objective: VITask, batch: dict[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    named = {**dict(model.named_parameters()), **dict(objective.named_parameters())}
    for parameter in named.values():
        parameter.grad = None
    output = model.compute(objective, batch)
    output.loss_sum.backward()
    return output, {name: p.grad for name, p in named.items() if p.grad is not None}


def close(first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.allclose(value, second[name], rtol=tolerance, atol=tolerance), name


def one_row(task: SimpleNamespace, transform: Any, index: int, images_of: int | None = None) -> dict[str, Any]:
    """A sample alone, with its own images or another's."""
    sample, other = task.source[index], task.source[index if images_of is None else images_of]
    shown = Sample(sample.id, other.images, sample.messages)
    return transform.collate([transform(shown, task.source.open_images(other))])
