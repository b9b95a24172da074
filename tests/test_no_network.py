"""The guard that keeps tests, and the processes that they start, off the network."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

OUTSIDE = ("192.0.2.1", 80)  # reserved for documentation (RFC 5737): nothing answers there


@pytest.mark.parametrize("address", [OUTSIDE, ("example.org", 443), ("2001:db8::1", 80, 0, 0)])
def test_a_connection_that_leaves_the_machine_is_refused(address: tuple) -> None:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family) as client, pytest.raises(RuntimeError, match="no network"):
        client.connect(address)


def test_loopback_and_unix_sockets_work(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(tmp_path / "s"))
        server.listen()
        client.connect(str(tmp_path / "s"))


def test_processes_that_tests_start_are_guarded() -> None:
    code = f"import socket; socket.create_connection({OUTSIDE!r}, timeout=5)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert "tests have no network" in result.stderr
