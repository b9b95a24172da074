"""Two nodes, as docs/multi_gpu.md starts them, on the loopback address: one loses a process."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from medtune.config import to_plain
from tests.reliability.faults import assert_same_run, straight
from tests.runs import metrics, tiny

TUNE = Path(sys.executable).parent / "tune"
RUN = {"dataset": {"size": 96}, "max_steps": 10, "save_every_steps": 3, "batch_size": 2}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def children(process: int) -> list[int]:
    found = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for file in found for child in file.read_text().split()]


def start_node(folder: Path, port: int) -> subprocess.Popen[str]:
    rendezvous = ["--rdzv_id", "1", "--rdzv_backend", "c10d", "--rdzv_endpoint", f"localhost:{port}"]
    options = ["--nnodes", "2", "--nproc_per_node", "1", "--max_restarts", "1", *rendezvous]
    recipe = ["medtune/recipes/instfree.py", "--config", str(folder / "config.yaml")]
    output = (folder / f"node_{time.monotonic_ns()}.log").open("w")
    # Else the nodes may meet by the addresses of processes that have died: they are kept in the rendezvous' own store.
    fresh = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return subprocess.Popen([TUNE, "run", *options, *recipe], stdout=output, stderr=output, text=True, env=fresh)


@pytest.mark.slow
def test_a_node_whose_process_dies_and_is_started_again(tmp_path: Path) -> None:
    """With --max_restarts both nodes meet again and go on from the last checkpoint, exactly."""
    reference = straight(tmp_path / "straight", 2, **RUN)
    folder = tmp_path / "run"
    config = OmegaConf.create(to_plain(tiny(folder, **RUN)))
    OmegaConf.save(config, tmp_path / "config.yaml")
    port = free_port()
    nodes = [start_node(tmp_path, port) for _ in range(2)]
    try:
        deadline = time.monotonic() + 120
        while not list(folder.glob("checkpoints/step_00000004")):
            assert time.monotonic() < deadline and all(node.poll() is None for node in nodes), logs(tmp_path)
            time.sleep(0.05)
        before = len(metrics(folder))
        os.kill(children(nodes[1].pid)[0], signal.SIGKILL)
        assert [node.wait(120) for node in nodes] == [0, 0], logs(tmp_path)
    finally:
        for node in nodes:
            node.kill()
    assert before < 14, "it was killed on the way"
    assert logs(tmp_path).count("continuing step_") == 1
    assert_same_run(folder, reference)


def logs(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob("node_*.log")))
