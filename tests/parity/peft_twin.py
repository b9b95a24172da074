"""Our models with adapters, in PEFT: what the tests of every family share."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft.tuners.lora.torchao
import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor, nn

from medtune.models.common.names import expected_shapes, is_adapter_key
from medtune.models.lora.peft import WEIGHTS_NAME, save_peft


@pytest.fixture(autouse=True)
def torchao_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT raises an ImportError at torchao below 0.16, which torchtune needs; the path it guards is not taken here."""
    monkeypatch.setattr(peft.tuners.lora.torchao, "is_torchao_available", lambda: False)


def adapters_of(model: nn.Module) -> dict[str, Tensor]:
    """The adapters of a model by our names."""
    return {key: tensor for key, tensor in model.state_dict().items() if is_adapter_key(key)}


def in_peft(adapted: Any, plain: Any, twin: Callable[[Any, Path], Any], folder: Path) -> Any:
    """Our base and our adapter folder, loaded by transformers and PEFT; every tensor must find its place.

    Args:
        adapted: Our model with adapters.
        plain: One of its shape without, which takes its base weights.
        twin: Makes transformers' model of ours, through a folder.
        folder: Where base and adapter are written.
    """
    plain.load_state_dict({key: tensor for key, tensor in adapted.state_dict().items() if not is_adapter_key(key)})
    theirs = twin(plain, folder / "base")
    save_peft(adapters_of(adapted), adapted, folder / "adapter", str(folder / "base"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT only warns of adapter keys that are missing
        loaded = PeftModel.from_pretrained(theirs, folder / "adapter")
    with safe_open(folder / "adapter" / WEIGHTS_NAME, "pt") as file:
        written = {name.replace(".weight", ".default.weight") for name in file.keys()}
    live = {name: value for name, value in loaded.state_dict().items() if ".lora_" in name}
    assert live.keys() == written
    assert all(value.abs().max() > 0 for value in live.values())  # a lora_B that did not land would be zero
    return loaded.eval()


def linear_maps(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name to weight shape of every linear map of transformers' model."""
    maps = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return {name: tuple(module.weight.shape) for name, module in maps.items()}


def assert_fits(model: Any, linear: dict[str, tuple[int, ...]], rank: int, packed: str = "none") -> None:
    """Every linear map carries both sides of an adapter, and nothing else does; ``model`` may have no storage.

    Maps whose names end with ``packed`` hold q, k and v, and three times the rank.
    """
    shapes = {key: torch.empty(size, device="meta") for key, size in expected_shapes(model).items()}
    published = model.family.adapters_to_peft({key: value for key, value in shapes.items() if is_adapter_key(key)})
    seen: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor in published.items():
        module, _, side = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
        seen.setdefault(module, {})[side] = tuple(tensor.shape)
    assert seen.keys() == linear.keys()
    for module, sides in seen.items():
        out, wide = linear[module]
        own = 3 * rank if module.endswith(packed) else rank
        assert sides == {"lora_A": (own, wide), "lora_B": (out, own)}, module
