"""A task and its task-specific model, written once for all tests of VITask."""

from types import SimpleNamespace

import pytest

from medtune.config import instantiate
from tests.tiny_task import write_task, write_tsm


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("task")
    return SimpleNamespace(source=instantiate(write_task(folder / "data")), tsm=write_tsm(folder / "tsm"))
