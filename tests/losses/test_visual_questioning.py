"""L_vq + L_qa: the two sums written out turn by turn, and the one pass against two plain losses."""

import math

import pytest
import torch

from medtune.losses.cross_entropy import IGNORE_INDEX, chunked_cross_entropy, predicting_columns
from medtune.losses.visual_questioning import asking_and_answering

# One row: image, first question (not learned), answer, question, answer, end of padding.
TURNS = [(0, 3, None), (3, 5, "answer"), (5, 6, None), (6, 9, "question"), (9, 10, None), (10, 12, "answer")]
LENGTH, WIDTH, WORDS = 14, 5, 11


def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.nn.Linear]:
    hidden = torch.randn(2, LENGTH, WIDTH, dtype=torch.float64, requires_grad=True)
    labels = torch.full((2, LENGTH), IGNORE_INDEX)
    asked = torch.zeros(2, LENGTH, dtype=torch.bool)
    for start, end, kind in TURNS:
        if kind:
            labels[0, start:end] = torch.randint(0, WORDS, (end - start,))
            asked[0, start:end] = kind == "question"
    labels[1, 2:4] = 3  # a row of one answer alone
    return hidden, labels, asked, torch.nn.Linear(WIDTH, WORDS, bias=False).double()


def written_out(hidden: torch.Tensor, labels: torch.Tensor, head: torch.nn.Linear, row: int, kind: str) -> float:
    """``-sum log p`` of the turns of a kind, one token at a time: token t is predicted by the state at t - 1."""
    turns = [(start, end) for start, end, which in TURNS if which == kind] if row == 0 else [(2, 4)]
    total = 0.0
    for start, end in turns:
        for place in range(start, end):
            scores = head(hidden[row, place - 1]).tolist()
            total -= scores[labels[row, place]] - math.log(sum(math.exp(score) for score in scores))
    return total


@pytest.mark.parametrize("chunk", [0, 1, 3])
def test_the_sums_are_the_papers(chunk: int) -> None:
    hidden, labels, asked, head = problem()
    total, count, asking, asked_count = asking_and_answering(hidden, labels, asked, head, chunk)
    l_vq = written_out(hidden, labels, head, 0, "question")
    l_qa = written_out(hidden, labels, head, 0, "answer") + written_out(hidden, labels, head, 1, "answer")
    assert asking.item() == pytest.approx(l_vq, abs=1e-12)
    assert total.item() == pytest.approx(l_vq + l_qa, abs=1e-12)
    assert (count.item(), asked_count.item()) == (3 + 2 + 2 + 2, 3)


@pytest.mark.parametrize("chunk", [0, 2])
def test_each_row_counts_with_its_weight(chunk: int) -> None:
    hidden, labels, asked, head = problem()
    weights = torch.tensor([3.0, 0.5], dtype=torch.float64)
    total, count, asking, asked_count = asking_and_answering(hidden, labels, asked, head, chunk, weights)
    l_vq = 3 * written_out(hidden, labels, head, 0, "question")
    l_qa = 3 * written_out(hidden, labels, head, 0, "answer") + 0.5 * written_out(hidden, labels, head, 1, "answer")
    assert (asking.item(), total.item()) == pytest.approx((l_vq, l_vq + l_qa), abs=1e-12)
    assert (count.item(), asked_count.item()) == (3 * 7 + 0.5 * 2, 3 * 3)


def test_states_of_the_predicting_columns_give_the_sums_of_all_states() -> None:
    hidden, labels, asked, head = problem()
    weights = torch.tensor([3.0, 0.5], dtype=torch.float64)
    columns = predicting_columns(labels)
    assert columns is not None and columns.shape == (2, 7)
    chosen = hidden.gather(1, columns[:, :, None].expand(-1, -1, WIDTH))
    plain = asking_and_answering(hidden, labels, asked, head, 3, weights)
    fast = asking_and_answering(chosen, labels, asked, head, 3, weights, columns)
    assert [value.item() for value in fast] == pytest.approx([value.item() for value in plain], abs=1e-12)
    (expected,), (found,) = (torch.autograd.grad(sums[0], hidden) for sums in (plain, fast))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk", [0, 2])
def test_value_and_gradients_are_those_of_one_cross_entropy(chunk: int) -> None:
    hidden, labels, asked, head = problem()
    total, *_ = asking_and_answering(hidden, labels, asked, head, chunk)
    plain, _ = chunked_cross_entropy(hidden, labels, head, 0)
    ours = torch.autograd.grad(total, [hidden, head.weight])
    theirs = torch.autograd.grad(plain, [hidden, head.weight])
    assert total.item() == pytest.approx(plain.item(), abs=1e-12)
    assert all((a - b).abs().max() < 1e-12 for a, b in zip(ours, theirs, strict=True))


def test_a_batch_without_a_label_has_zero_loss_and_zero_gradients() -> None:
    hidden, labels, asked, head = problem()
    total, count, asking, asked_count = asking_and_answering(
        hidden, torch.full_like(labels, IGNORE_INDEX), asked, head, 2
    )
    gradients = torch.autograd.grad(total, [hidden, head.weight])
    assert total.item() == asking.item() == count.item() == asked_count.item() == 0
    assert all(not gradient.any() for gradient in gradients)


def test_a_flag_without_a_label_counts_nothing() -> None:
    """A sample that only fills a batch keeps its flags, and its labels are ignored."""
    hidden, labels, asked, head = problem()
    labels[0] = IGNORE_INDEX
    _, count, asking, asked_count = asking_and_answering(hidden, labels, asked, head)
    assert (count.item(), asking.item(), asked_count.item()) == (2, 0, 0)
