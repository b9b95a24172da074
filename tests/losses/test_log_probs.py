"""Log-probabilities in chunks against the full-logit form in fp64, forward and backward, for losses of sequences."""

import math
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from medtune.losses.cross_entropy import IGNORE_INDEX, chunked_cross_entropy
from medtune.losses.log_probs import _ChunkedHead, sequence_log_probs, target_log_probs, token_log_probs

WIDTH, VOCABULARY = 5, 11


class LowRank(nn.Module):
    """A frozen weight, a trained low-rank one with dropout, a bias: what an adapter on the output makes of it."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.base = nn.Linear(WIDTH, VOCABULARY).double().requires_grad_(False)
        self.a, self.b = (nn.Parameter(torch.randn(*s).double()) for s in ((2, WIDTH), (VOCABULARY, 2)))
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor) -> Tensor:
        return self.base(states) + self.dropout(states) @ self.a.T @ self.b.T


def frozen() -> nn.Module:
    return nn.Linear(WIDTH, VOCABULARY).double().requires_grad_(False)


HEADS: dict[str, Callable[[], nn.Module]] = {
    "frozen": frozen,
    "trained": lambda: nn.Linear(WIDTH, VOCABULARY).double(),
    "adapter": LowRank,
}


def problem(kind: str) -> tuple[Tensor, Tensor, nn.Module]:
    """Four sequences, two of which are a pair each; one position of the middle is not supervised."""
    torch.manual_seed(0)
    head = HEADS[kind]()
    hidden = torch.randn(4, 7, WIDTH, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, VOCABULARY, (4, 7))
    labels[:, :2] = IGNORE_INDEX
    labels[1, 5:] = IGNORE_INDEX
    labels[2, 4] = IGNORE_INDEX
    return hidden, labels, head


def written_out(hidden: Tensor, labels: Tensor, head: nn.Module) -> Tensor:
    """Full logits; the number at t is ``log(exp z_y / sum_v exp z_v)`` of the label y at t + 1."""
    exponentials = head(hidden).exp()
    rows = []
    for row in range(len(labels)):
        numbers = [torch.zeros((), dtype=torch.float64) for _ in labels[row]]
        for t in range(labels.shape[1] - 1):
            if (label := int(labels[row, t + 1])) != IGNORE_INDEX:
                numbers[t] = (exponentials[row, t, label] / exponentials[row, t].sum()).log()
        rows.append(torch.stack(numbers))
    return torch.stack(rows)


def trained(hidden: Tensor, head: nn.Module) -> list[Tensor]:
    return [hidden, *(p for p in head.parameters() if p.requires_grad)]


def preference(sums: Tensor) -> Tensor:
    """``-log sigmoid(0.7 (first - second))`` of two pairs: what a token's gradient is multiplied by depends on all."""
    return -torch.log(1 / (1 + torch.exp(-0.7 * (sums[0::2] - sums[1::2])))).sum()


@pytest.mark.parametrize("chunk", [0, 1, 3, 1000])
@pytest.mark.parametrize("kind", HEADS)
def test_tokens_are_those_of_full_logits_forward_and_backward(kind: str, chunk: int) -> None:
    hidden, labels, head = problem(kind)
    weights = torch.randn(labels.shape, dtype=torch.float64)
    plain, found = written_out(hidden, labels, head), token_log_probs(hidden, labels, head, chunk)
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-12)
    wanted = torch.autograd.grad((plain * weights).sum(), trained(hidden, head))
    gradients = torch.autograd.grad((found * weights).sum(), trained(hidden, head))
    for ours, theirs in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk", [0, 4])
