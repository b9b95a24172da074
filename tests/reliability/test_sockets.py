"""The suite runs with sockets blocked: also in forked and spawned processes, data workers, and what these start."""

import multiprocessing
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from torch.utils.data import DataLoader, Dataset

OUTSIDE = ("192.0.2.1", 9)  # reserved for documentation (RFC 5737): nothing answers there
REACH = f"import socket; socket.create_connection({OUTSIDE!r}, timeout=5)"


def reach() -> str:
    """What comes of a try to leave this machine."""
    try:
        socket.create_connection(OUTSIDE, timeout=5)
    except (RuntimeError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return "connected"


class Outside(Dataset):
    """Items that say what came of a try to leave the machine."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> str:
        return reach()


def in_this_process() -> Iterator[str]:
    yield reach()


def in_a_forked_process() -> Iterator[str]:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        yield pool.apply(reach)


def in_data_workers() -> Iterator[str]:
    yield from DataLoader(Outside(), batch_size=None, num_workers=2)


def in_a_started_program() -> Iterator[str]:
    yield subprocess.run([sys.executable, "-c", REACH], capture_output=True, text=True).stderr


def in_a_program_that_a_program_starts() -> Iterator[str]:
    again = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {REACH!r}])"
    yield subprocess.run([sys.executable, "-c", again], capture_output=True, text=True).stderr


def in_a_spawned_process() -> Iterator[str]:
    spawn = (
        "import multiprocessing as m; p = m.get_context('spawn').Process(target=exec, args=(%r,)); p.start(); p.join()"
    )
    yield subprocess.run([sys.executable, "-c", spawn % REACH], capture_output=True, text=True).stderr


PLACES = [
    in_this_process,
    in_a_forked_process,
    in_data_workers,
    in_a_started_program,
    in_a_program_that_a_program_starts,
    in_a_spawned_process,
]


@pytest.mark.parametrize("place", PLACES)
def test_the_whole_suite_with_sockets_blocked(place: object) -> None:
    found = list(place())  # type: ignore[operator]
    assert found and all("tests have no network" in one for one in found), found


def test_a_datagram_that_leaves_the_machine_is_refused() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client, pytest.raises(RuntimeError, match="no network"):
        client.sendto(b"x", OUTSIDE)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server, socket.socket(type=socket.SOCK_DGRAM) as client:
        server.bind(("127.0.0.1", 0))
        assert client.sendto(b"x", server.getsockname()) == 1
