"""What a path holds instead of weights is said; malformed downloads are one sentence."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from medtune.errors import CheckpointError, ModelError
from medtune.models.common.tokenizer import FastTokenizer, SentencePieceTokenizer
from medtune.models.mini import mini_llava, mini_vlm
from medtune.models.weight_files import INDEX_NAME, weight_files
from medtune.models.weights import check_weights, load_weights, save_hf
from medtune.training.building import base_fingerprint
from medtune.training.checkpoints import TrainingState, load_values, newest_checkpoint, save_checkpoint

SMALL = {"image_size": 16, "vision_layers": 2, "decoder_layers": 2, "embed_dim": 32, "heads": 2}


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return mini_vlm(300, **SMALL)


def run_folder(folder: Path, weights: bool) -> Path:
    """A run's folder as far as it matters here."""
    state = TrainingState(model={"a": torch.zeros(1)}, values={"step": 3})
    step = save_checkpoint(folder / "checkpoints", state, keep=1)
    (folder / "config.yaml").write_text("model: {}\n")
    if weights:
        (folder / "weights").mkdir()
        save_file({"a": torch.zeros(1)}, folder / "weights" / "model.safetensors")
    return step


def test_the_folder_of_a_run_names_its_weights(model: torch.nn.Module, tmp_path: Path) -> None:
    run_folder(tmp_path, weights=True)
    for refused in (load_weights, check_weights):
        with pytest.raises(ModelError, match=f"folder of a run, whose weights are in {tmp_path / 'weights'}: name"):
            refused(tmp_path, model)


def test_the_folder_of_a_run_that_is_not_over_names_export(tmp_path: Path) -> None:
    run_folder(tmp_path, weights=False)
    with pytest.raises(ModelError, match=f"has not written its weights yet.*medtune export {tmp_path} --to hf"):
        weight_files(tmp_path)


def test_a_step_folder_and_a_file_in_it_are_no_base(tmp_path: Path) -> None:
    step = run_folder(tmp_path, weights=True)
    for path in (step, step / "model.safetensors"):
        with pytest.raises(ModelError, match=f"is a training checkpoint.*take {tmp_path / 'weights'}.*medtune export"):
            weight_files(path)