@pytest.mark.parametrize("kind", HEADS)
def test_a_loss_of_sequences_is_that_of_full_logits_written_by_hand(kind: str, chunk: int) -> None:
    hidden, labels, head = problem(kind)
    sums, counts = sequence_log_probs(hidden, labels, head, chunk)
    plain = written_out(hidden, labels, head).sum(dim=1)
    assert counts.tolist() == [5, 3, 4, 5] and sums.dtype == torch.float64
    torch.testing.assert_close(sums, plain, rtol=0, atol=1e-12)
    loss, wanted = preference(sums), preference(plain)
    by_hand = 0.0
    for first, second in ((0, 1), (2, 3)):
        by_hand += math.log(1 + math.exp(-0.7 * (plain[first].item() - plain[second].item())))
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-12) and loss.item() == pytest.approx(by_hand, abs=1e-12)
    inputs = trained(hidden, head)
    for ours, theirs in zip(*(torch.autograd.grad(one, inputs) for one in (loss, wanted)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
        assert bool(theirs.any())


@pytest.mark.parametrize("kind", HEADS)
def test_gradients_are_those_of_finite_differences(kind: str) -> None:
    hidden, labels, head = problem(kind)

    def loss(hidden: Tensor, *_: Tensor) -> Tensor:
        return preference(sequence_log_probs(hidden, labels, head, 4)[0])

    assert torch.autograd.gradcheck(loss, tuple(trained(hidden, head)))


def test_a_first_token_has_nothing_before_it_and_does_not_count() -> None:
    hidden, labels, head = problem("frozen")
    labels[0, 0] = 3
    sums, counts = sequence_log_probs(hidden, labels, head)
    assert counts.tolist() == [5, 3, 4, 5]
    torch.testing.assert_close(sums, written_out(hidden, labels, head).sum(dim=1), rtol=0, atol=1e-12)


def test_a_sum_over_tokens_is_the_chunked_cross_entropy() -> None:
    hidden, labels, head = problem("trained")
    loss, count = chunked_cross_entropy(hidden, labels, head, 3)
    sums, counts = sequence_log_probs(hidden, labels, head, 3)
    assert -sums.sum().item() == pytest.approx(loss.item(), abs=1e-12) and counts.sum() == count


@pytest.mark.parametrize("kind", HEADS)
def test_two_losses_add_up_their_gradients(kind: str) -> None:
    """Of one forward pass read twice, and of two forward passes."""
    hidden, labels, head = problem(kind)
    inputs, other = trained(hidden, head), labels.flip(0)
    plain = preference(written_out(hidden, labels, head).sum(dim=1))
    plain = plain + written_out(hidden, labels, head).square().sum() + written_out(hidden, other, head).sum()
    wanted = torch.autograd.grad(plain, inputs)
    found = token_log_probs(hidden, labels, head, 4)
    preference(found.sum(dim=1)).backward(retain_graph=True)
    found.square().sum().backward()
    token_log_probs(hidden, other, head, 4).sum().backward()
    for tensor, gradient in zip(inputs, wanted, strict=True):
        torch.testing.assert_close(tensor.grad, gradient, rtol=0, atol=1e-12)
    with pytest.raises(RuntimeError, match="second time"):
        found.sum().backward()


def test_only_what_is_trained_gets_a_gradient() -> None:
    hidden, labels, head = problem("adapter")
    sequence_log_probs(hidden.detach(), labels, head, 4)[0].sum().backward()
    assert head.a.grad is not None and head.base.weight.grad is None
    wanted = torch.autograd.grad(written_out(hidden.detach(), labels, head).sum(), head.a)[0]
    torch.testing.assert_close(head.a.grad, wanted, rtol=0, atol=1e-12)
    head.requires_grad_(False)
    assert not token_log_probs(hidden.detach(), labels, head, 4).requires_grad
    with torch.no_grad():
        found = token_log_probs(hidden, labels, head, 4)
    assert not found.requires_grad
    torch.testing.assert_close(found, written_out(hidden, labels, head), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", HEADS)
def test_nothing_supervised_gives_zeros_and_a_backward_pass(kind: str) -> None:
    hidden, labels, head = problem(kind)
    sums, counts = sequence_log_probs(hidden, torch.full_like(labels, IGNORE_INDEX), head)
    assert not sums.any() and not counts.any()
    preference(sums).backward()
    assert all(tensor.grad is not None and not tensor.grad.any() for tensor in trained(hidden, head))


def test_ignored_rows_are_zero_and_have_no_gradient() -> None:
    hidden, _, head = problem("trained")
    states = hidden[0].detach().requires_grad_()
    targets = torch.tensor([3, IGNORE_INDEX, 0, 1, 2, IGNORE_INDEX, 9])
    found = target_log_probs(states, targets, head, 2)
    (gradient,) = torch.autograd.grad(found.sum(), states)
    with torch.no_grad():
        assert torch.equal(found, target_log_probs(states, targets, head, 2)), "states may be leaves that are trained"
    assert found[[1, 5]].tolist() == [0.0, 0.0] and not gradient[[1, 5]].any()
    assert bool((found[[0, 2, 3, 4, 6]] < 0).all()) and bool((gradient[[0, 2, 3, 4, 6]] != 0).any(dim=1).all())


def test_a_dropped_activation_is_the_same_in_both_passes_and_no_other_random_number_moves() -> None:
    torch.manual_seed(1)
    head, hidden = LowRank(dropout=0.5), torch.randn(2, 6, WIDTH, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, VOCABULARY, (2, 6))
    torch.manual_seed(8)
    found = token_log_probs(hidden, labels, head, 4)
    after = torch.rand(3)
    gradients = torch.autograd.grad(found.square().sum(), trained(hidden, head))
    next_one = torch.rand(3)
    torch.manual_seed(8)
    states, targets = hidden[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    parts = [F.log_softmax(head(state), -1) for state in states.split(4)]
    plain = torch.cat(parts).gather(1, targets[:, None]).view(2, 5)
    torch.testing.assert_close(found[:, :-1], plain, rtol=0, atol=1e-12)
    assert torch.equal(after, torch.rand(3)) and torch.equal(next_one, torch.rand(3))
    for ours, theirs in zip(gradients, torch.autograd.grad(plain.square().sum(), trained(hidden, head)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", HEADS)
def test_bf16_agrees_with_fp32_to_its_rounding(kind: str) -> None:
    hidden, labels, head = problem(kind)

    def run(dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        # the same values in both types, so that only the arithmetic differs
        cast = head.bfloat16().to(dtype)
        states = hidden.detach().bfloat16().to(dtype).requires_grad_()
        sums, _ = sequence_log_probs(states, labels, lambda state: cast(state).float(), 4)
        return sums, [g.float() for g in torch.autograd.grad(preference(sums), trained(states, cast))]

    (rough, rough_gradients), (exact, gradients) = run(torch.bfloat16), run(torch.float32)
    assert rough.dtype == exact.dtype == torch.float64
    torch.testing.assert_close(rough, exact, rtol=4e-3, atol=0)  # measured: 1.6e-3
    for ours, theirs in zip(rough_gradients, gradients, strict=True):
        assert (ours - theirs).norm() < 1e-2 * theirs.norm()  # measured: 5.2e-3


def test_numbers_are_fp32_for_logits_of_half_precision_and_fp32() -> None:
    states, targets = torch.randn(3, WIDTH), torch.tensor([1, 2, 3])
    head = nn.Linear(WIDTH, VOCABULARY).requires_grad_(False)
    assert target_log_probs(states, targets, head).dtype == torch.float32
    rough = target_log_probs(states.bfloat16(), targets, head.bfloat16())
    logits = head(states.bfloat16()).float().log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, logits, rtol=0, atol=1e-6)


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else [result]:
            if isinstance(one, Tensor):
                self.elements = max(self.elements, one.numel())
        return result


@pytest.mark.parametrize("train", [False, True])
def test_no_tensor_holds_the_logits_of_more_than_one_chunk(train: bool) -> None:
    tokens, vocabulary, chunk = 64, 300, 8
    head = nn.Linear(4, vocabulary, bias=False).requires_grad_(train)
    hidden = torch.randn(2, tokens // 2 + 1, 4, requires_grad=True)
    labels = torch.randint(0, vocabulary, (2, tokens // 2 + 1))
    alive: list[weakref.ref[Tensor]] = []
    sizes: list[int] = []
    saved: list[int] = []

    def watched(states: Tensor) -> Tensor:
        assert all(reference() is None for reference in alive), "two chunks' logits are alive"
        logits = head(states)
        alive.append(weakref.ref(logits))
        sizes.append(len(states))
        return logits

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with Largest() as seen, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = preference(sequence_log_probs(hidden, labels, watched, chunk)[0])
        loss.backward()
    assert seen.elements <= max(chunk * vocabulary, vocabulary * 4) < tokens * vocabulary / 7
    assert sizes == [chunk] * (tokens // chunk) * (2 if train else 1), "a frozen head meets each token once"
    assert max(saved) <= hidden.numel()


def test_autocast_of_the_forward_pass_is_that_of_the_backward_pass() -> None:
    head = nn.Linear(WIDTH, VOCABULARY)
    hidden, labels = torch.randn(2, 4, WIDTH, requires_grad=True), torch.randint(0, VOCABULARY, (2, 4))
    seen = []

    def watched(states: Tensor) -> Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return head(states)

    with torch.autocast("cpu", torch.bfloat16):
        found = token_log_probs(hidden, labels, watched, 3)
    found.sum().backward()
    assert seen == [True] * 4


def test_the_second_time_the_devices_random_numbers_are_those_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout on a GPU draws from the device's generator; a stand-in takes its place here."""
    device, set_to = torch.device("cuda"), []
    module = SimpleNamespace(
        get_rng_state=lambda one: f"state of {one}", set_rng_state=lambda state, one: set_to.append((state, one))
    )
    monkeypatch.setattr(torch, "get_device_module", lambda one: module)
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices, **_: nullcontext(devices))
    chunked = _ChunkedHead(lambda state: state, 2, device)
    assert set_to == []
    with chunked.replayed():
        assert set_to == [("state of cuda", device)]
