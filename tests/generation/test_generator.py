"""Batched answers equal one-by-one answers and answers without a cache; images are encoded once."""

import copy
from dataclasses import replace

import pytest
import torch

from medtune.errors import ConfigError, DataError
from medtune.generation.engine.batches import Plan
from medtune.generation.engine.generator import Generator
from medtune.generation.engine.prompts import PromptMaker
from medtune.generation.engine.sampling import Sampling
from medtune.generation.prompt_extension import NoExtension
from medtune.generation.requests import Generation, Request


def answers(setup, requests: list[Request], batch_size: int, **options) -> dict[str, Generation]:
    generator = Generator(setup.model, setup.transform, batch_size=batch_size, **{"max_new_tokens": 10, **options})
    return {answer.id: answer for answer in generator(requests)}


def plain_answer(setup, request: Request, bound: int) -> str:
    tokens: list[int] = []
    while len(tokens) < bound:
        token = int(setup.plain_logits(request, tokens)[-1].argmax())
        if token in setup.transform.stop_ids:
            break
        tokens.append(token)
    return setup.transform.decode(tokens)


def plain_score(setup, request: Request, text: str) -> float:
    tokens = setup.transform.encode(text)
    log_probs = setup.plain_logits(request, tokens).log_softmax(dim=-1)[-len(tokens) - 1 : -1]
    return float(log_probs.gather(1, torch.tensor(tokens)[:, None]).double().sum())


def test_batched_answers_equal_one_by_one_and_uncached_answers(setup):
    requests = setup.requests()
    batched = answers(setup, requests, 4, window=2)
    assert batched.keys() == {request.id for request in requests}
    assert len({answer.text for answer in batched.values()}) > len(requests) // 2, "the model answers all alike"
    single = answers(setup, requests, 1)
    for request in requests:
        assert batched[request.id].text == single[request.id].text == plain_answer(setup, request, 10)


def test_scores_equal_a_forward_for_each_continuation(setup):
    requests = setup.requests()
    batched, single = answers(setup, requests, 4), answers(setup, requests, 1)
    for request in requests:
        expected = [plain_score(setup, request, text) for text in request.continuations]
        # Measured: 4e-6 on scores down to -80.
        assert batched[request.id].scores == pytest.approx(expected, abs=1e-5, rel=1e-6)
        assert single[request.id].scores == pytest.approx(expected, abs=1e-5, rel=1e-6)
        assert list(batched[request.id].score_tokens) == [
            len(setup.transform.encode(text)) for text in request.continuations
        ]


def test_continuations_that_do_not_fit_one_row_are_scored_in_several(setup):
    request = setup.request("long", "cell " * 20, "square-1", continuations=("big " * 12, "small " * 12, "color " * 12))
    length = setup.transform.token_count(request.sample)
    setup.transform.max_seq_len = length + 40
    assert sum(len(setup.transform.encode(text)) for text in request.continuations) > 40
    expected = [plain_score(setup, request, text) for text in request.continuations]
    assert answers(setup, [request], 2)["long"].scores == pytest.approx(expected, abs=1e-5, rel=1e-6)


def test_a_request_may_ask_for_scores_alone(setup, monkeypatch):
    monkeypatch.setattr(setup.model, "setup_caches", lambda *args, **kwargs: pytest.fail("nothing is generated"))
    request = setup.request("s", "cell", "square-1", continuations=("big",), max_new_tokens=0)
    answer = answers(setup, [request], 2)["s"]
    assert (answer.text, answer.tokens, answer.stopped) == ("", 0, False)
    assert answer.scores == pytest.approx([plain_score(setup, request, "big")], abs=1e-5)


