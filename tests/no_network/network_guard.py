"""Refuses connections that leave this machine; loopback and unix sockets stay."""

import ipaddress
import socket
from typing import Any


def leaves_this_machine(address: Any) -> bool:
    """Whether a socket address (a path, or host and port) is anything but loopback or a unix socket."""
    if not isinstance(address, tuple):
        return False
    host = address[0]
    if host in ("localhost", "", socket.gethostname()):
        return False
    try:
        return not ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        return True


def install() -> None:
    """Guard every socket of this process."""
    for name in ("connect", "connect_ex", "sendto"):
        plain = getattr(socket.socket, name)
        if not hasattr(plain, "guarded"):
            setattr(socket.socket, name, _guarded(plain))


def _guarded(plain: Any) -> Any:
    def call(self: socket.socket, *arguments: Any) -> Any:
        if leaves_this_machine(arguments[-1]):
            raise RuntimeError(f"A test tried to reach {arguments[-1]!r}: tests have no network, loopback aside.")
        return plain(self, *arguments)

    call.guarded = True  # type: ignore[attr-defined]
    return call
