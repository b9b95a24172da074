"""The chat client against a server that fails in every way: the right error, nothing of what the server says."""

import base64
import copy
import dataclasses
import io
import pickle
import traceback
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medtune.clients.concurrency import AHEAD
from medtune.clients.errors import RequestRefusedError, ServerFailedError, ServerSetupError, shown_request_id
from medtune.clients.messages import ChatRequest, Usage, content, data_uri, encoded, images_in
from medtune.clients.openai import ChatClient, Endpoint
from medtune.errors import ConfigError, DataError, MedtuneError, ModelError
from medtune.generation.engine.sampling import Sampling
from tests.clients.faulty_server import GOOD, FaultyServer, Reply, serve

SECRET, PATIENT = "sk-very-secret", "Mrs Smith"
SOON = {"retry-after-ms": "1"}  # the client's pauses, made short
TURNS = [{"role": "user", "content": f"Does {PATIENT} have a cold?"}]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)


def client(server: FaultyServer, **options: Any) -> ChatClient:
    return ChatClient(Endpoint(server.url, "m", **{"api_key_env": "MY_KEY", "timeout": 20.0, **options}))


def changed(**message: Any) -> dict[str, Any]:
    """A good reply with another message."""
    reply = copy.deepcopy(GOOD)
    reply["choices"][0]["message"] = {"role": "assistant", **message}
    return reply


def without(name: str) -> dict[str, Any]:
    reply = copy.deepcopy(GOOD)
    del (reply if name in reply else reply["choices"][0])[name]
    return reply


def test_a_reply_and_what_it_costs() -> None:
    with serve(Reply(headers={"x-request-id": "req_1"})) as server, client(server) as asked:
        reply = asked.complete(TURNS, max_tokens=5, id="q1")
        assert (reply.text, reply.finish_reason, reply.prompt_tokens, reply.completion_tokens) == ("fine", "stop", 7, 2)
        assert (reply.request_id, reply.id) == ("req_1", "q1")
        asked.complete(TURNS)
        assert asked.usage == Usage(2, 14, 4)
    assert server.bodies == [
        {"model": "m", "messages": TURNS, "temperature": 0, "max_tokens": 5},
        {"model": "m", "messages": TURNS, "temperature": 0},
    ]
    assert server.headers[0]["authorization"] == f"Bearer {SECRET}"


def test_sampling_and_extra_fields_of_one_request() -> None:
    extra = {"repetition_penalty": 1.0, "extra_headers": {"X-Project": "p"}}
    with serve() as server:
        client(server).complete(TURNS, Sampling(temperature=0.7, top_p=0.9, top_k=40, seed=3), extra=extra)
        client(server).complete(TURNS, Sampling(temperature=0.7), extra={"top_k": 2})
        client(server).complete(TURNS, Sampling(temperature=0.7, top_k=1, seed=3))
    first, second, greedy = server.bodies
    assert greedy == {"model": "m", "messages": TURNS, "temperature": 0}
    assert {name: first[name] for name in ("temperature", "top_p", "top_k", "seed", "repetition_penalty")} == {
        "temperature": 0.7, "top_p": 0.9, "top_k": 40, "seed": 3, "repetition_penalty": 1.0,
    }  # fmt: skip
    assert server.headers[0]["x-project"] == "p" and "extra_headers" not in first
    assert (second["top_p"], second["top_k"]) == (1.0, 2) and "x-project" not in server.headers[1]


def test_nothing_of_another_services_account_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "another-account")
    with serve() as server:
        client(server, api_key_env=None).complete(TURNS)
    assert "another-account" not in str(server.headers)


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_what_may_pass_is_tried_again(status: int) -> None:
    bad = Reply(status, {"error": {"message": PATIENT}}, SOON)
    with serve(bad, bad, bad, Reply()) as server:
        assert client(server, max_retries=3).complete(TURNS).text == "fine"
        assert len(server.bodies) == 4
    with serve(bad) as server:
        with pytest.raises(MedtuneError, match=f"status {status}") as caught:
            client(server, max_retries=2).complete(TURNS, id="q7")
        assert len(server.bodies) == 3
    assert caught.value.status == status and "'q7'" in str(caught.value) and PATIENT not in str(caught.value)
    assert isinstance(caught.value, DataError if status == 409 else ModelError)


