"""Log-probabilities under sharded training: two processes over gloo give what one process gives."""

import multiprocessing
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torchtune.modules import TiedLinear

from medtune.losses.cross_entropy import IGNORE_INDEX
from medtune.losses.log_probs import sequence_log_probs
from medtune.training.building import checkpoint_activations, shard
from tests.runs import _free_port, tiny

VOCABULARY = 300


def model_of(trained: str) -> nn.Module:
    """A tiny model with a frozen or a trained head; with ``tied`` it is the word embeddings."""
    from tests.models.tiny_early import tiny_early_vlm

    torch.manual_seed(4)
    model = tiny_early_vlm(VOCABULARY)
    if trained == "tied":
        del model.decoder.output
        model.decoder.output = TiedLinear(model.decoder.tok_embeddings)
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, std=0.4)
        parameter.requires_grad_(trained != "frozen" or "layers" in name)
    return model


def loss(model: nn.Module, tokens: Tensor, labels: Tensor) -> Tensor:
    """Of one pair."""
    sums, _ = sequence_log_probs(model.hidden(tokens), labels, model.logits, 5)
    return -torch.nn.functional.logsigmoid(0.3 * (sums[0] - sums[1]))


def pairs() -> tuple[Tensor, Tensor]:
    """Two pairs; the second has no supervised token."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, VOCABULARY, (2, 2, 12), generator=generator)
    labels = tokens.masked_fill(torch.arange(12) < 3, IGNORE_INDEX)
    labels[1] = IGNORE_INDEX
    return tokens, labels


def child(folder: Path, rank: int, port: int, trained: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = str(port)
    dist.init_process_group("gloo")
    model = model_of(trained)
    checkpoint_activations(model, tiny(folder, activation_checkpointing=True))
    shard(model)
    tokens, labels = pairs()
    for _ in range(2):  # the second time on what the first has left behind: gradients add up
        model.compute(loss, tokens[rank], labels[rank]).backward()
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert isinstance(parameter.grad, DTensor)
            found[name.replace("._checkpoint_wrapped_module", "")] = parameter.grad.full_tensor()
    if rank == 0:
        torch.save(found, folder / "gradients.pt")
    dist.destroy_process_group()
    os._exit(0)


@pytest.mark.parametrize("trained", ["frozen", "all", "tied"])
def test_two_processes_give_the_gradients_of_one(trained: str, tmp_path: Path) -> None:
    port = _free_port()
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=child, args=(tmp_path, rank, port, trained)) for rank in range(2)]
    for one in children:
        one.start()
    for one in children:
        one.join(120)
    assert [one.exitcode for one in children] == [0, 0]
    model, (tokens, labels) = model_of(trained), pairs()
    for pair in range(2):
        loss(model, tokens[pair], labels[pair]).backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    found = torch.load(tmp_path / "gradients.pt", weights_only=True)
    assert found.keys() == expected.keys() and any("layers" in name for name in found)
    assert ("decoder.tok_embeddings.weight" in found) == (trained != "frozen")
    assert ("decoder.output.weight" in found) == (trained == "all")
    for name, gradient in expected.items():
        assert bool(gradient.any()), name
        # each of two passes is a mean over the processes: 2 * (g0 + g1) / 2
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5)