def test_an_adapter_is_no_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    save_file({"a": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="holds a PEFT adapter, not a model"):
        weight_files(tmp_path)


def test_pickled_weights_of_the_llava_authors_point_to_the_converted_ones(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model-00001-of-00002.bin").write_bytes(b"PK")
    config = {"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="pickled weights.*take the converted weights, llava-hf/llava-1.5-7b-hf"):
        weight_files(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="take a version of the model in safetensors"):
        weight_files(tmp_path)


def test_gguf_is_named(tmp_path: Path) -> None:
    (tmp_path / "model-q4.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="GGUF files are not read"):
        weight_files(tmp_path)


def test_a_git_lfs_pointer_is_not_a_damaged_file(model: torch.nn.Module, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ModelError, match="Git LFS pointer.*git lfs pull"):
        load_weights(tmp_path, model)


def test_one_tensor_in_two_files_is_not_a_matter_of_luck(model: torch.nn.Module, tmp_path: Path) -> None:
    save_hf(model.state_dict(), model.family, tmp_path)  # type: ignore[arg-type]
    save_file({"language_model.lm_head.weight": torch.zeros(300, 32)}, tmp_path / "old.safetensors")
    with pytest.raises(ModelError, match="both hold language_model.lm_head.weight"):
        load_weights(tmp_path, model)


def test_quantised_tensors_are_named(model: torch.nn.Module, tmp_path: Path) -> None:
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state["decoder.layers.0.attn.q_proj.weight"] = torch.zeros(32, 32, dtype=torch.int8)
    save_file(state, tmp_path / "m.safetensors")
    for refused in (load_weights, check_weights):
        with pytest.raises(ModelError, match="q_proj.weight is stored as u?int8, so these weights are quantised"):
            refused(tmp_path / "m.safetensors", model)


def test_tied_embeddings_are_said_and_not_one_missing_tensor(tmp_path: Path) -> None:
    model = mini_llava(300, **SMALL)
    save_hf(model.state_dict(), model.family, tmp_path)
    state = load_weights(tmp_path, model)
    del state["decoder.output.weight"]
    save_file({key: tensor.clone() for key, tensor in state.items()}, tmp_path / "tied.safetensors")
    with pytest.raises(ModelError, match=r"embeddings are tied \(tie_word_embeddings\), and those of mini_llava are n"):
        load_weights(tmp_path / "tied.safetensors", model)


INDEXES = {
    "not JSON": b"{",
    "not UTF-8": b"\xff\xfe{}",
    "too deep": b"[" * 100_000,
    "null": b"null",
    "a list": b"[]",
    "no weight_map": b"{}",
    "weight_map null": b'{"weight_map": null}',
    "weight_map a list": b'{"weight_map": ["model.safetensors"]}',
    "weight_map empty": b'{"weight_map": {}}',
    "a number as a file": b'{"weight_map": {"a": 1}}',
    "a list as a file": b'{"weight_map": {"a": ["model.safetensors"]}}',
    "null and a file": b'{"weight_map": {"a": null, "b": "model.safetensors"}}',
    "another kind of file": b'{"weight_map": {"a": "pytorch_model.bin"}}',
    "an absolute path": b'{"weight_map": {"a": "/etc/model.safetensors"}}',
    "a NUL in the name": b'{"weight_map": {"a": "\\u0000.safetensors"}}',
    "an endless name": b'{"weight_map": {"a": "' + b"x" * 5000 + b'.safetensors"}}',
    "a surrogate": b'{"weight_map": {"a": "\\ud800.safetensors"}}',
}


@pytest.mark.parametrize("case", INDEXES)
def test_a_malformed_index_is_one_sentence(case: str, model: torch.nn.Module, tmp_path: Path) -> None:
    save_hf(model.state_dict(), model.family, tmp_path)  # type: ignore[arg-type]
    (tmp_path / INDEX_NAME).write_bytes(INDEXES[case])
    for refused in (load_weights, check_weights):
        with pytest.raises(ModelError, match="download"):
            refused(tmp_path, model)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 100_000, b"null", b"{"])
def test_a_malformed_config_json_is_one_sentence(content: bytes, model: torch.nn.Module, tmp_path: Path) -> None:
    save_hf(model.state_dict(), model.family, tmp_path)  # type: ignore[arg-type]
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match="download it again"):
        load_weights(tmp_path, model)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[" * 100_000, b"null", b"{}"])
def test_a_malformed_tokenizer_json_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelError, match="tokenizer.json"):
        FastTokenizer(tmp_path)


BESIDE = {
    "added_tokens.json": [b"\xff\xfe", b"null", b'{"<s>": "one"}', b'{"<s>": null}'],
    "tokenizer_config.json": [
        b"\xff\xfe",
        b"[]",
        b'{"added_tokens_decoder": {"1": 2}}',
        b'{"added_tokens_decoder": 3}',
    ],
}


@pytest.mark.parametrize(("name", "content"), [(name, content) for name, every in BESIDE.items() for content in every])
def test_malformed_files_beside_a_tokenizer_model_are_one_sentence(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match="download it again"):
        SentencePieceTokenizer(tmp_path)


@pytest.mark.parametrize("content", ["null", "[]", '{"model.safetensors": null}', "{}", "[" * 100_000])
def test_a_checkpoint_with_a_malformed_manifest_is_passed_over(content: str, tmp_path: Path) -> None:
    step = run_folder(tmp_path, weights=False)
    (step / "manifest.json").write_text(content)
    said: list[str] = []
    assert newest_checkpoint(tmp_path / "checkpoints", said.append) is None
    assert len(said) == 1 and "manifest.json" in said[0]


@pytest.mark.parametrize("content", ["null", "[]", "[" * 100_000])
def test_a_checkpoint_with_a_malformed_state_is_one_sentence(content: str, tmp_path: Path) -> None:
    step = run_folder(tmp_path, weights=False)
    (step / "state.json").write_text(content)
    with pytest.raises(CheckpointError, match="cannot read checkpoint"):
        load_values(step)


@pytest.mark.parametrize("head", [b"\xff" * 8, b"\x00" * 8 + b"{", (5).to_bytes(8, "little") + b"[[[[["])
def test_a_fingerprint_of_a_damaged_header_is_one_sentence(head: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(head)
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        base_fingerprint(str(tmp_path))