def test_the_pause_that_the_server_asks_for_is_kept() -> None:
    with serve(Reply(429, {}, {"Retry-After": "1"}), Reply()) as server:
        assert client(server, max_retries=1).complete(TURNS).text == "fine"
    assert 1.0 <= server.times[1] - server.times[0] < 5
    with serve(Reply(429, {}, {"Retry-After": "86400"})) as server:
        with pytest.raises(ServerFailedError, match="asks for a pause of 86400 s"):
            client(server, max_retries=0).complete(TURNS)
    with serve(Reply(429, {}, {"Retry-After": PATIENT, **SOON})) as server:
        with pytest.raises(ServerFailedError) as caught:
            client(server, max_retries=1).complete(TURNS)
    assert PATIENT not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, RequestRefusedError), (401, ServerSetupError), (403, ServerSetupError), (404, ServerSetupError),
        (413, RequestRefusedError), (422, RequestRefusedError), (429, ServerFailedError), (500, ServerFailedError),
    ],
)  # fmt: skip
def test_an_error_that_echoes_key_and_prompt_shows_neither(status: int, kind: type[MedtuneError]) -> None:
    with serve(Reply(status, headers={"reason": PATIENT}, echo=True)) as server, pytest.raises(kind) as caught:
        client(server, max_retries=0).complete(TURNS, id="q1")
    shown = "".join(traceback.format_exception(caught.value)) + repr(vars(caught.value))
    assert str(status) in shown and SECRET not in shown and PATIENT not in shown
    assert (caught.value.status, caught.value.request_id) == (status, None)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.status) == (str(caught.value), status)


def test_an_error_has_the_servers_request_id() -> None:
    with serve(Reply(400, {}, {"x-request-id": "req_5"})) as server:
        with pytest.raises(RequestRefusedError) as caught:
            client(server).complete(TURNS)
        with pytest.raises(RequestRefusedError, match="request id none_5"):
            server.replies[0].headers["x-request-id"] = "none_5"
            client(server, api_key_env=None).complete(TURNS)
    assert caught.value.request_id == "req_5" and "status 400, request id req_5" in str(caught.value)


@pytest.mark.parametrize("value", ["", None, "a b", "x\x1b[2J", "y" * 65, f"id-{SECRET}", "ü"])
def test_a_request_id_that_could_be_anything_else_is_not_shown(value: str | None) -> None:
    assert shown_request_id(value, SECRET) is None


@pytest.mark.parametrize(
    ("body", "kind", "says"),
    [
        (b'{"choices": [{"message": {"content": "fi', ServerFailedError, "not JSON"),
        (b"<html>hello</html>", ServerFailedError, "not JSON"),
        (b"[" * 100_000, ServerFailedError, "not JSON"),
        (b"\xff", ServerFailedError, "not JSON"),
        (b"null", ServerFailedError, "no choices"),
        ([], ServerFailedError, "no choices"),
        ({"choices": []}, ServerFailedError, "no choices"),
        ({"choices": {"0": 1}}, ServerFailedError, "no choices"),
        ({"choices": ["fine"]}, ServerFailedError, "no choices"),
        (without("choices"), ServerFailedError, "no choices"),
        (without("message"), ServerFailedError, "no message"),
        (changed(content=[{"type": "text", "text": PATIENT}]), ServerFailedError, "content of the reply is a list"),
        (changed(content=5), ServerFailedError, "content of the reply is a int"),
        (changed(content=None, refusal=PATIENT), RequestRefusedError, "without a text"),
        (changed(), RequestRefusedError, "without a text"),
    ],
)
def test_a_reply_that_is_none_is_an_error_by_name(body: Any, kind: type[MedtuneError], says: str) -> None:
    with serve(Reply(body=body, headers=SOON)) as server, pytest.raises(kind, match=says) as caught:
        client(server, max_retries=2).complete(TURNS, id="q1")
    assert "'q1'" in str(caught.value) and PATIENT not in str(caught.value) and caught.value.status == 200
    assert len(server.bodies) == (3 if kind is ServerFailedError else 1)
    with serve(Reply(body=body, headers=SOON), Reply()) as server:
        if kind is ServerFailedError:
            assert client(server, max_retries=1).complete(TURNS).text == "fine"


