"""Training in processes that are started from one that has computed gradients itself."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from medtune.sweep.processes import start_method
from tests.runs import launch, losses, tiny


def gradient() -> None:
    """A backward pass."""
    torch.ones(1, requires_grad=True).sum().backward()


def test_a_test_that_traces_and_computes_gradients_can_launch_a_run(tmp_path: Path) -> None:
    """After tracing, autograd may start threads for GPUs that are not there; then no fork of this process can train."""
    with FakeTensorMode():
        torch.ones(2) * 2
    gradient()
    assert launch(tiny(tmp_path / "run", max_steps=1)) == [0]
    assert losses(tmp_path / "run")


def test_a_sweep_forks_its_runs_from_a_process_that_has_only_computed_gradients() -> None:
    gradient()
    assert start_method() == "fork"


def test_a_sweep_spawns_its_runs_from_a_process_that_has_used_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert start_method() == "spawn"


# A compiled model traces with tensors without storage, as the mode does here.
PROGRAM = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from medtune.sweep.processes import start_method, worker_pool

GRADIENT = "import torch; torch.ones(1, requires_grad=True).sum().backward()"
with FakeTensorMode():
    torch.ones(2) * 2
exec(GRADIENT)
with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
    assert "fork-based multiprocessing" in str(pool.submit(exec, GRADIENT).exception())
assert start_method() == "spawn"
with worker_pool(1) as pool:
    pool.submit(exec, GRADIENT).result()
"""


def test_a_sweep_spawns_its_runs_from_a_program_that_has_compiled_and_trained() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=120)