def test_a_stop_token_ends_its_own_row_only(setup):
    requests = setup.requests()
    setup.transform.stop_ids = []
    free = answers(setup, requests, 4)
    tokens = {r.id: _tokens(setup, r, 10) for r in requests}
    stop = tokens["q1"][4]
    setup.transform.stop_ids = [stop]
    stopped = answers(setup, requests, 4)
    assert 0 < sum(answer.stopped for answer in stopped.values()) < len(requests)
    for name, whole in tokens.items():
        end = whole.index(stop) if stop in whole else len(whole)
        assert stopped[name].text == setup.transform.decode(whole[:end])
        assert (stopped[name].tokens, stopped[name].stopped) == (end, stop in whole)
        assert free[name].tokens == 10


def _tokens(setup, request: Request, bound: int) -> list[int]:
    tokens: list[int] = []
    while len(tokens) < bound:
        tokens.append(int(setup.plain_logits(request, tokens)[-1].argmax()))
    return tokens


def test_every_request_keeps_its_own_bound(setup):
    setup.transform.stop_ids = []
    requests = [
        setup.request("default", "cell", "square-1"),
        setup.request("short", "cell size", "wide-2", max_new_tokens=3),
        setup.request("long", "what", max_new_tokens=14),
    ]
    found = answers(setup, requests, 3, max_new_tokens=6)
    assert {name: answer.tokens for name, answer in found.items()} == {"default": 6, "short": 3, "long": 14}
    for request in requests:
        assert found[request.id].text == plain_answer(setup, request, found[request.id].tokens)


def test_no_row_grows_beyond_the_longest_sequence(setup):
    setup.transform.stop_ids = []
    request = setup.request("a", "cell", "square-1")
    item = setup.transform(request.sample, setup.source.open_images(request.sample), inference=True)
    setup.transform.max_seq_len = len(item["tokens"]) + 7
    assert answers(setup, [request], 2, max_new_tokens=50)["a"].tokens == 7


@pytest.mark.parametrize("share", [True, False])
def test_each_answer_has_the_room_that_its_own_prompt_leaves(setup, monkeypatch, share):
    monkeypatch.setattr("medtune.generation.engine.prefixes.WORTH", 3.0)
    setup.transform.stop_ids = []
    requests = [setup.request("short", "cell", "square-1"), setup.request("long", "cell " * 20, "square-1")]
    item = setup.transform(requests[1].sample, setup.source.open_images(requests[1].sample), inference=True)
    setup.transform.max_seq_len = len(item["tokens"]) + 5
    found = answers(setup, requests, 2, max_new_tokens=12, share_prefix=share)
    assert (found["short"].tokens, found["long"].tokens) == (12, 5)
    for request in requests:
        assert found[request.id].text == plain_answer(setup, request, found[request.id].tokens)


@pytest.mark.parametrize("share", [True, False])
def test_an_answer_that_ends_at_the_last_position_of_the_model_holds_up_no_other(setup, monkeypatch, share):
    """The batch goes on after it; its row is read further, and the model has no further position."""
    monkeypatch.setattr("medtune.generation.engine.prefixes.WORTH", 3.0)
    setup.transform.stop_ids = []
    setup.transform.max_seq_len = limit = setup.model.decoder.max_seq_len
    short, words = setup.request("short", "cell", "square-1"), 1
    while True:
        long = setup.request("long", "cell " * words, "square-1")
        item = setup.transform(long.sample, setup.source.open_images(long.sample), inference=True)
        if len(item["tokens"]) > limit - 9:
            break
        words += 1
    found = answers(setup, [short, long], 2, max_new_tokens=20, share_prefix=share)
    assert (found["short"].tokens, found["long"].tokens) == (20, limit - len(item["tokens"]))
    for request in (short, long):
        assert found[request.id].text == plain_answer(setup, request, found[request.id].tokens)


def test_an_image_is_encoded_and_opened_once_in_a_window(setup, monkeypatch):
    encoded: list[int] = []
    encode = setup.model.encode
    monkeypatch.setattr(setup.model, "encode", lambda vision: encoded.append(len(vision["images"])) or encode(vision))
    requests = [setup.request(f"q{i}", "cell " * (i + 1), f"square-{i % 3}") for i in range(12)]
    shared = answers(setup, requests, 4, window=3)
    assert sum(encoded) == 3
    assert sorted(setup.source.opened) == ["square-0", "square-1", "square-2"]
    monkeypatch.undo()
    for request in requests:
        assert shared[request.id].text == plain_answer(setup, request, 10)


