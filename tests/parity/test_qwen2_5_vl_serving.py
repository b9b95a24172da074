"""An export of Qwen2.5-VL has the files and the names that vLLM's loader looks for.

vLLM itself is not run here; ``vllm_names`` says from which source the names are.
"""

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from medtune.models.weights import INDEX_NAME, save_hf
from tests.parity.qwen2_5_vl_twin import SHAPES, tiny
from tests.parity.vllm_names import QWEN2_5_VL, renamed

# Tokenizer, image processor, chat template and defaults of sampling.
READS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "preprocessor_config.json",
    "chat_template.json",
    "generation_config.json",
)


@pytest.fixture(params=SHAPES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    model, source = tiny(SHAPES[request.param]), tmp_path / request.param
    source.mkdir()
    for name in READS:
        (source / name).write_text(f'"{name}"')
    return save_hf(model.state_dict(), model.family, tmp_path / "out" / request.param, source, shard_bytes=100_000)


def test_the_names_are_those_of_the_modules_that_a_server_builds(folder: Path) -> None:
    index = json.loads((folder / INDEX_NAME).read_text())["weight_map"]
    head = {"language_model.lm_head.weight"} if folder.name == "tied" else set()
    assert {renamed(name, QWEN2_5_VL) for name in index} == QWEN2_5_VL.parameters - head
    for shard in folder.glob("*.safetensors"):
        with safe_open(shard, "pt") as file:
            assert file.metadata() == {"format": "pt"}
            assert {index[name] for name in file.keys()} == {shard.name}


def test_the_files_beside_the_weights_are_copied(folder: Path) -> None:
    assert all((folder / name).read_text() == f'"{name}"' for name in READS)


def test_the_config_says_what_a_server_builds(folder: Path) -> None:
    config, shape = json.loads((folder / "config.json").read_text()), SHAPES[folder.name]
    assert config["architectures"] == ["Qwen2_5_VLForConditionalGeneration"]
    assert config["rope_scaling"] == {"type": "mrope", "mrope_section": list(shape.rope_sections)}
    assert config["tie_word_embeddings"] == shape.tied and config["image_token_id"] == shape.image_id
    assert config["vision_config"]["fullatt_block_indexes"] == list(shape.full_layers)
    assert config["vision_config"]["out_hidden_size"] == config["hidden_size"] == shape.dim
