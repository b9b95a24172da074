"""The engine: whatever enters or leaves, each answer is the one its request gets alone."""

import random
from dataclasses import replace

import pytest
import torch

from medtune.errors import ConfigError, DataError
from medtune.generation.engine.continuous import Engine, TokenEvent
from medtune.generation.engine.continuous_text import TextStream
from medtune.generation.engine.generator import Generator
from medtune.generation.engine.sampling import Sampling
from medtune.generation.prompt_extension import NoExtension
from medtune.generation.requests import Generation, Request


def alone(setup, request: Request, **options) -> Generation:
    (answer,) = Generator(setup.model, setup.transform, batch_size=1, share_prefix=False, **options)([request])
    return answer


def run(engine: Engine, schedule: dict[int, list[Request]]) -> dict[str, list[TokenEvent]]:
    """Submit requests before the steps named; returns every request's events."""
    events: dict[str, list[TokenEvent]] = {}
    step = 0
    while schedule or not engine.idle:
        for request in schedule.pop(step, ()):
            engine.submit(request)
        for event in engine.step():
            events.setdefault(event.id, []).append(event)
        step += 1
        assert step < 1000
    return events


def text(events: list[TokenEvent]) -> str:
    return "".join(event.text_delta for event in events)


def varied(setup, count: int = 13) -> list[Request]:
    """Greedy and drawn; bounds from 1 to 12; text alone, one image, several."""
    ways = [None, Sampling(temperature=1.5, seed=7), Sampling(top_p=0.8, seed=1), None]
    return [
        replace(request, continuations=(), sampling=ways[i % 4], max_new_tokens=1 + 5 * i % 12)
        for i, request in enumerate(setup.requests(count))
    ]


@pytest.mark.parametrize("seed", range(3))
def test_each_answer_equals_that_of_its_request_alone(setup, seed):
    rng = random.Random(seed)
    requests = varied(setup)
    setup.transform.stop_ids = [*setup.transform.stop_ids, *range(5, 250, 8)]  # some answers end by themselves
    expected = {request.id: alone(setup, request) for request in requests}
    schedule: dict[int, list[Request]] = {}
    for request in rng.sample(requests, len(requests)):
        schedule.setdefault(rng.randrange(12), []).append(request)
    with Engine(setup.model, setup.transform, slots=rng.choice([2, 3, 5])) as engine:
        found = run(engine, schedule)
    assert found.keys() == expected.keys()
    for name, answer in expected.items():
        *before, last = found[name]
        assert text(found[name]) == answer.text
        assert sum(event.token is not None for event in found[name]) == answer.tokens
        assert (last.finished, last.reason) == (True, "stop" if answer.stopped else "length")
        assert not any(event.finished for event in before)
    assert {answer.stopped for answer in expected.values()} == {True, False}
    assert not setup.model.caches_are_setup()


def test_questions_on_one_image_are_taken_in_together(setup, monkeypatch):
    monkeypatch.setattr("medtune.generation.engine.prefixes.WORTH", 3.0)
    requests = [setup.request(f"q{i}", f"what is {'cell ' * i}", "wide-2") for i in range(6)]
    requests.append(setup.request("other", "size", "large-1", "square-2"))
    expected = {request.id: alone(setup, request, max_new_tokens=5).text for request in requests}
    read = []
    for share in (True, False):
        with Engine(setup.model, setup.transform, slots=7, max_new_tokens=5, share_prefix=share) as engine:
            for request in requests:
                engine.submit(request)
            for waiting in engine._waiting:
                waiting.prompt.result()
            found = run(engine, {})
            assert {name: text(events) for name, events in found.items()} == expected
            assert engine.features.encoded == 3
            assert len(engine.features) == 0
            read.append(engine.tokens_read)
    assert read[0] < read[1]
    assert setup.source.opened.count("wide-2") == 6 + 2, "once by each engine, and alone before"


