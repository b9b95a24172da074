"""Images that a request names by address: fetched from named hosts alone, over HTTPS, and never from inner networks."""

import http.client
import ipaddress
import re
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urlsplit

from medtune.serving.errors import ApiError, refused

_PORTS = {"https": 443, "http": 80}
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
_INNER_OF_NAT64 = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))
Origin = tuple[str, str, int]
"""Scheme, host and port."""


def origin_of(entry: str) -> Origin:
    """Return what an entry of ``allow_image_hosts`` allows.

    Args:
        entry: A host name, which means HTTPS on port 443, or ``https://HOST:PORT`` or ``http://HOST:PORT``.

    Raises:
        ValueError: If it is neither.
    """
    text = entry if "://" in entry else f"https://{entry}"
    try:
        parts = urlsplit(text)
        origin = _origin(parts)
    except ValueError:
        origin, parts = None, urlsplit("")
    if origin is None or parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError(
            f"allow_image_hosts: {entry!r} must be an exact host name, such as images.example.org, or "
            "https://HOST:PORT or http://HOST:PORT"
        )
    return origin


def is_inner(address: str) -> bool:
    """Return whether an address is of this machine, of a private network, or of no single machine on the internet."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        within = found.ipv4_mapped or found.sixtofour or (found.teredo or (None, None))[1]
        if within is not None or any(found in network for network in _INNER_OF_NAT64):
            return True  # an IPv4 address in disguise: the host has one of its own if it is meant to be reached by it
    return not found.is_global or found.is_multicast


def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a host.

    Raises:
        OSError: If it has none.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def connect(address: str, port: int, seconds: float) -> socket.socket:
    """Open a connection to an address.

    Raises:
        OSError: If it cannot be opened in time.
    """
    return socket.create_connection((address, port), timeout=seconds)


@dataclass(frozen=True)
class RemoteImages:
    """Fetches images from the allowed hosts.

    The host is resolved once, every one of its addresses must be on the internet, and the connection goes to the
    address that was checked. Redirects are not followed, no proxy is used, and nothing of the request is sent but the
    address.

    Attributes:
        hosts: Entries of ``allow_image_hosts``.
        most: Bytes of one image.
        seconds: Time for one image, from the connection to its last byte.
        resolve: Returns the addresses of a host and port.
        connect: Opens a connection to an address, a port, in so many seconds.
        context: Settings of TLS.
    """

    hosts: Sequence[str]
    most: int
    seconds: float
    resolve: Callable[[str, int], Sequence[str]] = resolve
    connect: Callable[[str, int, float], socket.socket] = connect
    context: ssl.SSLContext = field(default_factory=ssl.create_default_context)

    def __call__(self, url: str, param: str) -> bytes:
        """Return the bytes of an image.

        Args:
            url: Its address.
            param: Place in the request, for messages.

        Raises:
            ApiError: If the address is not allowed or the image cannot be had within the limits.
        """
        try:
            parts = urlsplit(url)
            origin = _origin(parts)
        except ValueError:
            origin = None
        if origin is None or origin not in [origin_of(entry) for entry in self.hosts]:
            raise refused(
                param,
                f"{param}: this server fetches no images from this host; send the image itself as "
                "data:image/png;base64,...",
                "image_url_not_allowed",
            )
        scheme, host, port = origin
        try:
            addresses = self.resolve(host, port)
        except OSError:
            raise _unreachable(param) from None
        if not addresses or any(is_inner(address) for address in addresses):
            raise refused(
                param,
                f"{param}: the host has an address of an inner network, from which nothing is fetched",
                "image_url_not_allowed",
            )
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            plain = self.connect(addresses[0], port, self.seconds)
        except TimeoutError:
            raise self._late(param) from None
        except OSError:
            raise _unreachable(param) from None
        return self._fetched(plain, scheme, host, port, path, param)

    def _fetched(self, plain: socket.socket, scheme: str, host: str, port: int, path: str, param: str) -> bytes:
        # A timeout of a socket is one of each read; the timer ends a server that sends a byte at a time. Where a server
        # sends nothing, either may come first.
        late = threading.Event()
        timer = threading.Timer(self.seconds, _end, (plain, late))
        timer.start()
        connection = http.client.HTTPConnection(host, port)
        try:
            connection.sock = self.context.wrap_socket(plain, server_hostname=host) if scheme == "https" else plain
            connection.request("GET", path, headers={"Accept": "image/*", "User-Agent": "medtune"})
            reply = connection.getresponse()
            if reply.status != 200:
                moved = " (redirects are not followed)" if 300 <= reply.status < 400 else ""
                raise _failed(param, f"the host answered with status {reply.status}{moved}")
            whole = self._body(reply, param)
            if late.is_set():  # a body of unknown length ends where the timer ended it
                raise TimeoutError
            return whole
        except (OSError, http.client.HTTPException, ValueError) as error:
            if late.is_set() or isinstance(error, TimeoutError):
                raise self._late(param) from None
            raise _unreachable(param) from None
        finally:
            timer.cancel()
            connection.close()
            plain.close()

    def _late(self, param: str) -> ApiError:
        return _failed(param, f"the image did not arrive within {self.seconds:g} s")

    def _body(self, reply: http.client.HTTPResponse, param: str) -> bytes:
        whole = bytearray()
        while len(whole) <= self.most:
            piece = reply.read1(1 << 16)
            if not piece:
                if reply.length:
                    raise ConnectionError("the connection ended before the image did")
                return bytes(whole)
            whole += piece
        raise _failed(param, f"the image is larger than {self.most / 1e6:g} MB")


def _origin(parts: SplitResult) -> Origin | None:
    """Return the origin of an address; None if it is none that can be fetched.

    Raises:
        ValueError: If its port is no number.
    """
    host = (parts.hostname or "").lower().rstrip(".")
    if parts.scheme not in _PORTS or "@" in parts.netloc or not _HOST.fullmatch(host):
        return None
    return parts.scheme, host, parts.port or _PORTS[parts.scheme]


def _end(connection: Any, late: threading.Event) -> None:
    late.set()
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


def _unreachable(param: str) -> ApiError:
    return _failed(param, "the image cannot be fetched from its host")


def _failed(param: str, why: str) -> ApiError:
    return refused(param, f"{param}: {why}; send the image itself as data:image/png;base64,...", "image_url_failed")
