"""Weights and tokenizers that are FIFOs are refused by name, and never waited for."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from medtune.errors import ModelError
from medtune.models.classifier.builders import load_tsm
from medtune.models.classifier.timm_models import read
from medtune.models.common.tokenizer import FastTokenizer
from medtune.models.exemplars import CONNECTOR_NAME, RECORD_NAME, load_connector, load_record
from medtune.models.lora.peft_config import read_config
from medtune.models.mini import mini_vlm
from medtune.models.weights import load_weights
from medtune.training.building import base_fingerprint

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize(
    ("name", "reads"),
    [
        ("model.safetensors", lambda folder: load_weights(folder, mini_vlm(300))),
        ("model.safetensors", lambda folder: load_weights(folder / "model.safetensors", mini_vlm(300))),
        ("model.safetensors", lambda folder: base_fingerprint(str(folder))),
        ("adapter_config.json", read_config),
        ("config.json", load_tsm),
        ("weights.safetensors", lambda folder: read(str(folder / "weights.safetensors"))),
        (RECORD_NAME, load_record),
        (CONNECTOR_NAME, lambda folder: load_connector(folder, 8, "t")),
        ("tokenizer.json", lambda folder: FastTokenizer(folder)),
    ],
    ids=["folder", "weights", "fingerprint", "adapter", "classifier", "timm", "exemplars", "connector", "tokenizer"],
)
def test_weights_that_are_a_fifo(tmp_path: Path, name: str, reads: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(ModelError, match=f"{name}"):
        reads(tmp_path)