def test_an_image_is_cut_into_tiles_once(setup, monkeypatch):
    """Measured beside a transform of its own for each request: the same tokens and tiles."""
    requests = [setup.request(f"q{i}", "cell " * (i + 1), "large-3", "wide-1") for i in range(3)]
    expected = [setup.transform(r.sample, setup.source.open_images(r.sample), inference=True) for r in requests]
    cut, tiler = [], type(setup.transform.tiler).__call__
    monkeypatch.setattr(type(setup.transform.tiler), "__call__", lambda *a: cut.append(1) or tiler(*a))
    maker = PromptMaker(setup.transform, NoExtension())
    found = [maker(request)[0] for request in requests]
    assert len(cut) == 2
    for one, two in zip(expected, found, strict=True):
        assert one.keys() == two.keys()
        assert one["tokens"] == two["tokens"]
        assert one["id"] == two["id"]
        assert all(torch.equal(a, b) for a, b in zip(one["images"], two["images"], strict=True))
    batches = [setup.transform.collate(items, pad_side="left") for items in (expected, found)]
    for name, value in batches[0]["vision"].items():
        assert torch.equal(value, batches[1]["vision"][name])


def test_pictures_are_let_go_after_their_last_use(setup):
    requests = [setup.request(f"q{i}", "cell " * (10 - i), f"square-{i // 2}") for i in range(6)]
    generator = Generator(setup.model, setup.transform, batch_size=3, window=2, max_new_tokens=1)
    held = [len(generator.features) for _ in generator.batches(requests)]
    assert held == [1, 0], "only the picture with a question left is kept"


def test_equal_names_of_two_sources_are_two_pictures(setup):
    class Other(type(setup.source)):
        def _draw(self, path):
            return super()._draw(path).rotate(180)

    one, two = setup.request("one", "cell", "wide-1"), setup.request("two", "cell", "wide-1")
    two = Request("two", two.sample, Other())
    generator = Generator(setup.model, setup.transform, batch_size=2, max_new_tokens=10)
    list(generator([one, two]))
    assert generator.features.encoded == 2


def test_text_without_images_needs_no_encoder(setup, monkeypatch):
    requests = [setup.request(f"q{i}", "cell " * (i + 1)) for i in range(3)]
    expected = [plain_answer(setup, request, 10) for request in requests]
    monkeypatch.setattr(setup.model, "encode", lambda vision: pytest.fail("there is no image"))
    found = answers(setup, requests, 2)
    assert [found[request.id].text for request in requests] == expected


def test_done_requests_are_not_asked(setup):
    requests = setup.requests(6)
    generator = Generator(setup.model, setup.transform, batch_size=2, max_new_tokens=2)
    found = {answer.id for answer in generator(requests, done={"q1", "q4"})}
    assert found == {"q0", "q2", "q3", "q5"}


def test_an_unusable_image_stops_the_run_or_is_reported(setup):
    requests = [setup.request("good", "cell", "square-1"), setup.request("bad", "cell", "broken-1")]
    with pytest.raises(DataError, match="broken-1 is not an image"):
        answers(setup, requests, 2)
    left_out = []
    found = answers(setup, requests, 2, on_error=lambda request, error: left_out.append((request.id, str(error))))
    assert list(found) == ["good"]
    assert left_out == [("bad", "broken-1 is not an image")]
    assert answers(setup, requests[1:], 2, on_error=lambda request, error: None) == {}


def test_an_empty_continuation_is_refused(setup):
    with pytest.raises(DataError, match="'e' has a continuation without tokens"):
        answers(setup, [setup.request("e", "cell", continuations=("",))], 1)


