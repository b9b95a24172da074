"""What every test runs under: one thread, no network, no model hub."""

import os
import tempfile

# Before torch is imported anywhere, in this process and in the ones that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
# What a run remembers of its data goes away with the tests; matplotlib's list of fonts takes seconds to make.
os.environ.setdefault("MPLCONFIGDIR", os.path.expanduser("~/.cache/matplotlib"))
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="medtune-tests-")

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.no_network import network_guard

CHECKOUT = Path(__file__).resolve().parent.parent
GUARD = str(Path(network_guard.__file__).parent)

network_guard.install()
# Processes that tests start are guarded too: Python imports sitecustomize from here.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [GUARD, os.environ.get("PYTHONPATH")]))


def pytest_configure(config: pytest.Config) -> None:
    """Keeps every fork of this process able to train, whatever tests ran in it before; except with ``-m gpu``.

    In its first backward pass autograd counts the GPUs and starts a thread for each. Once a process has such a thread,
    its forks can compute no gradient. GPUs that are there are counted, and eight that are not, once a test has compiled
    a model. So the first backward pass is made here, where there are none.
    """
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        torch.ones(1, requires_grad=True).sum().backward()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """One thread per process: several workers share the cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def no_memory_of_data() -> Iterator[None]:
    """Removes what runs have remembered of their data, when all tests of this process are over."""
    yield
    shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)


@pytest.fixture(autouse=True)
def same_seed() -> None:
    """Starts each test from one torch seed, so that a failure repeats whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The root of the source tree."""
    return CHECKOUT


@pytest.fixture(scope="session")
def medtune_data() -> Path:
    """The folder of real data sets, $MEDTUNE_DATA; skips without one."""
    folder = Path(os.environ.get("MEDTUNE_DATA", ""))
    if "MEDTUNE_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("the real data sets are not here: set MEDTUNE_DATA to their folder to run this test")
    return folder


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An empty folder for what a run writes."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder
