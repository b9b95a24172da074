"""The runtime by itself: whole copies on the first process, errors of others, the device of what is summed."""

import pytest
import torch
from torch import Tensor

from medtune.errors import ConfigError, TrainingError
from medtune.training.runtime import Runtime

CPU = torch.device("cpu")


def test_of_a_long_error_of_the_backend_the_first_line_is_told() -> None:
    runtime = Runtime(CPU, world=2, rank=1)
    with pytest.raises(TrainingError, match=r"process 1 of 2: .*\(gloo: closed\)\. Its own output") as caught:
        with runtime.explained():
            raise RuntimeError("gloo: closed\nat line 3\nof somebody's file")
    assert "line 3" not in str(caught.value)
    with pytest.raises(RuntimeError, match="of another kind"), runtime.explained():
        raise RuntimeError("of another kind")


def test_the_first_process_alone_keeps_whole_copies() -> None:
    weight = torch.arange(6.0).reshape(2, 3).T
    found = Runtime(CPU).collect([("weight", weight)])
    assert torch.equal(found["weight"], weight) and found["weight"].is_contiguous()
    assert found["weight"].data_ptr() != weight.data_ptr()
    assert Runtime(CPU, world=2, rank=1).collect([("weight", weight)]) == {}


def test_whether_a_process_failed_is_summed_on_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL knows no tensor in host memory; the meta device stands for a GPU."""
    seen: list[str] = []

    def summed(runtime: Runtime, values: Tensor) -> Tensor:
        seen.append(values.device.type)
        return torch.zeros(())

    monkeypatch.setattr(Runtime, "sum", summed)
    assert Runtime(torch.device("meta"), world=2).on_all_ranks(lambda: 3) == 3
    assert seen == ["meta"]


def test_a_gpu_that_is_not_there_is_refused_and_a_cpu_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        Runtime.start("cuda")
    assert Runtime.start("cpu").device.type == Runtime.start("auto").device.type == "cpu"
