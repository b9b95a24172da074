"""An export has the files and the names that vLLM's loader of this architecture (0.6.2 to 0.10.2) looks for.

vLLM itself is not run here: it needs another torch. What is checked is written down below, from its source.
"""

import json

from safetensors import safe_open

from medtune.models.weights import INDEX_NAME, save_hf
from tests.parity.mllama_twin import SHAPE, tiny

# Config and weights, then tokenizer, image processor, chat template and defaults of sampling.
READS = (
    "config.json",
    INDEX_NAME,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
    "chat_template.json",
    "generation_config.json",
)
MODULES = ("vision_model.", "multi_modal_projector.", "language_model.model.", "language_model.lm_head.")


def exported(tmp_path):
    model, source = tiny(), tmp_path / "base"
    source.mkdir()
    for name in READS[2:]:
        (source / name).write_text(f'"{name}"')
    (source / "config.json").write_text(json.dumps(model.family.hf_config()))
    (source / INDEX_NAME).write_text("the base's own, which names other shards")
    return model, save_hf(model.state_dict(), model.family, tmp_path / "out", source, shard_bytes=100_000)


def test_every_file_is_there_and_the_bases_are_copied_unchanged(tmp_path):
    _, out = exported(tmp_path)
    assert {name for name in READS if not (out / name).is_file()} == set()
    assert all((out / name).read_text() == f'"{name}"' for name in READS[2:])


def test_the_index_names_every_tensor_in_its_shard(tmp_path):
    _, out = exported(tmp_path)
    index = json.loads((out / INDEX_NAME).read_text())
    found, total = {}, 0
    for shard in out.glob("*.safetensors"):
        with safe_open(shard, "pt") as file:
            found |= {name: shard.name for name in file.keys()}
            total += sum(file.get_tensor(name).nbytes for name in file.keys())
            assert file.metadata() == {"format": "pt"}  # transformers refuses a file that does not say so
    assert index["weight_map"] == found and len(set(found.values())) > 1
    assert index["metadata"]["total_size"] == total


def test_names_stand_below_the_modules_that_a_server_builds(tmp_path):
    _, out = exported(tmp_path)
    names = json.loads((out / INDEX_NAME).read_text())["weight_map"]
    assert all(name.startswith(MODULES) for name in names)
    assert {prefix for prefix in MODULES for name in names if name.startswith(prefix)} == set(MODULES)
    # its linear maps are fused on loading, so each third must be there under its own name
    for third in ("q_proj", "k_proj", "v_proj"):
        assert f"language_model.model.layers.0.self_attn.{third}.weight" in names


def test_the_config_names_the_architecture_and_the_image_token(tmp_path):
    _, out = exported(tmp_path)
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["MllamaForConditionalGeneration"]
    assert config["image_token_index"] == SHAPE.vocab_size
    assert config["vision_config"]["intermediate_layers_indices"] == list(SHAPE.hidden_states)