def test_the_model_is_left_as_it_was_found(setup):
    setup.model.train()
    try:
        stream = Generator(setup.model, setup.transform, batch_size=2, max_new_tokens=3).batches(setup.requests(5))
        next(stream)
        assert setup.model.caches_are_setup() and not setup.model.training
        stream.close()
        assert not setup.model.caches_are_setup() and setup.model.training
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    finally:
        setup.model.eval()


def test_sampled_answers_belong_to_the_request(setup):
    requests = setup.requests()
    sampling = Sampling(temperature=1.5, top_p=0.95, top_k=50, seed=7)
    one, many = answers(setup, requests, 1, sampling=sampling), answers(setup, requests, 5, sampling=sampling)
    assert {name: a.text for name, a in one.items()} == {name: a.text for name, a in many.items()}
    other = answers(setup, requests, 5, sampling=Sampling(temperature=1.5, top_p=0.95, top_k=50, seed=8))
    assert all(one[name].text != other[name].text for name in one)


def test_a_request_may_be_sampled_in_its_own_way(setup):
    ways = [None, Sampling(temperature=1.5, seed=7), Sampling(top_p=0.5, seed=7), Sampling(temperature=3.0, top_k=9)]
    requests = [replace(request, sampling=ways[i % 4]) for i, request in enumerate(setup.requests())]
    mixed = answers(setup, requests, 5)
    for i, request in enumerate(requests):
        alone = answers(setup, [replace(request, sampling=None)], 1, sampling=ways[i % 4])
        assert mixed[request.id].text == alone[request.id].text
    greedy = answers(setup, setup.requests(), 5)
    assert all((mixed[r.id].text == greedy[r.id].text) == (r.sampling is None) for r in requests)


def test_bf16_answers_and_scores(setup):
    """Rounding differs between batches, so that scores are close and nothing more."""
    requests = setup.requests()
    exact = answers(setup, requests, 4)
    setup.model = copy.deepcopy(setup.model).bfloat16()
    rough = answers(setup, requests, 4, dtype=torch.bfloat16)
    for request in requests:
        assert rough[request.id].tokens == 10 or rough[request.id].stopped
        assert rough[request.id].scores == pytest.approx(exact[request.id].scores, rel=0.1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and -m gpu")
def test_cuda_answers_equal_cpu_answers(setup):
    requests = setup.requests()
    expected = answers(setup, requests, 4)
    setup.model = copy.deepcopy(setup.model).cuda()
    found = answers(setup, requests, 4, device="cuda")
    for request in requests:
        assert found[request.id].text == expected[request.id].text
        assert found[request.id].scores == pytest.approx(expected[request.id].scores, rel=1e-3)


def test_another_planner_forms_the_batches(setup):
    """One that answers each request as it comes, as a server wants it."""
    requests, taken = setup.requests(4), []

    def one_by_one(stream, keys, done=frozenset()):
        for request in stream:
            if request.id not in done:
                yield Plan([request], frozenset(request.image_keys))

    def arriving():
        for request in requests:
            taken.append(request.id)
            yield request

    generator = Generator(setup.model, setup.transform, max_new_tokens=3, planner=one_by_one)
    stream = generator.batches(arriving(), done={"q2"})
    (first,) = next(stream)
    assert first.id == "q0"
    assert "q3" not in taken, "answered before the last request was there"
    assert [answer.id for batch in stream for answer in batch] == ["q1", "q3"]


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"max_new_tokens": -1}, {"window": 0}])
def test_impossible_sizes_are_refused(setup, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        Generator(setup.model, setup.transform, **options)


def test_an_answer_carries_the_notes_of_its_request(setup):
    requests = [replace(request, notes={"place": place}) for place, request in enumerate(setup.requests(7))]
    found = {answer.id: answer.notes for answer in Generator(setup.model, setup.transform, batch_size=3)(requests)}
    assert found == {request.id: request.notes for request in requests}
