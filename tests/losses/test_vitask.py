"""RDA and CRT against their equations written out, and the losses of a step against the plain form."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medtune.errors import ModelError
from medtune.losses.contrastive_response import contrastive_response
from medtune.losses.cross_entropy import token_cross_entropy
from medtune.losses.response_alignment import response_alignment
from medtune.losses.vitask import response_rows, same_response, vitask_losses

IGNORE_INDEX = -100
TARGETS = torch.tensor([3, IGNORE_INDEX, 0, 6, IGNORE_INDEX])


def logits(seed: int, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(5, 7, generator=generator, dtype=torch.float64)).requires_grad_()


def test_rda_is_equation_3_token_by_token() -> None:
    student, teacher = logits(1).detach(), logits(2).detach()
    expected = 0.0
    for place in (0, 2, 3):
        p = [float(x) for x in student[place].exp() / student[place].exp().sum()]
        q = [float(x) for x in teacher[place].exp() / teacher[place].exp().sum()]
        expected += sum(a * torch.tensor(a / b, dtype=torch.float64).log().item() for a, b in zip(p, q, strict=True))
    found, count = response_alignment(student, teacher, TARGETS)
    assert found.item() == pytest.approx(expected, abs=1e-12) and int(count) == 3


def test_rda_is_torchs_kl_div_forward_and_backward_with_the_student_first() -> None:
    student, teacher = logits(1), logits(2)
    kept = TARGETS != IGNORE_INDEX
    # torch's first argument is the second of the divergence
    expected = F.kl_div(teacher[kept].log_softmax(-1), student[kept].log_softmax(-1), reduction="sum", log_target=True)
    found, _ = response_alignment(student, teacher, TARGETS, detach=False)
    assert found.item() == pytest.approx(expected.item(), abs=1e-12)
    for ours, theirs in zip(*(torch.autograd.grad(one, [student, teacher]) for one in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    other = response_alignment(teacher, student, TARGETS)[0]
    assert abs(other.item() - found.item()) > 1e-2, "the order matters here, so the test can tell"


def test_rda_detached_changes_no_number_and_leaves_the_teacher_without_a_gradient() -> None:
    student, teacher = logits(1), logits(2)
    detached, joint = (response_alignment(student, teacher, TARGETS, detach=flag)[0] for flag in (True, False))
    assert detached.item() == joint.item()
    of_student, of_teacher = torch.autograd.grad(detached, [student, teacher], allow_unused=True)
    assert of_teacher is None
    torch.testing.assert_close(of_student, torch.autograd.grad(joint, student)[0])


def test_crt_is_equations_5_and_6_token_by_token() -> None:
    positive, negative = logits(3).detach(), logits(4).detach()
    expected = 0.0
    for place in (0, 2, 3):
        margin = [float(a - b) for a, b in zip(positive[place], negative[place], strict=True)]
        exponentials = torch.tensor(margin, dtype=torch.float64).exp()
        expected -= float((exponentials[TARGETS[place]] / exponentials.sum()).log())
    found, count = contrastive_response(positive, negative, TARGETS)
    assert found.item() == pytest.approx(expected, abs=1e-12) and int(count) == 3


@pytest.mark.parametrize("pair", ["rda", "crt"])
def test_gradients_reach_both_sides_and_are_those_of_finite_differences(pair: str) -> None:
    def loss(first: Tensor, second: Tensor) -> Tensor:
        if pair == "rda":
            return response_alignment(first, second, TARGETS, detach=False)[0]
        return contrastive_response(first, second, TARGETS)[0]

    inputs = (logits(5), logits(6))
    assert torch.autograd.gradcheck(loss, inputs)
    assert all(bool((one != 0).any()) for one in torch.autograd.grad(loss(*inputs), inputs))


def test_the_margin_of_bf16_logits_is_not_rounded_to_bf16() -> None:
    positive, negative = torch.tensor([[20.0, 1.0, 3.0]]).bfloat16(), torch.tensor([[0.1, 0.7, -17.2]]).bfloat16()
    margin = positive.double() - negative.double()
    found, _ = contrastive_response(positive, negative, torch.tensor([2]))
    assert found.item() == pytest.approx(-margin.log_softmax(-1)[0, 2].item(), abs=1e-5)
    assert not torch.equal((positive - negative).double(), margin), "bf16 cannot hold it"


STEPS: dict[str, dict[str, Any]] = {
    "van and ep": {"exemplar": True, "negative": False, "alpha": 0.0},
    "stage 1": {"exemplar": True, "negative": False, "alpha": 0.7},
    "stage 2": {"exemplar": True, "negative": True, "alpha": 0.7, "beta": 1.3},
    "joint teacher": {"exemplar": True, "negative": True, "alpha": 0.7, "beta": 1.3, "detach": False},
    "crt alone": {"exemplar": False, "negative": True, "alpha": 0.0, "beta": 0.4},
}
HAS_NEGATIVE = torch.tensor([True, True, False, True, True, True, False, True])
ASKED = torch.tensor([3, 1, 0, 6, IGNORE_INDEX, 2, 5, 4])


def plain_form(states: Tensor, head: nn.Module, step: dict[str, Any]) -> Tensor:
    """Eq. 7 as it is written: each term makes its own logits, all at once."""
    rows = list(states)
    total = token_cross_entropy(head(rows[0]), ASKED)[0]
    if step["exemplar"]:
        total = total + token_cross_entropy(head(rows[1]), ASKED)[0]
    if step["exemplar"] and step["alpha"]:
        rda = response_alignment(head(rows[0]), head(rows[1]), ASKED, step.get("detach", True))[0]
        total = total + step["alpha"] * rda
    if step["negative"]:
        asked = ASKED.masked_fill(~HAS_NEGATIVE, IGNORE_INDEX)
        total = total + step["beta"] * contrastive_response(head(rows[0]), head(rows[-1]), asked)[0]
    return total


@pytest.mark.parametrize("chunk", [0, 1, 3, 100])
@pytest.mark.parametrize("name", STEPS)
def test_a_steps_losses_and_gradients_are_those_of_the_plain_form(name: str, chunk: int) -> None:
    step = STEPS[name]
    torch.manual_seed(3)
    head = nn.Linear(6, 7, dtype=torch.float64)
    passes = 1 + step["exemplar"] + step["negative"]
    states = torch.randn(passes, len(ASKED), 6, dtype=torch.float64, requires_grad=True)
    arguments = {key: step[key] for key in ("alpha", "beta", "detach") if key in step}
    found, sums = vitask_losses(
        states,
        ASKED,
        head,
        exemplar=step["exemplar"],
        contrasted=HAS_NEGATIVE if step["negative"] else None,
        chunk_tokens=chunk,
        **arguments,
    )
    expected = plain_form(states, head, step)
    assert found.item() == pytest.approx(expected.item(), abs=1e-12)
    inputs = [states, *head.parameters()]
    for ours, theirs in zip(*(torch.autograd.grad(3 * one, inputs) for one in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    weights = {"rda": step["alpha"], "crt": step.get("beta", 1.0)}
    assert sum(weights.get(term, 1.0) * value.item() for term, value in sums.items()) == pytest.approx(found.item())
    assert set(sums) == {"van"} | ({"ep"} if step["exemplar"] else set()) | ({"rda"} if step["alpha"] else set()) | (
        {"crt"} if step["negative"] else set()
    )


def test_token_weights_multiply_every_term_of_a_token() -> None:
    torch.manual_seed(3)
    head = nn.Linear(6, 7, dtype=torch.float64)
    states = torch.randn(3, len(ASKED), 6, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(len(ASKED), dtype=torch.float64) + 0.5
    options: dict[str, Any] = {"exemplar": True, "contrasted": HAS_NEGATIVE, "alpha": 0.7, "beta": 1.3}

    def one(place: int) -> Tensor:
        alone = ASKED.masked_fill(torch.arange(len(ASKED)) != place, IGNORE_INDEX)
        return vitask_losses(states, alone, head, **options)[0]

    found, sums = vitask_losses(states, ASKED, head, token_weights=weights, chunk_tokens=2, **options)
    expected = torch.stack([weight * one(place) for place, weight in enumerate(weights)]).sum()
    assert found.item() == pytest.approx(expected.item(), abs=1e-12)
    for ours, theirs in zip(*(torch.autograd.grad(x, [states, head.weight]) for x in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    factors = {"van": 1.0, "ep": 1.0, "rda": 0.7, "crt": 1.3}
    assert sum(factors[name] * value.item() for name, value in sums.items()) == pytest.approx(found.item())


def test_logits_are_made_once_and_of_one_chunk_at_a_time() -> None:
    sizes = []

    def head(state: Tensor) -> Tensor:
        sizes.append(len(state))
        return state.repeat(1, 2)

    states = torch.randn(3, 8, 4, dtype=torch.float64, requires_grad=True)
    asked = torch.arange(8)
    total, _ = vitask_losses(states, asked, head, exemplar=True, contrasted=HAS_NEGATIVE, chunk_tokens=2)
    total.backward()
    assert sizes == [6, 6, 6, 6]


def test_without_a_graph_there_are_numbers_only() -> None:
    states, head = torch.randn(2, 8, 4, dtype=torch.float64), nn.Linear(4, 7, dtype=torch.float64)
    with torch.no_grad():
        total, sums = vitask_losses(states, ASKED, head, exemplar=True, chunk_tokens=3)
    assert not total.requires_grad and total.item() > 0 and set(sums) == {"van", "ep", "rda"}


def test_nothing_supervised_gives_zeros_and_a_backward_pass() -> None:
    rows, targets = response_rows(torch.full((2, 4), IGNORE_INDEX))
    assert rows.tolist() == [0] and targets.tolist() == [IGNORE_INDEX]
    head = nn.Linear(4, 7)
    states = torch.randn(3, 1, 4, requires_grad=True)
    total, _ = vitask_losses(states, targets, head, exemplar=True, contrasted=torch.tensor([False]))
    total.backward()
    assert total.item() == 0.0 and not states.grad.any() and not head.weight.grad.any()


def test_response_rows_are_the_places_before_response_tokens() -> None:
    labels = torch.tensor([[IGNORE_INDEX, IGNORE_INDEX, 5, 6], [IGNORE_INDEX, 7, IGNORE_INDEX, IGNORE_INDEX]])
    rows, targets = response_rows(labels)
    assert rows.tolist() == [1, 2, 4] and targets.tolist() == [5, 6, 7]


def test_passes_of_different_responses_are_refused() -> None:
    same_response([torch.tensor([1, 2]), torch.tensor([1, 2])])
    with pytest.raises(ModelError, match="different response tokens"):
        same_response([torch.tensor([1, 2]), torch.tensor([1, 3])])
