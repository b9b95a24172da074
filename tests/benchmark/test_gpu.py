"""The GPU benchmark on its tiny model: both steps do the same work, and the operations are those that torch counts."""

import argparse
import contextlib
import json
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from medtune.errors import TrainingError
from medtune.objectives import InstFree
from tests.benchmark.scripts import script

gpu = script("gpu")
step = gpu.step
CPU = torch.device("cpu")


def options(*arguments: str) -> argparse.Namespace:
    return gpu.parse(["--tiny", "--tokens", "40", "--rounds", "1", "--warmup", "1", *arguments])


class Everything(contextlib.nullcontext):
    """In place of the counter's tally by module, whose hooks cannot bear a gradient that is taken in a forward pass."""

    parents = frozenset({"Global"})


def torch_counts(run) -> int:
    """Operations of a whole step as torch's own counter sees them, with attention as plain products."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = Everything()
    with sdpa_kernel(SDPBackend.MATH), counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("side", ["medtune_step", "stock_step"])
def test_operations_are_those_that_torch_counts_and_recomputation_is_not(side: str) -> None:
    plain = getattr(step, side)(step.build(options("--no-activation-checkpointing"), step.TINY, CPU))
    counted = step.model_flops(plain)
    assert counted == torch_counts(plain)
    checkpointed = getattr(step, side)(step.build(options(), step.TINY, CPU))
    assert step.model_flops(checkpointed) == counted < torch_counts(checkpointed)


def test_both_sides_give_the_same_loss_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a proxy the medtune step is plain fine-tuning, so that nothing may differ."""
    monkeypatch.setitem(step.METHODS, "instfree", lambda: InstFree(mode="text"))
    bench = step.build(options(), step.TINY, CPU)
    found = []
    for one in (step.medtune_step(bench), step.stock_step(bench)):
        loss, weight = one.forward()
        bench.optimizer.zero_grad()
        (loss / weight).backward()
        gradients = {name: p.grad.clone() for name, p in bench.parts.select(bench.trainable).items()}
        found.append((float(loss.detach() / weight), gradients))
    (ours, mine), (theirs, stock) = found
    assert ours == pytest.approx(theirs, rel=1e-6) and mine.keys() == stock.keys()
    for name, gradient in mine.items():
        torch.testing.assert_close(gradient, stock[name], rtol=1e-4, atol=1e-6)


def test_the_steps_train_one_model_and_its_decoder_stays() -> None:
    bench = step.build(options(), step.TINY, CPU)
    for make in (step.medtune_step, step.stock_step):
        before = {name: p.detach().clone() for name, p in bench.parts.named().items()}
        make(bench)()
        moved = {name for name, p in bench.parts.named().items() if not torch.equal(p, before[name])}
        parts = {part for part, names in bench.parts.members.items() if moved & set(names)}
        assert parts == {*step.TRAINED, *(["proxy"] if make is step.medtune_step else [])}
        # Eq. 3 has been applied: the proxy is the average again, and not what the optimizer made of it.
        assert torch.equal(bench.objective.average, bench.objective.proxy.weight)
        assert not torch.equal(bench.objective.last_t, bench.objective.proxy.weight)


def test_a_batch_has_the_chat_layout_and_no_padding() -> None:
    batch = step.make_batch(step.TINY, 3, 40, CPU)
    prompt = 5 + 1 + step.VECTORS + 5
    assert batch["tokens"].shape == (3, 40) and batch["padding"].all()
    assert (batch["labels"][:, :prompt] == -100).all() and (batch["labels"] != -100).sum() == 3 * (40 - prompt)
    assert ((batch["tokens"] == step.TINY.placeholder_id).sum(1) == step.VECTORS).all()
    assert not batch["vision_mask"][:, :5].any() and batch["vision_mask"][:, 5:].all()
    with pytest.raises(TrainingError, match="more than the 19"):
        step.make_batch(step.TINY, 1, 19, CPU)


def test_the_command_writes_its_numbers_and_where_they_come_from(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    assert gpu.main(["--tiny", "--tokens", "40", "--rounds", "2", "--batch-size", "3", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    ours = result["steps"]["instfree"]
    assert ours["tokens_per_second"] == pytest.approx(40 * ours["samples_per_second"])
    assert ours["samples_per_second"] * ours["median_seconds"] == pytest.approx(3)
    assert ours["model_flops_utilisation"] is None and result["gpu"] is None and result["model"] == "mini_vlm"
    assert result["time_ratio_range"][0] <= result["time_ratio"] <= result["time_ratio_range"][1]
    assert result["settings"]["tokens"] == 40 and result["versions"]["torch"] and result["parameters"]["trained"] > 0


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert "torch sees no GPU" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_ends_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = step.build(options(), step.TINY, CPU)
    with torch.no_grad():
        bench.model.decoder.output.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="the loss is nan"):
        step.medtune_step(bench)()


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA T4", None),
        (None, None),
    ],
)
def test_peaks_are_found_by_the_cards_name(name: str | None, peak: float | None) -> None:
    assert step.peak_flops(name) == peak
