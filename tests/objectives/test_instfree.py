"""InstFree: Algorithm 1 in closed form, the prompt, the stages."""

import pickle
import random
from types import SimpleNamespace

import pytest
import torch

from medtune.data.sample import Message, Sample
from medtune.errors import DataError
from medtune.modules.proxy_instruction import ProxyInstruction, placeholder_mask
from medtune.objectives.base import Stage
from medtune.objectives.instfree import InstFree, ReportPrompt, random_instructions

TRANSFORM = SimpleNamespace(placeholder_text="①", placeholder_id=7)
MODEL = SimpleNamespace(embed_dim=3)
TUNE = Stage("tune", ("vision", "proxy"))


def bound(mode: str = "momentum", alpha: float = 0.9, stage: str = "tune") -> InstFree:
    objective = InstFree(mode=mode, vectors=2, alpha=alpha)
    objective.bind(MODEL, TRANSFORM, seed=3)
    objective.begin_stage(Stage(stage, ("proxy",)))
    return objective


def sgd_run(objective: InstFree, rate: float, steps: int = 5) -> torch.Tensor:
    """Gradient descent on sum(w^3)/3, whose gradient w^2 depends on where it is taken."""
    optimizer = torch.optim.SGD(objective.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        (objective.proxy.weight**3).sum().div(3).backward()
        optimizer.step()
        objective.after_step()
    return objective.proxy.weight.detach().clone()


def test_the_proxys_start_is_the_runs_seed_and_nothing_elses() -> None:
    starts = []
    for seed, disturbance in ((1, 5), (1, 6), (2, 5)):
        torch.manual_seed(disturbance)
        objective = InstFree(vectors=2)
        objective.bind(MODEL, TRANSFORM, seed)
        starts.append(objective.proxy.weight.detach())
        assert torch.equal(objective.average, starts[-1]) and torch.equal(objective.last_t, starts[-1])
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])