def test_a_cancelled_request_leaves_the_others_alone(setup):
    setup.transform.stop_ids = []
    requests = [replace(r, continuations=(), max_new_tokens=8) for r in setup.requests(6)]
    expected = {request.id: alone(setup, request).text for request in requests}
    with Engine(setup.model, setup.transform, slots=3) as engine:
        for request in requests:
            engine.submit(request)
        events = [engine.step() for _ in range(3)]
        assert engine.cancel("q0")
        assert engine.cancel("q5")
        assert not engine.cancel("unknown")
        later = engine.step()
        found = run(engine, {})
        assert not engine.cancel("q1")
    ended = {event.id: event for event in later if event.reason == "cancelled"}
    assert ended.keys() == {"q0", "q5"}
    assert all(event.finished and event.token is None for event in ended.values())
    everything = [event for step in [*events, later, *found.values()] for event in step]
    for name in ("q1", "q2", "q3", "q4"):
        assert text([event for event in everything if event.id == name]) == expected[name]
    said = text([event for event in everything if event.id == "q0"])
    assert expected["q0"].startswith(said)
    assert sum(event.id == "q0" and event.token is not None for event in everything) < 8


def test_a_request_that_cannot_be_used_is_told_and_the_others_go_on(setup):
    good = setup.request("good", "cell", "square-1", max_new_tokens=4)
    long = setup.request("long", "cell " * 300, "square-1")
    with Engine(setup.model, setup.transform, slots=2) as engine:
        found = run(engine, {0: [setup.request("bad", "cell", "broken-1"), good], 1: [long]})
    assert text(found["good"]) == alone(setup, good).text
    for name, reason in (("bad", "broken-1 is not an image"), ("long", "128")):
        (event,) = found[name]
        assert (event.finished, event.reason, event.token) == (True, "error", None)
        assert isinstance(event.error, DataError)
        assert reason in str(event.error)


def test_a_prompt_that_the_model_refuses_fails_alone(setup):
    class Refusing(NoExtension):
        def extend(self, batch):
            if any(request.id == "bad" for request in batch.requests):
                raise DataError("request 'bad' has no exemplar")
            return batch

    requests = [setup.request(name, "cell", "square-1", max_new_tokens=3) for name in ("a", "bad", "b")]
    with Engine(setup.model, setup.transform, slots=3, extension=Refusing()) as engine:
        found = run(engine, {0: requests})
    assert {name: events[-1].reason for name, events in found.items() if events[-1].reason == "error"} == {
        "bad": "error"
    }
    for request in (requests[0], requests[2]):
        assert text(found[request.id]) == alone(setup, request).text


def test_any_other_fault_of_an_image_is_that_request_s_own(setup):
    class Odd(type(setup.source)):
        def open_images(self, sample):
            raise ValueError("a patient's name")

    bad = replace(setup.request("bad", "cell", "square-1"), source=Odd())
    with Engine(setup.model, setup.transform) as engine:
        (event,) = run(engine, {0: [bad]})["bad"]
    assert "'bad' could not be prepared (ValueError)" in str(event.error)
    assert "patient" not in str(event.error)


def test_nothing_to_say_is_said_at_once(setup):
    item = setup.transform(setup.request("a", "cell").sample, [], inference=True)
    full = len(item["tokens"])
    with Engine(setup.model, setup.transform) as engine:
        (event,) = run(engine, {0: [setup.request("none", "cell", max_new_tokens=0)]})["none"]
        assert (event.token, event.finished, event.reason) == (None, True, "length")
        setup.transform.max_seq_len = full
        (event,) = run(engine, {0: [setup.request("full", "cell")]})["full"]
        assert event.reason == "length"
        setup.transform.max_seq_len, setup.transform.stop_ids = full + 3, []
        assert [e.token is not None for e in run(engine, {0: [setup.request("a", "cell")]})["a"]] == [True] * 3


def test_an_extension_sees_the_rows_of_every_forward_pass(setup):
    class Watching(NoExtension):
        def __init__(self):
            self.rows, self.read = [], 0

        def before_forward(self, requests):
            self.rows.append([request.id for request in requests])

    watching, rows = Watching(), []
    hidden = setup.model.hidden

    def counted(tokens, *args, **kwargs):
        rows.append(len(tokens))
        return hidden(tokens, *args, **kwargs)

    requests = varied(setup, 8)
    setup.model.hidden = counted
    try:
        with Engine(setup.model, setup.transform, slots=3, extension=watching) as engine:
            run(engine, {0: requests[:5], 4: requests[5:]})
    finally:
        del setup.model.hidden
    assert [len(ids) for ids in watching.rows] == rows
    assert {name for ids in watching.rows for name in ids} == {request.id for request in requests}


