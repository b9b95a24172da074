"""Clients that send too much, nonsense or too slowly, hang up, or have no token: each is told, others are answered."""

import io
import json
import logging
import socket
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from PIL import Image

from medtune.generation.prompt_extension import NoExtension
from medtune.serving.limits import Limits
from tests.serving.running import KEY, Running, alone, picture, png, serving, shown, until, uri

QUESTION = "what secret size"


def ask(running: Running, messages: Any = None, **options: Any) -> str:
    made = running.client(options.pop("key", "none")).chat.completions.create(
        **{"model": "tiny", "messages": messages or shown(QUESTION), "max_tokens": 4, **options}
    )
    return made.choices[0].message.content


def http(running: Running, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any, Any]:
    """Status, headers and JSON of a plain request."""
    kind = {"Content-Type": "application/json"} if body is not None else {}
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(running.root + path, body, {**kind, **sent})
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            raw, status, head = reply.read(), reply.status, reply.headers
    except urllib.error.HTTPError as error:
        raw, status, head = error.read(), error.code, error.headers
    return status, head, json.loads(raw) if raw[:1] == b"{" else raw.decode()


def body(text: str = QUESTION, **fields: Any) -> bytes:
    return json.dumps({"model": "tiny", "messages": shown(text), "max_tokens": 4, **fields}).encode()


