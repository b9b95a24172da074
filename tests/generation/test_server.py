"""Answers of an OpenAI-compatible server: what is sent, what is tried again, what is refused."""

import builtins
import logging
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from medtune.data.sample import Message, Sample
from medtune.errors import ConfigError, DataError, ModelError
from medtune.generation.backends.base import AnswerSettings
from medtune.generation.backends.openai_api import OpenAIServer
from medtune.generation.engine.sampling import Sampling
from medtune.generation.requests import Request
from tests.generation.chat_server import MODEL, answer_to, images_of, prompt_of, serve

SETTINGS = AnswerSettings(max_new_tokens=20, device=torch.device("cpu"), dtype=torch.float32)


class Pixels:
    """Pictures by name: noise from the number, none for ``broken``."""

    name = "pixels"

    def open_images(self, sample):
        from PIL import Image

        if "broken" in sample.images:
            raise DataError(f"{sample.id}: broken is not an image")
        return [
            Image.fromarray(np.random.default_rng(int(name)).integers(0, 256, (9, 7, 3), dtype=np.uint8))
            for name in sample.images
        ]


def request(name: str, text: str = "What is it?", *images: str, **options) -> Request:
    return Request(name, Sample(name, images, (Message("user", text),)), Pixels(), **options)


def ask(server, requests, settings=SETTINGS, done=frozenset(), **options):
    options = {"concurrency": 4, "max_retries": 4, "timeout": 20, **options}
    answers = OpenAIServer(server.url, MODEL, **options).open(settings)
    return [generation for batch in answers.batches(requests, done) for generation in batch]


def test_the_picture_arrives_to_the_bit_and_before_the_question():
    with serve() as server:
        (answer,) = ask(server, [request("a", "What is the size?", "3")])
    (body,) = server.bodies
    (picture,) = images_of(body)
    (sent,) = Pixels().open_images(Sample("a", ("3",), ()))
    np.testing.assert_array_equal(picture, np.asarray(sent))
    assert [part["type"] for part in body["messages"][0]["content"]] == ["image_url", "text"]
    assert prompt_of(body) == "What is the size?"
    assert (body["model"], body["temperature"], body["max_tokens"]) == (MODEL, 0, 20)
    assert answer.text == answer_to(body) and answer.stopped and answer.tokens == 5


def test_tags_place_the_pictures_and_later_turns_are_not_shown():
    turns = [("system", "Be brief."), ("user", "A <image> B <image>?"), ("assistant", "the secret answer")]
    sample = Sample("a", ("1", "2"), tuple(Message(role, text) for role, text in turns))
    with serve() as server:
        ask(server, [Request("a", sample, Pixels())])
    (body,) = server.bodies
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert body["messages"][0]["content"] == "Be brief."
    assert [part["type"] for part in body["messages"][1]["content"]] == ["text", "image_url"] * 2 + ["text"]
    assert "secret" not in str(body)


def test_a_fifth_of_failures_and_a_slow_answer_change_nothing():
    requests = [request(f"q{i}", "slow" if i == 2 else f"question {i}", str(i % 3)) for i in range(30)]
    with serve() as server:
        calm = ask(server, requests, concurrency=1)
    with serve(fail_every=5, overtaken=4) as server:
        rough = ask(server, requests)
    assert rough == calm and [answer.id for answer in rough] == [f"q{i}" for i in range(30)]
    assert server.failed >= 30 // 5 and len(server.bodies) == 30
    assert "slow" in [prompt_of(body) for body in server.bodies[4:]], "others go on while one is slow"
    assert 1 < server.most <= 4


def test_done_requests_are_not_sent_and_options_are():
    with serve() as server:
        found = ask(server, [request(f"q{i}") for i in range(4)], done={"q0", "q2"}, options={"top_k": 1})
    assert [answer.id for answer in found] == ["q1", "q3"]
    assert [body["top_k"] for body in server.bodies] == [1, 1]


def test_sampling_is_sent_with_a_seed_of_each_request():
    settings = replace(SETTINGS, sampling=Sampling(temperature=0.7, top_p=0.9, top_k=40, seed=3))
    requests = [request("q0"), request("q1"), request("q2", sampling=Sampling(temperature=1.2))]
    with serve() as server:
        ask(server, requests, settings, concurrency=1)
        ask(server, requests, settings, concurrency=1)
        ask(server, [request("q0")], concurrency=1)
        ask(server, [request("q2", sampling=Sampling(temperature=1.2))], concurrency=1)
    first, again = server.bodies[:3], server.bodies[3:6]
    assert first == again, "the same requests are drawn alike"
    assert [(b["temperature"], b["top_p"], b.get("top_k")) for b in first] == [(0.7, 0.9, 40)] * 2 + [(1.2, 1.0, None)]
    assert len({body["seed"] for body in first}) == 3 and all(0 <= body["seed"] < 2**31 for body in first)
    assert server.bodies[6]["temperature"] == 0 and "seed" not in server.bodies[6]
    assert server.bodies[7] == first[2], "a request's own sampling needs no other"


def test_headers_among_the_options_are_sent_as_headers():
    with serve() as server:
        ask(server, [request("a")], options={"extra_headers": {"Authorization": "Basic abc"}, "top_k": 1})
    assert server.heads[-1] == "Basic abc" and "extra_headers" not in server.bodies[0]
    with pytest.raises(ConfigError, match="names and texts") as caught:
        OpenAIServer("http://localhost:1/v1", MODEL, options={"extra_headers": {"X-Key": 12345}})
    assert "12345" not in str(caught.value)