def test_momentum_follows_algorithm_1_line_by_line() -> None:
    objective, alpha, rate = bound(alpha=0.8), 0.8, 0.5
    t = objective.proxy.weight.detach().double().clone()
    average = t.clone()
    for _ in range(5):
        average = alpha * average + (1 - alpha) * t  # line 10
        t = average - rate * average**2  # line 13
    expected = alpha * average + (1 - alpha) * t  # line 10 of the step to come
    torch.testing.assert_close(sgd_run(objective, rate).double(), expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(objective.last_t.double(), t, rtol=0, atol=1e-7)


def test_momentum_with_sgd_is_a_proxy_trained_at_a_smaller_rate() -> None:
    momentum = sgd_run(bound("momentum", alpha=0.9), rate=0.5)
    update = sgd_run(bound("update"), rate=0.5 * (1 - 0.9))
    torch.testing.assert_close(momentum, update, rtol=0, atol=1e-7)


def test_alpha_0_is_update_and_alpha_1_is_fixed_to_the_bit() -> None:
    start = bound().proxy.weight.detach().clone()
    assert torch.equal(sgd_run(bound("momentum", alpha=0.0), 0.5), sgd_run(bound("update"), 0.5))
    assert torch.equal(sgd_run(bound("momentum", alpha=1.0), 0.5), start)


def test_warmup_does_not_average() -> None:
    assert torch.equal(sgd_run(bound("momentum", alpha=0.5, stage="warmup"), 0.5), sgd_run(bound("update"), 0.5))


def test_the_average_begins_where_the_warmup_ended() -> None:
    """Algorithm 1, line 8: with alpha 1 the proxy stays as warmed up, not as it was drawn."""
    objective = bound("momentum", alpha=1.0, stage="warmup")
    start = objective.proxy.weight.detach().clone()
    warm = sgd_run(objective, 0.5, steps=3)
    objective.begin_stage(TUNE)
    assert torch.equal(sgd_run(objective, 0.5, steps=2), warm) and not torch.equal(warm, start)


def test_state_survives_a_reload_between_steps() -> None:
    straight = bound(alpha=0.7)
    sgd_run(straight, 0.5, steps=5)
    first, second = bound(alpha=0.7), bound(alpha=0.7)
    sgd_run(first, 0.5, steps=2)
    second.load_state_dict(first.state_dict())
    second.begin_stage(TUNE)
    sgd_run(second, 0.5, steps=3)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_stages_train_the_proxy_alone_first_and_fixed_never_again() -> None:
    parts = ("vision", "projection")
    warmup, tune = InstFree(warmup_epochs=2, warmup_learning_rate=0.1).stages(parts, 5, None)
    assert (warmup.trainable, warmup.epochs, warmup.learning_rates) == (("proxy",), 2, {"proxy": 0.1})
    assert tune.trainable == (*parts, "proxy") and tune.epochs == 5
    short = InstFree(warmup_steps=7).stages(parts, 5, 40)
    assert [(stage.steps, stage.learning_rates) for stage in short] == [(7, {}), (40, {})]
    assert InstFree(mode="fixed").stages(parts, 5, None)[1].trainable == parts
    assert [s.name for s in InstFree(mode="text").stages(parts, 5, None)] == ["tune"]
    assert [s.name for s in InstFree(warmup_steps=0).stages(parts, 5, None)] == ["tune"]


def test_prompt_puts_placeholders_in_the_user_turn_and_shuffles_the_response() -> None:
    objective = InstFree(vectors=3, shuffle_separator=",")
    objective.bind(MODEL, TRANSFORM, 0)
    sample = Sample("a", ("x.png",), (Message("assistant", "one, two, three, four"),), {})
    shown = objective.sample_transform()(sample, random.Random(1))
    assert [m.role for m in shown.messages] == ["user", "assistant"]
    assert shown.messages[0].content == "①①①" and shown.images == sample.images
    assert sorted(shown.messages[1].content.split(", ")) == sorted(["one", "two", "three", "four"])
    assert shown.messages[1].content != "one, two, three, four"
    assert shown == objective.sample_transform()(sample, random.Random(1))


USER, ANSWER = Message("user", "Is it big?"), Message("assistant", "Secret.")


@pytest.mark.parametrize(
    "messages", [(ANSWER, USER), (USER, ANSWER, USER), (USER, ANSWER, USER, ANSWER), (ANSWER, ANSWER), (USER,)]
)
def test_a_conversation_is_no_report_and_is_refused_by_the_samples_id(messages: tuple[Message, ...]) -> None:
    with pytest.raises(DataError, match="sample s7: InstFree trains on image-report pairs") as caught:
        ReportPrompt(("Describe.",))(Sample("s7", (), messages), random.Random(0))
    assert "Secret" not in str(caught.value) and "big" not in str(caught.value)


def test_a_written_instruction_is_replaced() -> None:
    told = ReportPrompt(("Describe.",))(Sample("s7", (), (USER, ANSWER)), random.Random(0))
    assert told.messages == (Message("user", "Describe."), ANSWER)


def test_the_system_message_of_a_report_is_kept_and_so_is_its_weight() -> None:
    system = Message("system", "You read X-rays.")
    told = ReportPrompt(("Describe.",))(Sample("s7", (), (system, ANSWER), {}, 2.0), random.Random(0))
    assert told.messages == (system, Message("user", "Describe."), ANSWER) and told.weight == 2.0


def shown(unit: str, report: str, meta: dict, seed: int) -> str:
    objective = InstFree(mode="text", shuffle_unit=unit)
    prompt = pickle.loads(pickle.dumps(objective.sample_transform()))
    return prompt(Sample("s7", (), (Message("assistant", report),), meta), random.Random(seed)).messages[-1].content


def test_responses_are_shuffled_by_sentence_or_by_section() -> None:
    sections = ["Heart of 3.5 cm. No effusion.", "Stable."]
    report = " ".join(sections)
    by_sentence = {shown("sentence", report, {}, seed) for seed in range(60)}
    assert len(by_sentence) == 6 and all("3.5 cm. " in f"{text} " for text in by_sentence)
    by_section = {shown("section", report, {"sections": sections}, seed) for seed in range(30)}
    assert by_section == {report, " ".join(sections[::-1])}
    assert {shown("separator", report, {"sections": sections}, seed) for seed in range(5)} == {report}


@pytest.mark.parametrize("meta", [{}, {"sections": "one text"}, {"sections": [1]}, {"sections": ["Secret.", "Else."]}])
def test_sections_that_are_not_the_report_are_refused_by_the_samples_id(meta: dict) -> None:
    with pytest.raises(DataError, match=r"sample s7: .*meta\.sections") as caught:
        shown("section", "Secret. Stable.", meta, 0)
    assert "Secret" not in str(caught.value)


def test_random_text_draws_from_58_different_instructions() -> None:
    assert len(set(random_instructions())) == len(random_instructions()) == 58
    prompt = ReportPrompt(random_instructions())
    sample = Sample("a", (), (Message("assistant", "one"),), {})
    assert len({prompt(sample, random.Random(i)).messages[0].content for i in range(50)}) > 20


@pytest.mark.parametrize(
    "arguments",
    [
        {"mode": "momentun"},
        {"alpha": 1.5},
        {"alpha": -0.1},
        {"vectors": 0},
        {"warmup_steps": -1},
        {"shuffle_separator": ""},
        {"shuffle_unit": "word"},
        {"shuffle_unit": "sentence", "shuffle_separator": "."},
        {"shuffle_unit": "section", "shuffle_separator": ","},
    ],
)
def test_impossible_values_are_refused(arguments: dict) -> None:
    with pytest.raises(ValueError):
        InstFree(**arguments)


@pytest.mark.parametrize(
    "arguments", [{"vectors": 1}, {"sigma": 0.0}, {"alpha": 0.0}, {"alpha": 1.0}, {"warmup_steps": 0}]
)
def test_values_at_their_bounds_are_taken(arguments: dict) -> None:
    method = InstFree(**arguments)
    assert {name: getattr(method, name) for name in arguments} == arguments


def test_the_proxy_is_fp32_and_its_start_has_the_given_spread() -> None:
    proxy = ProxyInstruction(64, 512, sigma=0.02, seed=1)
    assert proxy.weight.dtype == torch.float32
    assert proxy.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert torch.equal(proxy.weight, ProxyInstruction(64, 512, sigma=0.02, seed=1).weight)


def test_placeholders_in_a_report_stay_text_and_missing_ones_are_an_error() -> None:
    tokens = torch.tensor([[1, 7, 7, 2, 7], [7, 7, 7, 3, 3]])
    assert placeholder_mask(tokens, 7, 2).tolist() == [
        [False, True, True, False, False],
        [True, True, False, False, False],
    ]
    with pytest.raises(ValueError, match="fewer than 3"):
        placeholder_mask(torch.tensor([[7, 1, 7]]), 7, 3)
