"""An export has the files and the names that vLLM's loader of Qwen2.5-VL (0.7.2 to 0.11) looks for.

vLLM itself is not run here: it needs another torch. What is checked is written down below, from its source.
"""

import json
import re
from pathlib import Path

import pytest
from safetensors import safe_open

from medtune.models.weights import INDEX_NAME, save_hf
from tests.parity.qwen2_5_vl_twin import SHAPES, tiny

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
# It renames `model.` to `language_model.model.` and `lm_head.` to `language_model.lm_head.`. On loading it fuses q, k
# and v of the decoder, and gate and up of all MLPs; q, k and v of the tower must be one tensor already.
TOWER = {
    "patch_embed.proj.weight", "merger.ln_q.weight", "merger.mlp.0.weight", "merger.mlp.0.bias", "merger.mlp.2.weight",
    "merger.mlp.2.bias", "blocks.N.norm1.weight", "blocks.N.norm2.weight", "blocks.N.attn.qkv.weight",
    "blocks.N.attn.qkv.bias", "blocks.N.attn.proj.weight", "blocks.N.attn.proj.bias", "blocks.N.mlp.gate_proj.weight",
    "blocks.N.mlp.gate_proj.bias", "blocks.N.mlp.up_proj.weight", "blocks.N.mlp.up_proj.bias",
    "blocks.N.mlp.down_proj.weight", "blocks.N.mlp.down_proj.bias",
}  # fmt: skip
DECODER = {
    "embed_tokens.weight", "norm.weight", "layers.N.input_layernorm.weight", "layers.N.post_attention_layernorm.weight",
    "layers.N.self_attn.q_proj.weight", "layers.N.self_attn.q_proj.bias", "layers.N.self_attn.k_proj.weight",
    "layers.N.self_attn.k_proj.bias", "layers.N.self_attn.v_proj.weight", "layers.N.self_attn.v_proj.bias",
    "layers.N.self_attn.o_proj.weight", "layers.N.mlp.gate_proj.weight", "layers.N.mlp.up_proj.weight",
    "layers.N.mlp.down_proj.weight",
}  # fmt: skip


@pytest.fixture(params=SHAPES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    model, source = tiny(SHAPES[request.param]), tmp_path / request.param
    source.mkdir()
    for name in READS:
        (source / name).write_text(f'"{name}"')
    return save_hf(model.state_dict(), model.family, tmp_path / "out" / request.param, source, shard_bytes=100_000)


def test_the_names_are_those_of_the_modules_that_a_server_builds(folder: Path) -> None:
    index = json.loads((folder / INDEX_NAME).read_text())["weight_map"]
    names = {re.sub(r"\.\d+\.(?!weight|bias)", ".N.", name) for name in index}
    head = set() if folder.name == "tied" else {"lm_head.weight"}
    assert names == {f"visual.{name}" for name in TOWER} | {f"model.{name}" for name in DECODER} | head
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