def raw(running: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", running.port), timeout=20)


def head(length: int) -> bytes:
    return (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


class Slow(NoExtension):
    """Makes each forward pass take a while."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def before_forward(self, requests: Any) -> None:
        time.sleep(self.seconds)


def test_errors_have_the_form_of_the_api(setup):
    with serving(setup.model, setup.transform) as running:
        for wrong, status, code in (
            ({"model": "other"}, 404, "model_not_found"),
            ({"n": 2}, 400, "unsupported_parameter"),
            ({"messages": shown("cell " * 300)}, 400, "context_length_exceeded"),
        ):
            with pytest.raises(openai.APIStatusError) as told:
                ask(running, **wrong)
            assert (told.value.status_code, told.value.code) == (status, code)
            assert told.value.type == "invalid_request_error"
            with pytest.raises(openai.APIStatusError) as told:
                ask(running, **wrong, stream=True)
            assert told.value.status_code == status, "a stream has the error's own status too"
        status, _, said = http(running, "/v1/completions", body())
        assert (status, said["error"]["code"]) == (404, "not_found")
        status, _, said = http(running, "/v1/chat/completions", body(), Content_Type="text/plain")
        assert (status, said["error"]["code"]) == (415, "unsupported_media_type")
        assert http(running, "/docs")[0] == http(running, "/openapi.json")[0] == 404
        assert ask(running)


def broken_images() -> dict[str, tuple[bytes, str]]:
    whole = png(picture(1, (60, 60)))
    film = io.BytesIO()
    picture(1).save(film, "GIF", save_all=True, append_images=[picture(2)])
    large = io.BytesIO()
    Image.new("L", (1100, 1000)).save(large, "PNG")
    return {
        "cut": (whole[: len(whole) // 2], "truncated or damaged"),
        "words": (b"not an image at all", "no image that can be read"),
        "page": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image that can be read"),
        "film": (film.getvalue(), "frames"),
        "too large": (large.getvalue(), "has more than 1,000,000 pixels"),
        "no DICOM": (bytes(128) + b"DICM" + bytes(50), "image 2"),
    }


def test_a_broken_image_fails_its_own_request(setup):
    good = png(picture(1))
    expected = alone(setup.model, setup.transform, QUESTION, [good], max_new_tokens=4).text
    with serving(setup.model, setup.transform) as running, ThreadPoolExecutor(12) as threads:
        found = [threads.submit(ask, running, shown(QUESTION, good)) for _ in range(6)]
        for data, said in broken_images().values():
            for stream in (False, True):
                with pytest.raises(openai.BadRequestError, match=said) as told:
                    ask(running, shown(QUESTION, good, data), stream=stream)
                assert told.value.code == "invalid_image" and "remove the row" not in str(told.value)
        assert {one.result() for one in found} == {expected}


def test_jpeg_and_dicom_are_read_as_by_the_data_layer(setup):
    buffer = io.BytesIO()
    picture(4).save(buffer, "JPEG")
    jpeg = buffer.getvalue()
    expected = alone(setup.model, setup.transform, QUESTION, [jpeg], max_new_tokens=4).text
    with serving(setup.model, setup.transform) as running:
        assert ask(running, shown(QUESTION, jpeg)) == expected
        parts = [{"type": "image_url", "image_url": {"url": uri(jpeg, "application/octet-stream")}}]
        content = [*parts, {"type": "text", "text": QUESTION}]
        assert ask(running, [{"role": "user", "content": content}]) == expected, "its content decides"


def test_a_body_too_large_is_refused_before_it_is_read(setup):
    with serving(setup.model, setup.transform, limits=Limits(body_mb=0.2)) as running:
        large = body("x" * 250_000)
        status, headers, said = http(running, "/v1/chat/completions", large)
        assert (status, said["error"]["code"], headers["Connection"]) == (413, "body_too_large", "close")
        with raw(running) as client:  # says nothing of its length
            client.sendall(head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked"))
            piece = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
            client.sendall(piece * 5 + b"0\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 413")
        with raw(running) as client:  # announces more than it will ever send
            client.sendall(head(10**12) + b"x" * 500_000)
            assert client.recv(100).startswith(b"HTTP/1.1 413")
        assert ask(running)


def test_a_body_that_comes_too_slowly_is_refused(setup):
    with serving(setup.model, setup.transform, limits=Limits(body_seconds=1.5)) as running, raw(running) as client:
        client.sendall(head(1000) + b'{"model": ')
        assert ask(running), "others do not wait for it"
        assert client.recv(100).startswith(b"HTTP/1.1 408")


def test_a_client_that_hangs_up_while_it_sends(setup):
    with serving(setup.model, setup.transform) as running:
        for _ in range(3):
            with raw(running) as client:
                client.sendall(head(1000) + b'{"model": ')
        until(lambda: running.metric("medtune_requests_total", model="-", status="499") == 3)
        assert ask(running)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_frees_its_row(setup, stream):
    setup.transform.stop_ids = []
    with serving(setup.model, setup.transform, slots=1, extension=Slow(0.05)) as running:
        sent = body(max_tokens=80, stream=stream)
        with raw(running) as client:
            client.sendall(head(len(sent)) + sent)
            until(lambda: running.metric("medtune_first_token_seconds_count") == 1)
            if stream:
                assert client.recv(100).startswith(b"HTTP/1.1 200")
        started = time.monotonic()
        assert ask(running, max_tokens=2)
        assert time.monotonic() - started < 3, "the only row was free at once"
        assert running.metric("medtune_ends_total", reason="gone") == 1
        assert running.metric("medtune_generated_tokens_total") < 40


def test_a_client_that_hangs_up_in_the_queue(setup):
    setup.transform.stop_ids = []
    with serving(setup.model, setup.transform, slots=1, extension=Slow(0.01)) as running:
        sent = body(max_tokens=60)
        clients = [raw(running) for _ in range(6)]
        for client in clients:
            client.sendall(head(len(sent)) + sent)
        until(lambda: running.metric("medtune_requests_running") + running.metric("medtune_requests_waiting") == 6)
        for client in clients:
            client.close()
        until(lambda: running.metric("medtune_ends_total", reason="gone") == 6)
        assert ask(running) and running.parts.worker.idle


def test_a_slow_reader_holds_up_nobody(setup):
    setup.transform.stop_ids = []
    with serving(setup.model, setup.transform, slots=2) as running, raw(running) as client:
        sent = body(max_tokens=100, stream=True)
        client.sendall(head(len(sent)) + sent)
        started = time.monotonic()
        assert len({ask(running) for _ in range(5)}) == 1
        assert time.monotonic() - started < 10
        until(lambda: running.parts.worker.idle)
        said = b""
        while b"[DONE]" not in said:
            time.sleep(0.01)
            said += client.recv(300)
        assert said.count(b"chat.completion.chunk") > 2


def test_a_full_queue_says_when_to_come_again(setup):
    setup.transform.stop_ids = []
    limits = Limits(queue=2)
    with serving(setup.model, setup.transform, slots=1, limits=limits, extension=Slow(0.02)) as running:
        with ThreadPoolExecutor(8) as threads:
            found = [threads.submit(http, running, "/v1/chat/completions", body(max_tokens=20)) for _ in range(8)]
            replies = [one.result() for one in found]
        statuses = [status for status, _, _ in replies]
        assert statuses.count(200) >= 3 and statuses.count(429) >= 1 and set(statuses) == {200, 429}
        for status, headers, said in replies:
            if status == 429:
                assert said["error"]["code"] == "queue_full" and 1 <= int(headers["Retry-After"]) <= 30


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_takes_too_long_is_ended(setup, stream):
    setup.transform.stop_ids = []
    with serving(setup.model, setup.transform, slots=1, limits=Limits(seconds=1.5), extension=Slow(0.05)) as running:
        if stream:
            with pytest.raises(openai.APIError, match="took longer than 1.5 s"):
                for _ in running.client().chat.completions.create(
                    model="tiny", messages=shown(QUESTION), max_tokens=90, stream=True
                ):
                    pass
        else:
            with pytest.raises(openai.APIStatusError, match="took longer than 1.5 s") as told:
                ask(running, max_tokens=90)
            assert (told.value.status_code, told.value.code) == (504, "timeout")
        assert ask(running, max_tokens=1)


def test_only_the_token_opens_the_door(setup):
    with serving(setup.model, setup.transform, token=KEY) as running:
        assert ask(running, key=KEY)
        for wrong in (KEY[:-1], KEY + "x", "none", KEY.upper()):
            with pytest.raises(openai.AuthenticationError) as told:
                ask(running, key=wrong)
            assert told.value.code == "invalid_api_key" and KEY not in str(told.value)
        for path in ("/v1/models", "/metrics", "/nowhere"):
            assert http(running, path)[0] == 401
            assert http(running, path, Authorization=f"Basic {KEY}")[0] == 401
        assert http(running, "/metrics", Authorization=f"bearer {KEY}")[0] == 200
        assert http(running, "/health")[::2] == (200, {"status": "ok"})


def test_a_web_page_cannot_reach_a_server_without_token(setup):
    hosts = ("localhost", "127.0.0.1", "::1")
    with serving(setup.model, setup.transform, hosts=hosts) as running:
        assert ask(running)
        assert http(running, "/v1/models", Host=f"localhost:{running.port}")[0] == 200
        assert http(running, "/v1/models", Host="[::1]:80")[0] == 200
        for name in ("evil.example", "127.0.0.1.evil.example", "", "10.0.0.1:8000"):
            assert http(running, "/v1/models", Host=name)[0] == 403


def test_a_fault_of_the_engine_ends_its_requests_and_not_the_server(setup, caplog):
    class Faulty(NoExtension):
        broken = False

        def before_forward(self, requests: Any) -> None:
            if self.broken:
                raise RuntimeError(requests[0].sample.messages[0].content)

    faulty = Faulty()
    with serving(setup.model, setup.transform, extension=faulty) as running:
        before = ask(running)
        faulty.broken = True
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError) as told:
                ask(running, stream=stream)
            assert (told.value.status_code, told.value.code) == (500, "internal_error")
        faulty.broken = False
        assert ask(running) == before
        assert running.metric("medtune_engine_failures_total") == 2
    assert "RuntimeError" in caplog.text and "before_forward" in caplog.text
    assert "secret" not in caplog.text


def test_neither_log_nor_metrics_hold_what_was_asked(setup, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    with serving(setup.model, setup.transform) as running:
        answer = ask(running, stop="never")
        with pytest.raises(openai.BadRequestError):
            ask(running, shown(QUESTION, b"secret"))
        page = http(running, "/metrics")[2]
    out = capfd.readouterr()
    said = (
        "".join(r.getMessage() for r in caplog.records if r.name.startswith(("medtune", "uvicorn"))) + out.out + out.err
    )
    for text in ("secret", answer, "never"):
        assert text not in said and text not in page
    assert "model=tiny status=200 end=length images=0" in caplog.text and "status=400" in caplog.text
    for name in ("request_seconds_bucket", "first_token_seconds_bucket", "batch_rows_bucket", "requests_waiting",
                 "prompt_tokens_total", 'requests_total{model="tiny",status="200"} 1.0'):  # fmt: skip
        assert f"medtune_{name}" in page


@pytest.mark.parametrize("hangs_up", ["before", "while"])
def test_a_prompt_that_is_read_after_its_client_hung_up_leaves_nothing(setup, hangs_up):
    """The engine's thread reads a prompt while the event loop already forgets the request."""
    reading, forgotten = threading.Event(), threading.Event()

    class Waits:
        def __call__(self, *arguments: Any, **options: Any) -> Any:
            reading.set()
            if hangs_up == "before":
                assert forgotten.wait(20)
            made = setup.transform(*arguments, **options)
            if hangs_up == "while":
                assert forgotten.wait(20)
            return made

        def __getattr__(self, name: str) -> Any:
            return getattr(setup.transform, name)

    with serving(setup.model, Waits()) as running:
        sent = body(max_tokens=5)
        with raw(running) as client:
            client.sendall(head(len(sent)) + sent)
            assert reading.wait(20)
        until(lambda: running.metric("medtune_requests_total", model="tiny", status="499") == 1)
        forgotten.set()
        assert ask(running), "and the next one is answered"
