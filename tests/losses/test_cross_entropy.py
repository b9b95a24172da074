"""Cross-entropy: the equation written out, the fast path against the plain one."""

import math
import weakref

import pytest
import torch
import torch.nn.functional as F

from medtune.losses.cross_entropy import (
    IGNORE_INDEX,
    chunked_cross_entropy,
    predicting_columns,
    shifted_targets,
    token_cross_entropy,
)


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
    hidden, _, head = problem()
    assert chunked_cross_entropy(hidden[:1, :3], labels, head)[1].item() == 1


@pytest.mark.parametrize("chunk", [0, 1, 3])
def test_row_weights_multiply_the_loss_of_each_rows_tokens(chunk: int) -> None:
    hidden, labels, head = problem()
    weights = torch.tensor([2.0, 0.25, 1.5], dtype=torch.float64)
    rows = [written_out(head(hidden[row]), shifted_targets(labels)[row]) for row in range(3)]
    loss, count = chunked_cross_entropy(hidden, labels, head, chunk, weights)
    assert loss.item() == pytest.approx(
        sum(w * one for w, (one, _) in zip(weights.tolist(), rows, strict=True)), abs=1e-12
    )
    assert count.item() == sum(w * n for w, (_, n) in zip(weights.tolist(), rows, strict=True))
    (found,) = torch.autograd.grad(loss, hidden)
    plain = [chunked_cross_entropy(hidden[r : r + 1], labels[r : r + 1], head)[0] for r in range(3)]
    (expected,) = torch.autograd.grad(sum(w * one for w, one in zip(weights, plain, strict=True)), hidden)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


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


@pytest.mark.parametrize("weights", [None, [2.0, 0.25, 1.5]])
def test_states_of_the_predicting_columns_give_the_loss_of_all_states(weights: list[float] | None) -> None:
    hidden, labels, head = problem()
    labels[:, :4] = IGNORE_INDEX
    rows = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    columns = predicting_columns(labels)
    assert columns is not None and columns.shape == (3, 3)
    chosen = hidden.gather(1, columns[:, :, None].expand(-1, -1, 5))
    plain, fast = (
        chunked_cross_entropy(states, labels, head, 2, rows, which)
        for states, which in ((hidden, None), (chosen, columns))
    )
    assert fast[0].item() == pytest.approx(plain[0].item(), abs=1e-12) and fast[1] == plain[1]
    expected, found = (torch.autograd.grad(loss, [hidden, head.weight]) for loss, _ in (plain, fast))
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_equals_torchtunes_chunked_loss() -> None:
    from torchtune.modules.loss import CEWithChunkedOutputLoss

    hidden, labels, head = problem(torch.float32)
    theirs = CEWithChunkedOutputLoss(num_output_chunks=2)
    logits = [head(part) for part in hidden.chunk(2, dim=1)]
    loss, count = chunked_cross_entropy(hidden, labels, head, 4)
    assert (loss / count).item() == pytest.approx(theirs(logits, shifted_targets(labels)).item(), abs=1e-6)


def test_without_supervision_the_loss_is_zero_and_every_gradient_is_zeros() -> None:
    hidden, labels, head = problem()
    loss, count = chunked_cross_entropy(hidden, torch.full_like(labels, IGNORE_INDEX), head)
    loss.backward()
    assert loss.item() == 0.0 and count.item() == 0
    assert hidden.grad is not None and not hidden.grad.any()
    assert head.weight.grad is not None and not head.weight.grad.any()


class SharedHead(torch.nn.Module):
    """A head whose map is a sum of two trained tensors, as with an adapter, beside a frozen one and a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.delta = (torch.nn.Parameter(torch.randn(11, 5, dtype=torch.float64)) for _ in range(2))
        self.frozen = torch.nn.Linear(5, 11).double().requires_grad_(False)
        self.bias = torch.nn.Parameter(torch.randn(11, dtype=torch.float64))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return F.linear(states, self.base + self.delta, self.bias) + self.frozen(states)


@pytest.mark.parametrize("chunk", [0, 3])
def test_every_trained_tensor_of_the_head_gets_its_gradient_scaled_by_what_follows(chunk: int) -> None:
    hidden, labels, _ = problem()
    head = SharedHead()
    trained = [hidden, head.base, head.delta, head.bias]
    plain, _ = token_cross_entropy(head(hidden), shifted_targets(labels))
    want = torch.autograd.grad(-0.3 * plain + hidden.square().sum(), trained)
    loss, _ = chunked_cross_entropy(hidden, labels, head, chunk)
    (-0.3 * loss + hidden.square().sum()).backward()
    for tensor, gradient in zip(trained, want, strict=True):
        torch.testing.assert_close(tensor.grad, gradient, rtol=0, atol=1e-12)
    assert head.frozen.weight.grad is None


def test_a_frozen_model_below_a_trained_head() -> None:
    hidden, labels, head = problem()
    plain, _ = token_cross_entropy(head(hidden.detach()), shifted_targets(labels))
    loss, _ = chunked_cross_entropy(hidden.detach(), labels, head, 4)
    loss.backward()
    torch.testing.assert_close(head.weight.grad, torch.autograd.grad(plain, head.weight)[0], rtol=0, atol=1e-12)


def test_without_gradients_nothing_is_kept() -> None:
    hidden, labels, head = problem()
    with torch.no_grad():
        loss, _ = chunked_cross_entropy(hidden, labels, head, 4)
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(chunked_cross_entropy(hidden, labels, head, 4)[0].item(), abs=1e-12)


def test_each_supervised_token_meets_the_head_once_and_logits_do_not_pile_up() -> None:
    hidden, labels, head = problem()
    alive: list[weakref.ref[torch.Tensor]] = []
    rows = []

    def watched(states: torch.Tensor) -> torch.Tensor:
        assert all(reference() is None for reference in alive)
        logits = head(states)
        alive.append(weakref.ref(logits))
        rows.append(len(logits))
        return logits

    loss, count = chunked_cross_entropy(hidden, labels, watched, 5)
    loss.backward()
    assert sum(rows) == count.item() == 12 and rows == [4, 4, 4]


def test_activation_offloading_sees_nothing_of_the_loss() -> None:
    hidden, labels, head = problem()
    seen = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        seen.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss, _ = chunked_cross_entropy(hidden * 2.0, labels, head, 4)
    loss.backward()
    assert not any(tensor.is_floating_point() for tensor in seen), "only row numbers are kept"


def test_a_second_backward_pass_is_refused() -> None:
    hidden, labels, head = problem()
    loss, _ = chunked_cross_entropy(hidden, labels, head)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward"):
        loss.backward()


def test_half_precision_logits_are_summed_in_fp64() -> None:
    logits = torch.randn(4, 9).bfloat16()
    targets = torch.randint(0, 9, (4,))
    loss, _ = token_cross_entropy(logits, targets)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(F.cross_entropy(logits.float(), targets, reduction="sum").item(), rel=1e-6)
