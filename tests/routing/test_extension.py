"""No request is answered by another's adapter: mixed batches in any order beside each adapter alone."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medtune.data.sample import Message, Sample
from medtune.datasets.task_questions.rows import from_source
from medtune.errors import DataError, MedtuneError, ModelError
from medtune.generation.engine.answers import EngineAnswers
from medtune.generation.engine.continuous import Engine
from medtune.generation.engine.generator import Generator
from medtune.generation.requests import Generation, Request
from medtune.models.lora.bank import AdapterBank
from medtune.models.task_router.transform import question_of as trained_question
from medtune.routing.evaluation import asked_of
from medtune.routing.extension import RoutedAdapters, adapter_of, question_of, with_adapter, with_route
from medtune.routing.routes import Route
from tests.routing.families import KINDS, TOKENS, Case

NATS = 2e-4  # of a score; measured 2e-5 (fp32)


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind[0]}-{'nf4' if kind[1] else 'fp32'}")
def case(request: Any, cases: Any) -> Case:
    return cases(*request.param)


@contextmanager
def routed(case: Case) -> Iterator[RoutedAdapters]:
    bank = AdapterBank(case.base, case.adapters)
    try:
        yield RoutedAdapters(bank)
    finally:
        bank.close()


def check(case: Case, asked: list[Request], found: list[Generation]) -> None:
    """Each answer is that of the adapter alone, and says which it was."""
    answers = {answer.id: answer for answer in found}
    assert answers.keys() == {request.id for request in asked}
    for request in asked:
        answer, alone = answers[request.id], case.expected[adapter_of(request)][request.id]
        assert (answer.text, answer.tokens, answer.stopped) == (alone.text, alone.tokens, alone.stopped)
        assert answer.scores == pytest.approx(alone.scores, abs=NATS)
        assert answer.notes == request.notes


def test_the_adapters_of_a_case_answer_differently(case: Case) -> None:
    """Otherwise any adapter would do for any row."""
    for one, other in itertools.combinations(case.expected.values(), 2):
        assert sum(one[name].text != other[name].text for name in one) >= 6


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mixed_batches_in_any_order_answer_as_each_adapter_alone(case: Case, data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from([None, *case.adapters]), min_size=9, max_size=9))
    asked = data.draw(st.permutations([with_adapter(r, name) for r, name in zip(case.requests, names, strict=True)]))
    batch_size, share = data.draw(st.integers(1, 9)), data.draw(st.booleans())
    with routed(case) as extension:
        generator = Generator(
            case.base, case.setup.transform, batch_size=batch_size, max_new_tokens=TOKENS, extension=extension,
            share_prefix=share,
        )  # fmt: skip
        check(case, asked, list(generator(asked)))


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_requests_that_come_and_go_between_steps_keep_their_adapter(case: Case, data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from([None, *case.adapters]), min_size=9, max_size=9))
    plain = [replace(request, continuations=()) for request in case.requests]
    asked = data.draw(st.permutations([with_adapter(r, name) for r, name in zip(plain, names, strict=True)]))
    slots = data.draw(st.integers(2, 4))
    with (
        routed(case) as extension,
        Engine(case.base, case.setup.transform, slots=slots, max_new_tokens=TOKENS, extension=extension) as engine,
    ):
        found = [answer for batch in EngineAnswers(engine).batches(asked) for answer in batch]
    scored = {answer.id: case.expected[None][answer.id] for answer in found}
    assert scored.keys() == {request.id for request in asked}
    for request, answer in ((r, a) for r in asked for a in found if r.id == a.id):
        alone = case.expected[adapter_of(request)][request.id]
        assert (answer.text, answer.tokens, answer.notes) == (alone.text, alone.tokens, request.notes)


def test_questions_on_one_image_share_a_prefix_only_under_one_adapter(cases: Any) -> None:
    """The packed decoder keeps a prefix once for its rows; under two adapters its keys and values differ."""
    case = cases("internvl_qwen2")
    shown = [case.setup.request(f"s{i}", f"what {'cell ' * (i % 3)}", "large-2", max_new_tokens=5) for i in range(8)]
    read = {}
    for kind, names in {"one": ["all"] * 8, "two": ["all", "counting"] * 4, "each": [None, *case.adapters] * 2}.items():
        asked = [with_adapter(request, name) for request, name in zip(shown, names, strict=True)]
        with routed(case) as extension:
            generator = Generator(case.base, case.setup.transform, batch_size=8, extension=extension)
            answers = {answer.id: answer.text for answer in generator(asked)}
            read[kind] = generator.tokens_read
        for request in asked:
            alone = Generator(case.alone(adapter_of(request)), case.setup.transform, batch_size=1)
            assert [answer.text for answer in alone([request])] == [answers[request.id]]
    assert read["one"] < read["two"] < read["each"]


@pytest.mark.parametrize("name", ["llama3_2_vision", "internvl_qwen2", "llava"])
def test_adapters_in_the_image_encoder_have_features_of_their_own(cases: Any, name: str) -> None:
    case = cases(name, where="encoder.")
    asked = [with_adapter(r, [None, *case.adapters][i % 4]) for i, r in enumerate([*case.requests, *_again(case)])]
    with routed(case) as extension:
        generator = Generator(case.base, case.setup.transform, batch_size=5, extension=extension)
        found = list(generator(asked))
    first = [request for request in asked if "again" not in request.id]
    check(case, first, [answer for answer in found if "again" not in answer.id])
    for answer, request in ((a, r) for a in found for r in asked if a.id == r.id and "again" in r.id):
        assert answer.text == case.expected[adapter_of(request)][request.id.removesuffix("again")].text


def _again(case: Case) -> list[Request]:
    """The same questions, each for the next adapter."""
    again = [replace(request, id=f"{request.id}again") for request in case.requests]
    return [*again[1:], again[0]]


def test_a_request_without_an_adapter_is_refused_and_named(cases: Any) -> None:
    case, refused = cases("llava"), []
    good = with_adapter(case.requests[0], "all")
    bad = [case.requests[1], with_adapter(case.requests[2], "countin")]
    with routed(case) as extension:
        generator = Generator(
            case.base, case.setup.transform, extension=extension, on_error=lambda r, error: refused.append(str(error))
        )
        check(case, [good], list(generator([*bad, good])))
        with Engine(case.base, case.setup.transform, extension=extension) as engine:
            engine.submit(bad[1])
            (event,) = engine.step()
    assert sorted(refused) == [
        "request 'q1' names no adapter; name one, 'base' for the model without an adapter",
        "request 'q2': there is no adapter 'countin'; did you mean 'counting'?",
    ]
    assert isinstance(event.error, DataError) and event.finished


def test_a_route_shorter_than_its_batch_is_refused(cases: Any) -> None:
    class Forgetful(RoutedAdapters):
        def before_forward(self, requests: Any) -> None:
            super().before_forward(requests[:-1] or requests)

    case = cases("llava")
    asked = [with_adapter(request, "all") for request in case.requests[:3]]
    with routed(case) as extension, pytest.raises(ModelError, match=r"a pass of 3 rows under a route of 2"):
        generator = Generator(case.base, case.setup.transform, extension=Forgetful(extension.bank))
        list(generator(asked))


class Rows(list[Sample]):
    """A data set with a name."""

    name = "rows"


def test_the_last_question_is_routed_trained_on_and_evaluated() -> None:
    turns = (("user", "<image> Where is it?"), ("assistant", "Here."), ("user", "<image>How big <image>is it?"))
    sample = Sample("s", (), tuple(Message(role, text) for role, text in turns), {"task": "regression"})
    expected = "How big  is it?"
    assert question_of(Request("r", sample, None)) == expected
    assert trained_question(sample) == expected
    assert asked_of([Rows([sample])], ["regression"]).texts == (expected,)
    assert [pair.text for pair in from_source(Rows([sample]), ["regression"])] == [expected]
    empty = Sample("s", (), (*sample.messages, Message("user", "<image> ")), {"task": "regression"})
    with pytest.raises(DataError, match="its question is empty"):
        question_of(Request("r", empty, None))
    with pytest.raises(DataError, match="it has no question"):
        trained_question(empty)


def test_notes_hold_route_score_and_adapter(cases: Any) -> None:
    request = replace(cases("llava").requests[0], notes={"kept": 1})
    assert with_route(request, Route("counting", 0.25, None)).notes == {
        "kept": 1, "route": "counting", "score": 0.25, "adapter": "base",
    }  # fmt: skip
    assert with_adapter(request, "all", "counting").notes == {
        "kept": 1, "route": "counting", "score": None, "adapter": "all",
    }  # fmt: skip
    assert adapter_of(with_route(request, Route("counting", 0.25, None))) is None
    with pytest.raises(MedtuneError, match="names no adapter"):
        adapter_of(request)


@torch.inference_mode()
def test_a_route_stays_until_the_next_one_and_costs_nothing_if_unchanged(cases: Any) -> None:
    case = cases("llava")
    bank = AdapterBank(case.base, case.adapters)
    tokens = torch.arange(10).view(2, 5)
    bank.set_route(["all", None])
    first, kept = case.base.hidden(tokens), bank._route
    bank.set_route([2, -1])
    assert bank._route is kept and torch.equal(case.base.hidden(tokens), first)
    bank.set_route([None, "all"])
    assert torch.equal(case.base.hidden(tokens.flip(0)), first.flip(0)) and bank._route is not kept
    with bank.route(["counting"]):
        case.base.hidden(tokens[:1])
    assert torch.equal(case.base.hidden(tokens.flip(0)), first.flip(0))
    with pytest.raises(ModelError, match="no adapter 'none'"):
        bank.set_route(["none"])
    bank.close()
    assert bank._route is None
