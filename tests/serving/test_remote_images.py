"""Images by address: from named hosts alone, over HTTPS unless named so, never from inner addresses, within limits."""

import http.server
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from medtune.errors import ConfigError
from medtune.serving.chat import Defaults, read_call
from medtune.serving.config import settings_of
from medtune.serving.errors import ApiError
from medtune.serving.limits import Limits
from medtune.serving.remote_images import RemoteImages, is_inner, origin_of, resolve
from tests.serving.running import picture, png

PUBLIC = "93.184.215.14"
URL = "http://images.example.org:8080/cell.png?size=1"


class Host(http.server.BaseHTTPRequestHandler):
    """Sends what its server says, and notes what it was asked."""

    reply: Callable[["Host"], None]

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))  # type: ignore[attr-defined]
        self.server.reply(self)  # type: ignore[attr-defined]

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def send(self, data: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def host() -> Iterator[http.server.ThreadingHTTPServer]:
    """A server on the loopback address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Host)
    server.asked, server.reply = [], lambda handler: handler.send(png(picture(1)))  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def fetching(
    host: http.server.ThreadingHTTPServer,
    hosts: Sequence[str] = ("http://images.example.org:8080",),
    addresses: Sequence[str] = (PUBLIC,),
    seconds: float = 5.0,
    most: int = 10_000,
) -> RemoteImages:
    """Resolves to the given addresses, and connects to the loopback server in the place of the first."""

    def connect(address: str, port: int, timeout: float) -> socket.socket:
        assert (address, port) == (addresses[0], 8080 if ":" in hosts[0] else 443)
        return socket.create_connection(host.server_address[:2], timeout=timeout)

    return RemoteImages(hosts, most, seconds, resolve=lambda name, port: addresses, connect=connect)


def refusal(fetch: RemoteImages, url: str = URL) -> tuple[str | None, str]:
    with pytest.raises(ApiError) as told:
        fetch(url, "there")
    assert told.value.status == 400 and told.value.param == "there" and "example.org" not in told.value.message
    return told.value.code, told.value.message


def test_an_image_comes_from_an_allowed_host_which_learns_nothing_else(host) -> None:
    assert fetching(host)(URL, "there") == png(picture(1))
    ((path, headers),) = host.asked
    assert path == "/cell.png?size=1" and headers == {
        "Host": "images.example.org:8080",
        "Accept-Encoding": "identity",
        "Accept": "image/*",
        "User-Agent": "medtune",
    }


def test_a_request_by_address_is_read_only_if_it_is_allowed(host) -> None:
    parts = [{"type": "image_url", "image_url": {"url": URL}}, {"type": "text", "text": "What is it?"}]
    body = json.dumps({"model": "base", "messages": [{"role": "user", "content": parts}]}).encode()
    assert read_call(body, Limits(), Defaults(fetch=fetching(host))).images == (png(picture(1)),)
    with pytest.raises(ApiError, match="images are not fetched from addresses"):
        read_call(body, Limits(), Defaults())
    assert len(host.asked) == 1


@pytest.mark.parametrize(
    "url",
    [
        "https://images.example.org:8080/a.png",  # another scheme
        "http://images.example.org/a.png",  # another port
        "http://other.example.org:8080/a.png",
        "http://images.example.org.evil.net:8080/a.png",
        "http://user:word@images.example.org:8080/a.png",
        "http://images.example.org:8080@evil.net/a.png",
        "http://images.example.org:port/a.png",
        "http://[::1]:8080/a.png",
        "http://[images.example.org:8080/a.png",
        "http:///a.png",
    ],
)
def test_another_origin_is_refused_before_anything_is_opened(url: str, host) -> None:
    code, said = refusal(fetching(host), url)
    assert code == "image_url_not_allowed" and "fetches no images from this host" in said and not host.asked


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"], ["10.0.0.7"], ["172.16.3.4"], ["192.168.1.5"], ["169.254.169.254"], ["100.64.0.1"], ["0.0.0.0"],
        ["224.0.0.1"], ["255.255.255.255"], ["::1"], ["::"], ["fe80::1%eth0"], ["fc00::1"], ["ff02::1"],
        ["::ffff:10.0.0.7"], ["::ffff:93.184.215.14"], ["64:ff9b::a00:7"], ["2002:a00:7::1"], [PUBLIC, "10.0.0.7"], [],
    ],
)  # fmt: skip
def test_inner_addresses_are_refused_after_the_name_was_resolved(addresses: list[str], host) -> None:
    code, said = refusal(fetching(host, addresses=addresses))
    assert code == "image_url_not_allowed" and "inner network" in said and not host.asked


def test_addresses_on_the_internet_are_none_of_an_inner_network() -> None:
    assert not any(map(is_inner, (PUBLIC, "8.8.8.8", "2606:2800:21f:cb07:6820:80da:af6b:8b2c")))
    assert set(resolve("localhost", 80)) <= {"127.0.0.1", "::1"} and all(map(is_inner, resolve("localhost", 80)))


def test_redirects_are_not_followed(host) -> None:
    host.reply = lambda handler: handler.send(b"", 302, Location="http://127.0.0.1/secret")
    code, said = refusal(fetching(host))
    assert code == "image_url_failed" and "status 302 (redirects are not followed)" in said and len(host.asked) == 1
    host.reply = lambda handler: handler.send(b"gone", 404)
    assert "status 404;" in refusal(fetching(host))[1]


def test_a_large_image_is_given_up_with_and_without_its_length(host) -> None:
    def endless(handler: Host) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(bytes(4096))
        except OSError:
            pass

    for reply in (lambda handler: handler.send(bytes(10_001)), endless):
        host.reply = reply
        assert "the image is larger than 0.01 MB" in refusal(fetching(host))[1]
    host.reply = lambda handler: handler.send(bytes(10_000))
    assert len(fetching(host)(URL, "there")) == 10_000


def test_a_slow_host_is_given_up_also_if_it_sends_a_byte_at_a_time(host) -> None:
    gone = threading.Event()

    def drip(handler: Host) -> None:
        try:
            while not gone.wait(0.05):
                handler.wfile.write(b"H")  # of a header that never ends, or of a body
        except OSError:
            pass

    def drip_body(handler: Host) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "9000")
        handler.end_headers()
        drip(handler)

    def drip_body_of_unknown_length(handler: Host) -> None:
        handler.send_response(200)
        handler.end_headers()
        drip(handler)

    for reply in (drip, drip_body, drip_body_of_unknown_length, lambda handler: gone.wait(60)):
        host.reply, started = reply, time.monotonic()
        assert "did not arrive within 0.4 s" in refusal(fetching(host, seconds=0.4))[1]
        assert time.monotonic() - started < 20
    gone.set()


@pytest.mark.parametrize("timeout, timer", [(0.1, 30.0), (30.0, 0.1)])
def test_a_silent_host_is_late_by_the_socket_or_by_the_timer(host, monkeypatch, timeout, timer) -> None:
    """Whichever comes first gives the same message."""
    gone = threading.Event()
    host.reply = lambda handler: gone.wait(60)
    real = threading.Timer
    monkeypatch.setattr(threading, "Timer", lambda _, *rest: real(timer, *rest))
    fetch = fetching(host, seconds=timeout)
    assert f"did not arrive within {timeout:g} s" in refusal(fetch)[1]
    gone.set()


def test_a_host_that_takes_no_connection_in_time_is_late() -> None:
    def never(*_: object) -> socket.socket:
        raise TimeoutError

    fetch = RemoteImages(["http://images.example.org:8080"], 10, 0.2, resolve=lambda *_: [PUBLIC], connect=never)
    assert "did not arrive within 0.2 s" in refusal(fetch)[1]


def test_a_connection_that_ends_early_or_is_none_is_told(host) -> None:
    host.reply = lambda handler: handler.send(b"ab", **{"Content-Length": "10"})
    assert "cannot be fetched from its host" in refusal(fetching(host))[1]
    host.reply = lambda handler: handler.wfile.write(b"no HTTP at all\r\n\r\n")
    assert "cannot be fetched from its host" in refusal(fetching(host))[1]

    def fails(*_: object) -> list[str]:
        raise socket.gaierror("no such name")

    unknown = RemoteImages(["images.example.org"], 10, 1.0, resolve=fails)
    assert "cannot be fetched from its host" in refusal(unknown, "https://images.example.org/a.png")[1]


def test_a_host_named_alone_is_asked_over_tls_and_needs_a_valid_certificate(host) -> None:
    fetch = fetching(host, hosts=["images.example.org"])
    code, said = refusal(fetch, "https://images.example.org/a.png")  # the loopback server speaks no TLS
    assert code == "image_url_failed" and not host.asked
    assert fetch.context.check_hostname and fetch.context.verify_mode.name == "CERT_REQUIRED"
    assert refusal(fetch, "http://images.example.org/a.png")[0] == "image_url_not_allowed"


@pytest.mark.parametrize(
    ("entry", "origin"),
    [
        ("Images.Example.org", ("https", "images.example.org", 443)),
        ("https://images.example.org:8443/", ("https", "images.example.org", 8443)),
        ("http://pacs", ("http", "pacs", 80)),
    ],
)
def test_entries(entry: str, origin: tuple[str, str, int]) -> None:
    assert origin_of(entry) == origin


@pytest.mark.parametrize(
    "entry", ["*.example.org", "", "ftp://example.org", "example.org/path", "a b", "https://u@h.org"]
)
def test_what_is_no_host_is_refused_when_the_server_starts(entry: str) -> None:
    with pytest.raises(ConfigError, match="must be an exact host name"):
        settings_of("serve/mini", [f"allow_image_hosts=['{entry}']"])


def test_the_hosts_of_a_config_reach_the_server_and_none_with_an_upstream() -> None:
    assert settings_of("serve/mini").allow_image_hosts == []
    with pytest.raises(ConfigError, match="let the upstream server fetch none"):
        settings_of("serve/vllm", ["allow_image_hosts=[a.org]", "upstream=http://127.0.0.1:9/v1"])
