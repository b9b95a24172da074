"""Pauses between attempts: what the server asks for, for whom it counts, the pace, and the end of all pauses."""

import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from medtune.clients import retries
from medtune.clients.errors import ServerFailedError
from medtune.clients.openai import ChatClient, Endpoint
from medtune.clients.retries import Interrupted, Pacer, TemporaryError, asked_pause, attempted, grown_pause
from medtune.errors import ConfigError
from tests.clients.faulty_server import Reply, serve

TURNS = [{"role": "user", "content": "?"}]


def test_a_pause_grows_twofold_to_half_a_minute() -> None:
    for attempt in range(12):
        longest = min(0.5 * 2**attempt, 30.0)
        assert all(0.75 * longest <= grown_pause(attempt) <= longest for _ in range(20))
    assert len({grown_pause(3) for _ in range(5)}) > 1


def test_what_a_server_asks_for_is_read_from_milliseconds_seconds_and_dates() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    assert asked_pause({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    assert asked_pause({"retry-after": "1.5"}) == 1.5
    assert 15 < (asked_pause({"retry-after": soon}) or 0) < 21
    assert asked_pause({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}) == 0.0
    assert asked_pause({"retry-after": "-3"}) == 0.0
    assert asked_pause({"retry-after": "tomorrow"}) is None and asked_pause({}) is None


def test_a_pause_after_429_holds_every_request_of_the_client() -> None:
    with serve(Reply(429, {}, {"Retry-After": "1"}), Reply()) as server:
        with ChatClient(Endpoint(server.url, "m", max_retries=2)) as client:
            first = threading.Thread(target=client.complete, args=(TURNS,))
            first.start()
            while not client.failures:
                time.sleep(0.01)
            time.sleep(0.05)
            client.complete(TURNS)  # would be answered at once
            first.join()
        assert client.failures == {"status 429": 1}
    assert min(server.times[1:]) - server.times[0] >= 1.0


def test_a_server_that_is_busy_for_a_while_is_outlasted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(retries, "LONGEST_GROWN", 0.05)
    with serve(*[Reply(429)] * 9, Reply()) as server, ChatClient(Endpoint(server.url, "m", max_retries=9)) as client:
        assert client.complete(TURNS).text == "fine"
    assert client.failures == {"status 429": 9}


def test_a_server_that_says_that_no_retry_helps_is_believed() -> None:
    with serve(Reply(429, {}, {"x-should-retry": "false"})) as server:
        with ChatClient(Endpoint(server.url, "m", max_retries=3)) as client, pytest.raises(ServerFailedError):
            client.complete(TURNS)
        assert len(server.bodies) == 1
    with serve(Reply(400, {}, {"x-should-retry": "true", "retry-after-ms": "1"}), Reply()) as server:
        with ChatClient(Endpoint(server.url, "m", max_retries=3)) as client:
            assert client.complete(TURNS).text == "fine"


def test_a_pause_that_is_too_long_ends_the_attempts_at_once() -> None:
    started = time.monotonic()
    with serve(Reply(429, {}, {"Retry-After": "3600"})) as server:
        with ChatClient(Endpoint(server.url, "m", max_retries=5)) as client:
            with pytest.raises(ServerFailedError, match="asks for a pause of 3600 s"):
                client.complete(TURNS)
        assert len(server.bodies) == 1
    assert time.monotonic() - started < 10


def test_requests_start_evenly_at_the_pace_that_is_set() -> None:
    # From the beginning, not from turn to turn: a busy machine may notice one turn late, and the next one in time.
    pacer, began = Pacer(per_minute=1200), time.monotonic()
    for turn in range(5):
        pacer.wait()
        assert time.monotonic() - began >= 0.05 * turn
    began = time.monotonic()
    with serve() as server, ChatClient(Endpoint(server.url, "m", requests_per_minute=600)) as client:
        for turn in range(3):
            client.complete(TURNS)
            assert server.times[turn] - began >= 0.1 * turn
    with pytest.raises(ConfigError, match="judge: requests_per_minute must be positive"):
        Endpoint("http://localhost/v1", "m", requests_per_minute=0, key="judge")


def test_stopping_ends_the_pauses() -> None:
    pacer = Pacer()

    def send() -> None:
        raise TemporaryError(ValueError("busy"), asked=60.0)

    threading.Timer(0.1, pacer.stop).start()
    started = time.monotonic()
    with pytest.raises(Interrupted):
        attempted(send, 5, pacer)
    assert time.monotonic() - started < 5


def test_the_last_cause_is_raised() -> None:
    causes = iter([ValueError("first"), ValueError("second")])

    def send() -> None:
        raise TemporaryError(next(causes), asked=0.0)

    with pytest.raises(ValueError, match="second"):
        attempted(send, 1, Pacer())
