"""Plain instruction tuning: text-only beside image samples, short steps, and torchtune's own loss."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torchtune.modules.loss import CEWithChunkedOutputLoss

from medtune.config import instantiate
from medtune.data.batching import split_step
from medtune.data.items import SampleItems
from medtune.data.source import SampleSource
from medtune.data.training_set import TrainingSet, epoch_loader
from medtune.objectives.base import keep_sample
from medtune.objectives.sft import SFT as Objective
from medtune.training.trainer import Trainer
from tests.runs import CELLS, SFT, SGD, largest_difference, launch, losses, tiny, weights

MIXED = {
    "_component_": "medtune.datasets.mixture_dataset",
    "parts": [
        {"_component_": CELLS, "size": 9, "seed": 5, "kind": "instructions", "image_size": 16},
        {"_component_": CELLS, "size": 9, "seed": 5, "kind": "text", "image_size": 16},
    ],
}
PARTS = ["vision", "projection", "fusion", "decoder"]
RUN: dict[str, Any] = {**SFT, "dataset": MIXED, "trainable": PARTS, "optimizer": SGD, "max_steps": 9, "bucket": False}


def ranks_without_images(harm_log: Path) -> Any:
    """Note for each step of each process whether its micro-batch holds an image."""

    def harm() -> None:
        original = Trainer._forward_backward

        def step(self: Trainer, batches: list) -> torch.Tensor:
            with (harm_log.parent / f"{harm_log.name}_{self.runtime.rank}").open("a") as file:
                file.write("".join(str(int(batch["vision_mask"].any())) for batch in batches))
            return original(self, batches)

        Trainer._forward_backward = step  # type: ignore[method-assign]

    return harm


def test_a_process_with_text_alone_beside_one_with_images(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert launch(tiny(one, **RUN, batch_size=2)) == [0]
    assert launch(tiny(two, **RUN, batch_size=1), world=2, harm=ranks_without_images(tmp_path / "seen")) == [0, 0]
    first, second = (tmp_path / f"seen_{rank}" for rank in (0, 1))
    pairs = set(zip(first.read_text(), second.read_text(), strict=True))
    assert pairs >= {("0", "1"), ("1", "0")}, "the data bring the case about"
    assert losses(two) == pytest.approx(losses(one), abs=1e-6)
    assert largest_difference(weights(one), weights(two)) < 1e-6


def test_a_process_without_a_supervised_token_beside_a_trained_output_head(tmp_path: Path) -> None:
    run = {**RUN, "dataset": {**SFT["dataset"], "size": 5}, "max_steps": 2}  # the second step holds one sample
    one, two = tmp_path / "one", tmp_path / "two"
    assert launch(tiny(one, **run, batch_size=4)) == [0]
    assert launch(tiny(two, **run, batch_size=2), world=2) == [0, 0]
    assert losses(two) == pytest.approx(losses(one), abs=1e-6)
    assert largest_difference(weights(one), weights(two)) < 1e-6


def micro_batches(config: Any, indices: list[int], batch_size: int) -> tuple[Any, dict[str, Any]]:
    """A model and one collated micro-batch; fillers make up the size."""
    source: SampleSource = instantiate(config.dataset)
    transform = instantiate(config.transform)
    transform.dtype = torch.float32
    dataset = TrainingSet(source, SampleItems(keep_sample), transform, seed=3)
    share = split_step(indices, world=1, rank=0, accumulation=1, batch_size=batch_size)
    torch.manual_seed(1)
    return instantiate(config.model), next(epoch_loader(dataset, [share], 0))[0]


def loss_and_gradients(config: Any, indices: list[int], batch_size: int) -> tuple[float, int, dict[str, torch.Tensor]]:
    model, batch = micro_batches(config, indices, batch_size)
    output = model.compute(Objective(chunk_tokens=5), batch)
    output.loss_sum.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return output.loss_sum.item(), int(output.weight), gradients


def test_fillers_contribute_nothing(tmp_path: Path) -> None:
    config = tiny(tmp_path, **RUN)
    alone, filled = loss_and_gradients(config, [2, 12, 4], 3), loss_and_gradients(config, [2, 12, 4], 5)
    assert filled[1] == alone[1] > 0
    assert filled[0] == pytest.approx(alone[0], abs=1e-5)
    assert largest_difference(alone[2], filled[2]) < 1e-5


def test_loss_and_gradients_are_those_of_torchtunes_recipe(tmp_path: Path) -> None:
    """The loss step of torchtune's full_finetune_single_device, on the same forward pass of torchtune's own model."""
    config = tiny(tmp_path, **RUN)
    total, count, ours = loss_and_gradients(config, [2, 12, 4, 7], 4)
    model, batch = micro_batches(config, [2, 12, 4, 7], 4)
    loss_function = CEWithChunkedOutputLoss()
    model.set_num_output_chunks(loss_function.num_output_chunks)
    logits = model(tokens=batch["tokens"], encoder_input=batch["vision"], encoder_mask=batch["vision_mask"])
    labels = torch.hstack((batch["labels"][..., 1:], torch.full((4, 1), loss_function.ignore_index)))
    loss = loss_function(logits, labels)
    loss.backward()
    theirs = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert total / count == pytest.approx(loss.item(), abs=1e-6)
    assert largest_difference({name: value / count for name, value in ours.items()}, theirs) < 1e-6


def test_supervised_tokens_are_the_assistants_words(tmp_path: Path) -> None:
    config = tiny(tmp_path, **RUN)
    _, batch = micro_batches(config, [2], 1)
    transform, sample = instantiate(config.transform), instantiate(config.dataset)[2]
    supervised = transform.decode([token for token in batch["labels"][0].tolist() if token >= 0])
    answers = [message.content for message in sample.messages if message.role == "assistant"]
    users = [message.content for message in sample.messages if message.role == "user"]
    assert all(answer in supervised for answer in answers) and not any(user in supervised for user in users)