def test_what_was_asked_is_counted():
    with serve() as server:
        answers = OpenAIServer(server.url, MODEL).open(SETTINGS)
        list(answers.batches([request("a"), request("b")]))
    assert (answers.usage.requests, answers.usage.prompt_tokens, answers.usage.completion_tokens) == (2, 18, 10)


def test_the_bound_is_kept_and_told():
    with serve() as server:
        (answer,) = ask(server, [request("a", max_new_tokens=2)])
    assert (answer.tokens, answer.stopped, answer.text) == (2, False, "pixels 0")


def test_only_a_few_requests_are_read_ahead():
    read = []

    def stream():
        for i in range(1000):
            read.append(i)
            yield request(f"q{i}")

    with serve() as server:
        answers = OpenAIServer(server.url, MODEL, concurrency=2).open(SETTINGS)
        batches = answers.batches(stream())
        next(batches)
        batches.close()
    assert len(read) < 20


def test_the_key_comes_from_the_environment_and_is_written_nowhere(monkeypatch, caplog, capsys):
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    caplog.set_level(logging.DEBUG)
    with serve() as server:
        ask(server, [request("a")], api_key_env="MY_KEY")
        assert server.heads == ["Bearer sk-very-secret"] * 2
        server.status = 401
        with pytest.raises(ConfigError, match="refused the key of MY_KEY") as caught:
            ask(server, [request("a")], api_key_env="MY_KEY")
    printed = capsys.readouterr()
    assert caplog.text, "the client logs at this level"
    for text in (caplog.text, printed.out, printed.err, str(caught.value), str(OpenAIServer(server.url, MODEL))):
        assert "very-secret" not in text


def test_a_key_of_another_service_is_not_sent(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-public")
    with serve() as server:
        ask(server, [request("a")])
    assert all("sk-public" not in head for head in server.heads)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": ""}, "must be the address"),
        ({"base_url": "localhost:8000"}, "must be the address"),
        ({"base_url": "http://me:word@host/v1"}, "no password"),
        ({"model": ""}, "backend.model"),
        ({"concurrency": 0}, "must be positive"),
        ({"timeout": 0}, "must be positive"),
        ({"max_retries": -1}, "not negative"),
    ],
)
def test_what_no_server_can_be_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        OpenAIServer(**{"base_url": "http://localhost:1/v1", "model": MODEL, **options})


def test_an_unset_key_is_named(monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(ConfigError, match="MY_KEY .* holds no key"):
        OpenAIServer("http://127.0.0.1:9/v1", MODEL, api_key_env="MY_KEY").open(SETTINGS)


def test_nobody_at_the_address():
    with serve() as server:
        pass
    with pytest.raises(ConfigError, match="cannot be reached .*is the server running"):
        OpenAIServer(server.url, MODEL, max_retries=0).open(SETTINGS)


def test_a_model_that_is_not_served_is_named_with_the_nearest():
    with (
        serve() as server,
        pytest.raises(ConfigError, match="does not offer the model 'tiny-vl'; did you mean 'tiny-v"),
    ):
        OpenAIServer(server.url, "tiny-vl").open(SETTINGS)


def test_a_server_without_a_list_of_models_is_asked_at_once():
    with serve(models=None) as server:
        assert len(ask(server, [request("a")])) == 1
        server.status = 404
        with pytest.raises(ConfigError, match="has no model 'tiny-vlm'"):
            ask(server, [request("a")])


def test_a_page_that_is_no_api_is_a_plain_error():
    with serve(page=b"<html>hello</html>") as server, pytest.raises(ConfigError, match="is it the address of the API"):
        ask(server, [request("a")], max_retries=0)
    for kind in ("text/html", "application/json"):
        with serve() as server:
            answers = OpenAIServer(server.url, MODEL, max_retries=0).open(SETTINGS)
            server.page, server.page_type = b"<html>hello</html>", kind
            with pytest.raises(ModelError, match="gave no answer to request 'a'"):
                list(answers.batches([request("a")]))


def test_a_redirect_is_not_followed():
    with serve(status=307) as server, pytest.raises(ConfigError, match="forwards to another address"):
        ask(server, [request("a", "q", "1")])


def test_a_refused_request_is_named_without_its_words():
    with serve(status=400) as server:
        with pytest.raises(DataError, match="'a'.* status 400") as caught:
            ask(server, [request("a", "Mrs Smith's cell")])
        assert "Smith" not in str(caught.value)
        assert server.attempts == 1, "what cannot pass is not tried again"


def test_requests_that_cannot_be_used_are_left_out_if_allowed():
    left_out = {}
    settings = AnswerSettings(
        20, torch.device("cpu"), torch.float32, lambda request, error: left_out.update({request.id: str(error)})
    )
    requests = [request("a"), request("b", "q", "broken"), request("c")]
    with serve() as server:
        assert [answer.id for answer in ask(server, requests, settings)] == ["a", "c"]
        with pytest.raises(DataError, match="broken is not an image"):
            ask(server, requests)
    assert list(left_out) == ["b"]


def test_a_server_that_stays_broken_or_silent_ends_the_run():
    with serve(fail_every=1) as server:
        with pytest.raises(ModelError, match="'a' in 3 attempts .*status 500"):
            ask(server, [request("a")], max_retries=2)
        assert server.attempts == 3
    with serve(slow=1.0) as server, pytest.raises(ModelError, match="APITimeoutError"):
        ask(server, [request("a", "slow")], max_retries=0, timeout=0.3)


def test_without_the_client_the_extra_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "openai", raising=False)
    plain = builtins.__import__

    def absent(name, *args, **kwargs):
        if name == "openai":
            raise ImportError(name)
        return plain(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ConfigError, match=r"medtune\[judges\]"):
        OpenAIServer("http://127.0.0.1:9/v1", MODEL).open(SETTINGS)