def test_the_hook_names_rows_in_the_order_of_the_pass(setup):
    """An extension that changes what a named row says changes that request's answer and no other."""
    setup.transform.stop_ids = []

    class Adapter(NoExtension):
        def before_forward(self, requests):
            setup.shift = torch.tensor([float(request.id.startswith("x")) for request in requests])

    requests = [
        setup.request(f"{'x' if i % 2 else 'y'}{i}", "cell " * (1 + i % 3), max_new_tokens=2 + i % 5) for i in range(7)
    ]
    expected = {request.id: alone(setup, request).text for request in requests}
    logits = setup.model.logits
    word = setup.transform.encode("cell")[0]
    favour = torch.nn.functional.one_hot(torch.tensor(word), logits(setup.model.hidden(torch.tensor([[1]]))).shape[-1])
    setup.model.logits = lambda hidden: logits(hidden) + 1e6 * setup.shift[:, None] * favour
    try:
        with Engine(setup.model, setup.transform, slots=3, extension=Adapter()) as engine:
            found = run(engine, {0: requests[:4], 3: requests[4:]})
    finally:
        del setup.model.logits
    for request in requests:
        if request.id.startswith("x"):
            assert [event.token for event in found[request.id]] == [word] * request.max_new_tokens
        else:
            assert text(found[request.id]) == expected[request.id]


def test_requests_of_another_group_wait(setup):
    class Groups(NoExtension):
        def group_key(self, request):
            return request.id[0]

        def before_forward(self, requests):
            assert len({request.id[0] for request in requests}) == 1

    requests = [setup.request(name, "cell", max_new_tokens=3) for name in ("a1", "a2", "b1", "a3")]
    with Engine(setup.model, setup.transform, slots=4, extension=Groups()) as engine:
        found = run(engine, {0: requests})
    for request in requests:
        assert text(found[request.id]) == alone(setup, request).text


def test_an_id_in_use_and_likelihoods_are_refused(setup):
    with Engine(setup.model, setup.transform) as engine:
        engine.submit(setup.request("a", "cell", max_new_tokens=2))
        with pytest.raises(DataError, match="'a' is being answered already"):
            engine.submit(setup.request("a", "cell"))
        with pytest.raises(DataError, match="'b' wants continuations scored"):
            engine.submit(setup.request("b", "cell", continuations=("big",)))
        run(engine, {})
        engine.submit(setup.request("a", "cell", max_new_tokens=2))
        assert run(engine, {}).keys() == {"a"}
        assert engine.step() == []


def test_the_model_is_left_as_it_was_found(setup):
    setup.model.train()
    try:
        engine = Engine(setup.model, setup.transform, max_new_tokens=9)
        engine.submit(setup.request("a", "cell"))
        engine.step()
        assert setup.model.caches_are_setup()
        assert not setup.model.training
        engine.close()
        assert not setup.model.caches_are_setup()
        assert setup.model.training
        assert engine.idle
    finally:
        setup.model.eval()


@pytest.mark.parametrize("options", [{"slots": 0}, {"max_new_tokens": 0}])
def test_impossible_sizes_are_refused(setup, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        Engine(setup.model, setup.transform, **options)


def test_pieces_of_text_add_up_to_the_whole(setup):
    sentence = "A cell: größer, 細胞 🔬, done."
    tokens = setup.transform.encode(sentence)
    stream = TextStream(setup.transform.decode)
    pieces = [stream.add(token) for token in tokens]
    assert "".join(pieces) == setup.transform.decode(tokens)
    assert not any("\ufffd" in piece for piece in pieces)
    assert "" in pieces, "a character of several tokens is held back"
    assert stream.end() == ""


def test_an_incomplete_character_is_given_out_at_the_end(setup):
    tokens = setup.transform.encode("a 🔬")[:-1]
    stream = TextStream(setup.transform.decode)
    assert "".join(stream.add(token) for token in tokens) + stream.end() == setup.transform.decode(tokens)
    assert setup.transform.decode(tokens).endswith("\ufffd")


def test_random_tokens_add_up_too(setup):
    rng = random.Random(0)
    for _ in range(30):
        tokens = [rng.randrange(280) for _ in range(rng.randrange(1, 25))]
        stream = TextStream(setup.transform.decode)
        assert "".join(map(stream.add, tokens)) + stream.end() == setup.transform.decode(tokens)
