"""Drawn safetensors headers, indexes and configs: every outcome is a value or one sentence, never another exception."""

import copy
import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medtune.errors import MedtuneError
from medtune.models.mini import mini_vlm
from medtune.models.weight_files import INDEX_NAME, weight_files
from medtune.models.weights import check_weights, load_weights, save_hf
from medtune.training.building import base_fingerprint
from medtune.training.checkpoints import load_values, torn

BOUNDED = settings(
    derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SMALL = {"image_size": 16, "vision_layers": 2, "decoder_layers": 2, "embed_dim": 16, "heads": 2}

leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
)
numbers = st.integers(-2, 5) | st.sampled_from([2**31, 2**63, -(2**63), 2**64, 10**30])
dtypes = st.sampled_from(["F32", "F16", "BF16", "F64", "I64", "I8", "U8", "BOOL", "F8_E4M3", "F4", "C64", "?", ""])
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": dtypes | leaves,
        "shape": st.lists(numbers, max_size=3) | values,
        "data_offsets": st.lists(numbers, max_size=3) | values,
        "extra": leaves,
    },
)
names = st.sampled_from(["decoder.norm.scale", "__metadata__", "language_model.lm_head.weight", "", "a"]) | st.text(
    max_size=9
)
headers = st.dictionaries(names, entries | values, max_size=4) | values
sizes = st.none() | st.integers(0, 2**64 - 1) | st.integers(0, 400)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return mini_vlm(300, **SMALL)


@pytest.fixture(scope="module")
def base(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_hf(model.state_dict(), model.family, tmp_path_factory.mktemp("base"))


def outcome(work: Any) -> str:
    """``value``, or the kind of the error of medtune; every other exception goes through and fails the test."""
    try:
        work()
    except MedtuneError as error:
        assert str(error).strip() and "Traceback" not in str(error)
        return type(error).__name__
    return "value"


def written(header: Any, length: int | None, tail: bytes) -> bytes:
    """A safetensors file with this header, which may claim another length."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + tail


@settings(BOUNDED, max_examples=350)
@given(header=headers, length=sizes, tail=st.binary(max_size=40))
def test_a_drawn_header_is_read_or_refused(
    model: torch.nn.Module, header: Any, length: int | None, tail: bytes
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.safetensors").write_bytes(written(header, length, tail))
        for work in (load_weights, check_weights):
            assert outcome(lambda work=work: work(folder, model)) == "ModelError", "no drawn header fits the model"
        outcome(lambda: base_fingerprint(folder))


@settings(BOUNDED, max_examples=150)
@given(data=st.binary(max_size=64))
def test_drawn_bytes_are_no_weights(model: torch.nn.Module, data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.safetensors").write_bytes(data)
        assert outcome(lambda: load_weights(folder, model)) == "ModelError"
        outcome(lambda: base_fingerprint(folder))


files = st.sampled_from(["model.safetensors", "absent.safetensors", "../model.safetensors", "config.json", "", "a\0b"])
maps = st.dictionaries(st.text(max_size=9), files | leaves, max_size=3) | values
indexes = st.fixed_dictionaries({}, optional={"weight_map": maps, "metadata": values}) | values


@settings(BOUNDED, max_examples=230)
@given(index=indexes.map(json.dumps).map(str.encode) | st.binary(max_size=30))
def test_a_drawn_index_names_files_of_its_folder_or_is_refused(base: Path, index: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.safetensors").symlink_to(base / "model.safetensors")
        (Path(folder) / INDEX_NAME).write_bytes(index)
        if outcome(lambda: weight_files(folder)) == "value":
            assert weight_files(folder) == [Path(folder) / "model.safetensors"]


keys = ["model_type", "architectures", "text_config", "vision_config", "image_token_index", "quantization_config"]
inner = ["rope_theta", "rope_scaling", "rope_parameters", "num_attention_heads", "supported_aspect_ratios"]


@settings(BOUNDED, max_examples=230)
@given(key=st.sampled_from(keys), part=st.none() | st.sampled_from(inner), value=values)
def test_a_config_with_a_drawn_value_fits_or_is_refused(
    model: Any, base: Path, key: str, part: str | None, value: Any
) -> None:
    config = copy.deepcopy(model.family.hf_config())
    if part is not None and key.endswith("_config"):
        config.setdefault(key, {})[part] = value
    else:
        config[key] = value
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.safetensors").symlink_to(base / "model.safetensors")
        (Path(folder) / "config.json").write_text(json.dumps(config))
        outcome(lambda: check_weights(folder, model))


@settings(BOUNDED, max_examples=150)
@given(manifest=values.map(json.dumps).map(str.encode) | st.binary(max_size=30), state=values)
def test_a_drawn_manifest_is_torn_and_a_drawn_state_is_refused(manifest: bytes, state: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "manifest.json").write_bytes(manifest)
        (Path(folder) / "state.json").write_text(json.dumps(state))
        assert torn(Path(folder)) is not None
        expected = "value" if isinstance(state, dict) else "CheckpointError"
        assert outcome(lambda: load_values(Path(folder))) == expected
