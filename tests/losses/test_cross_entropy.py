"""Cross-entropy: the equation written out, the fast path against the plain one."""

import math

import pytest
import torch
import torch.nn.functional as F

from medtune.losses.cross_entropy import IGNORE_INDEX, chunked_cross_entropy, shifted_targets, token_cross_entropy


def written_out(logits: torch.Tensor, targets: torch.Tensor) -> tuple[float, int]:
    """``-sum_i log( exp(z_iy) / sum_v exp(z_iv) )``, one position at a time."""
    total, count = 0.0, 0
    for row, target in zip(logits.reshape(-1, logits.shape[-1]).tolist(), targets.reshape(-1).tolist(), strict=True):
        if target != IGNORE_INDEX:
            total -= row[target] - math.log(sum(math.exp(value) for value in row))
            count += 1
    return total, count


def problem(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.nn.Linear]:
    torch.manual_seed(0)
    hidden = torch.randn(3, 7, 5, dtype=dtype, requires_grad=True)
    labels = torch.randint(0, 11, (3, 7))
    labels[:, :2] = IGNORE_INDEX
    labels[1, 4:] = IGNORE_INDEX
    return hidden, labels, torch.nn.Linear(5, 11, bias=False).to(dtype)


def test_token_cross_entropy_is_the_equation() -> None:
    hidden, labels, head = problem()
    targets = shifted_targets(labels)
    loss, count = token_cross_entropy(head(hidden), targets)
    expected, expected_count = written_out(head(hidden), targets)
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    assert count.item() == expected_count


def test_first_supervised_token_is_not_counted_when_nothing_precedes_it() -> None:
    labels = torch.tensor([[4, 5, IGNORE_INDEX]])
    assert shifted_targets(labels).tolist() == [[5, IGNORE_INDEX, IGNORE_INDEX]]


@pytest.mark.parametrize("chunk", [0, 1, 3, 1000])
def test_chunks_equal_the_plain_loss_forward_and_backward(chunk: int) -> None:
    hidden, labels, head = problem()
    plain, count = token_cross_entropy(head(hidden), shifted_targets(labels))
    plain_grads = torch.autograd.grad(plain, [hidden, head.weight])
    loss, chunked_count = chunked_cross_entropy(hidden, labels, head, chunk)
    grads = torch.autograd.grad(loss, [hidden, head.weight])
    assert loss.item() == pytest.approx(plain.item(), abs=1e-12)
    assert chunked_count == count
    for got, want in zip(grads, plain_grads, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_equals_torchtunes_chunked_loss() -> None:
    from torchtune.modules.loss import CEWithChunkedOutputLoss

    hidden, labels, head = problem(torch.float32)
    theirs = CEWithChunkedOutputLoss(num_output_chunks=2)
    logits = [head(part) for part in hidden.chunk(2, dim=1)]
    loss, count = chunked_cross_entropy(hidden, labels, head, 4)
    assert (loss / count).item() == pytest.approx(theirs(logits, shifted_targets(labels)).item(), abs=1e-6)


def test_without_supervision_the_loss_is_zero_and_has_a_graph() -> None:
    hidden, labels, head = problem()
    loss, count = chunked_cross_entropy(hidden, torch.full_like(labels, IGNORE_INDEX), head)
    loss.backward()
    assert loss.item() == 0.0 and count.item() == 0
    assert hidden.grad is not None and not hidden.grad.any()


def test_half_precision_logits_are_summed_in_fp64() -> None:
    logits = torch.randn(4, 9).bfloat16()
    targets = torch.randint(0, 9, (4,))
    loss, _ = token_cross_entropy(logits, targets)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(F.cross_entropy(logits.float(), targets, reduction="sum").item(), rel=1e-6)