def test_a_reply_without_usage_or_with_half_a_character() -> None:
    odd = {**changed(content="a\ud800b"), "usage": None}
    with serve(Reply(body=odd), Reply(body={**GOOD, "usage": {"prompt_tokens": "many"}})) as server:
        asked = client(server)
        assert asked.complete(TURNS).text == "a\ufffdb"
        assert asked.complete(TURNS).prompt_tokens == 0
        assert asked.usage == Usage(2)


def test_a_connection_that_breaks_off_or_is_silent() -> None:
    with serve(Reply(missing=40)) as server, pytest.raises(ServerFailedError, match="the connection broke off"):
        client(server, max_retries=0).complete(TURNS)
    with serve(Reply(missing=40), Reply()) as server:
        assert client(server, max_retries=1).complete(TURNS).text == "fine"
        assert len(server.bodies) == 2
    with serve(Reply(wait=1.0)) as server, pytest.raises(ServerFailedError, match="in 1 attempts of 0.2 s"):
        client(server, max_retries=0, timeout=0.2).complete(TURNS)
    with pytest.raises(ServerSetupError, match="cannot be reached"):
        client(server, max_retries=0).complete(TURNS)


def test_a_proxy_of_the_environment_gets_nothing_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve() as proxy, serve() as server:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        assert client(server).complete(TURNS).text == "fine"
        assert len(server.bodies) == 1 and not proxy.bodies


def test_a_redirect_is_not_followed() -> None:
    with serve() as other, serve(Reply(307, {}, {"Location": f"{other.url}/chat/completions"})) as server:
        with pytest.raises(ServerSetupError, match="status 307"):
            client(server).complete(TURNS)
        assert not other.bodies


@pytest.mark.parametrize("value", ["", "  ", "schlüssel", "a\nb", "a b"])
def test_a_key_that_no_header_can_hold_is_refused_without_it(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(ConfigError, match="MY_KEY") as caught:
        ChatClient(Endpoint("http://127.0.0.1:9/v1", "m", "MY_KEY"))
    assert not value.strip() or value not in str(caught.value)


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://x/v1", "http://host:port/v1", "http://[::1/v1"])
def test_an_address_that_is_none_is_refused_by_its_key(url: str) -> None:
    with pytest.raises(ConfigError, match="judge.base_url"):
        Endpoint(url, "m", key="judge")


def test_many_requests_come_back_in_order_and_are_read_as_needed() -> None:
    read: list[int] = []

    def requests(count: int):
        for number in range(count):
            read.append(number)
            yield ChatRequest(f"q{number}", TURNS)

    slow = Reply(wait=0.3)
    with serve(slow, *[Reply()] * 30) as server:
        asked = client(server)
        assert [reply.id for reply in asked.map(requests(12), concurrency=3)] == [f"q{i}" for i in range(12)]
        assert asked.usage.requests == 12
        read.clear()
        replies = asked.map(requests(1000), concurrency=2)
        next(replies)
        replies.close()
    assert len(read) <= 2 * AHEAD + 2


def test_a_refused_request_among_many_ends_them_or_is_told() -> None:
    requests = [ChatRequest(f"q{i}", TURNS, max_tokens=i + 1) for i in range(4)]
    left_out: list[str] = []
    with serve(Reply(), Reply(400, {}), Reply()) as server:
        found = client(server).map(requests, 1, on_error=lambda request, error: left_out.append(request.id))
        assert [reply.id for reply in found] == ["q0", "q2", "q3"] and left_out == ["q1"]
    with serve(Reply(), Reply(400, {}), Reply()) as server, pytest.raises(RequestRefusedError):
        list(client(server).map(requests, 1))


def test_content_of_texts_is_text_and_images_are_png() -> None:
    assert content(["a", "b"]) == "a\nb"
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    turns = [{"role": "user", "content": content([Image.fromarray(pixels), "What?"])}]
    sent = encoded(turns)[0]["content"]
    assert [part["type"] for part in sent] == ["image_url", "text"]
    read = Image.open(io.BytesIO(base64.b64decode(sent[0]["image_url"]["url"].removeprefix("data:image/png;base64,"))))
    np.testing.assert_array_equal(np.asarray(read), pixels)
    assert images_in(turns) == images_in(encoded(turns)) == 1
    with pytest.raises(DataError, match="mode CMYK"):
        data_uri(Image.new("CMYK", (2, 2)))


def test_a_request_is_a_value() -> None:
    assert dataclasses.replace(ChatRequest("a", TURNS), id="b").id == "b"
