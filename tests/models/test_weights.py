"""Files that do not fit are refused by name; an export is whole and holds the model alone."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchtune.modules import TransformerSelfAttentionLayer
from torchtune.training import set_activation_checkpointing

from medtune.errors import ModelError
from medtune.models.common.names import expected_shapes, state_dict_names
from medtune.models.lora.merge import merge_adapters
from medtune.models.mini import lora_mini_vlm, mini_vlm, qlora_mini_vlm
from medtune.models.weights import INDEX_NAME, load_weights, save_hf

SIZES = {"image_size": 16, "vision_layers": 2, "decoder_layers": 2, "embed_dim": 32, "heads": 2}


def build(vocab=300, **changes):
    return mini_vlm(vocab, **{**SIZES, **changes})


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build()


@pytest.fixture
def exported(model, tmp_path):
    return save_hf(model.state_dict(), model.family, tmp_path / "base")


def test_shapes_and_names_are_those_of_the_state_dict(model):
    for kind in (model, lora_mini_vlm(300, ["q_proj"], **SIZES)):
        assert expected_shapes(kind) == {key: tensor.shape for key, tensor in kind.state_dict().items()}


def test_names_hold_under_activation_checkpointing():
    model = build()
    before = state_dict_names(model)
    set_activation_checkpointing(model, auto_wrap_policy={TransformerSelfAttentionLayer})
    assert list(state_dict_names(model).values()) == list(before.values())


def test_one_file_in_torchtunes_names(model, tmp_path):
    save_file(dict(model.state_dict()), tmp_path / "tune.safetensors")
    state = load_weights(tmp_path / "tune.safetensors", model)
    assert all(torch.equal(state[key], tensor) for key, tensor in model.state_dict().items())


def test_a_model_on_the_meta_device_is_enough(exported):
    with torch.device("meta"):
        model = build()
    state = load_weights(exported, model)
    assert not any(tensor.is_meta for tensor in state.values())


def test_dtype_of_the_file_is_kept(model, tmp_path):
    state = {key: tensor.to(torch.bfloat16) for key, tensor in model.state_dict().items()}
    save_hf(state, model.family, tmp_path)
    assert {tensor.dtype for tensor in load_weights(tmp_path, model).values()} == {torch.bfloat16}


def test_qlora_takes_a_dense_base_and_gives_a_dense_merge(tmp_path):
    plain = mini_vlm(300)
    save_hf(plain.state_dict(), plain.family, tmp_path / "base")
    adapted = qlora_mini_vlm(300, ["q_proj", "v_proj"], apply_lora_to_mlp=True)
    adapted.load_state_dict(load_weights(tmp_path / "base", adapted), strict=False)
    merged = merge_adapters(adapted.state_dict(), adapted)
    assert merged.keys() == plain.state_dict().keys()
    save_hf(merged, adapted.family, tmp_path / "out")
    again = load_weights(tmp_path / "out", plain)
    name = "decoder.layers.0.attn.q_proj.weight"
    error = (again[name].float() - plain.state_dict()[name]).abs().max()
    assert 0 < error < 0.25 * plain.state_dict()[name].abs().max()
    assert torch.equal(again["decoder.tok_embeddings.weight"], plain.state_dict()["decoder.tok_embeddings.weight"])


REFUSALS = {
    "vocabulary": ({"vocab": 310}, r"text_config.vocab_size is 300, the model has 310"),
    "depth": ({"decoder_layers": 4}, r"text_config.num_hidden_layers is 3, the model has 6"),
    "image size": ({"image_size": 32}, r"vision_config.image_size is 16, the model has 32"),
}
BARE_REFUSALS = {
    "vocabulary": ({"vocab": 310}, r"of another size .*decoder\.\w+.* is \[300, 32\], the model has \[310, 32\]"),
    "deeper": ({"decoder_layers": 4}, r"missing \(decoder\.layers\.2"),
    "image size": ({"image_size": 32}, "image_size is not the one"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_weights_of_another_size_are_refused(exported, case):
    changes, said = REFUSALS[case]
    with pytest.raises(ModelError, match=said):
        load_weights(exported, build(**changes))


@pytest.mark.parametrize("case", BARE_REFUSALS)
def test_weights_of_another_size_are_refused_without_a_config_too(exported, case):
    (exported / "config.json").unlink()
    changes, said = BARE_REFUSALS[case]
    with pytest.raises(ModelError, match=said):
        load_weights(exported, build(**changes))


def test_extra_tensors_are_named(model, tmp_path):
    save_file({**model.state_dict(), "decoder.proxy": torch.zeros(2)}, tmp_path / "m.safetensors")
    with pytest.raises(ModelError, match=r"1 not in the model \(decoder.proxy\)"):
        load_weights(tmp_path / "m.safetensors", model)


def test_another_kind_of_model_is_refused(model, exported):
    config = json.loads((exported / "config.json").read_text())
    (exported / "config.json").write_text(json.dumps({**config, "model_type": "llava"}))
    with pytest.raises(ModelError, match="type 'llava', but mini_vlm needs 'mllama'"):
        load_weights(exported, model)
    save_file({"bert.embeddings.weight": torch.zeros(2)}, exported / "model.safetensors")
    (exported / "config.json").unlink()
    with pytest.raises(ModelError, match="does not hold the weights of mini_vlm"):
        load_weights(exported, model)


def test_a_torn_file_is_named(model, exported):
    file = exported / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"model.safetensors cannot be read"):
        load_weights(exported, model)


def test_a_missing_shard_is_named(model, tmp_path):
    save_hf(model.state_dict(), model.family, tmp_path, shard_bytes=100_000)
    gone = sorted(tmp_path.glob("model-*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(ModelError, match=gone.name):
        load_weights(tmp_path, model)


def test_an_index_cannot_lead_out_of_its_folder(model, exported):
    outside = exported.parent / "other.safetensors"
    (exported / "model.safetensors").rename(outside)
    (exported / INDEX_NAME).write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    with pytest.raises(ModelError, match="not in"):
        load_weights(exported, model)


@pytest.mark.parametrize("name", ["model.pth", "pytorch_model.bin"])
def test_pickles_are_never_opened(model, tmp_path, name):
    torch.save(model.state_dict(), tmp_path / name)
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(ModelError, match="safetensors"):
            load_weights(path, model)


def test_nothing_there_is_said(model, tmp_path):
    with pytest.raises(ModelError, match="no weights at"):
        load_weights(tmp_path / "nowhere", model)


def test_a_proxy_or_an_adapter_never_leaves(model, tmp_path):
    with pytest.raises(ModelError, match="proxy"):
        save_hf({**model.state_dict(), "proxy.weight": torch.zeros(8, 32)}, model.family, tmp_path)
    adapted = lora_mini_vlm(300, ["q_proj"], **SIZES)
    with pytest.raises(ModelError, match="merge"):
        save_hf(adapted.state_dict(), adapted.family, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_incomplete_state_is_not_written(model, tmp_path):
    state = dict(model.state_dict())
    del state["decoder.norm.scale"]
    with pytest.raises(ModelError, match=r"1 tensors missing \(decoder.norm.scale"):
        save_hf(state, model.family, tmp_path)


def test_an_export_replaces_an_earlier_one(model, tmp_path):
    save_hf(model.state_dict(), model.family, tmp_path, shard_bytes=100_000)
    save_hf(model.state_dict(), model.family, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert load_file(tmp_path / "model.safetensors").keys() == model.family.tune_to_hf(model.state_dict()).keys()


def test_an_export_can_be_read_by_whoever_may_read_its_folder(exported):
    """safetensors writes for the owner alone."""
    assert {path.stat().st_mode for path in exported.iterdir()} == {(exported / "config.json").stat().st_mode}


def test_companions_are_copied_from_the_source(model, exported, tmp_path):
    source, out = exported, tmp_path / "out"
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "note": "mine"}))
    (source / "tokenizer.json").write_text("{}")
    (source / "original").mkdir()
    (source / "original" / "tokenizer.model").write_text("x")
    (source / "train.py").write_text("x")
    save_hf(model.state_dict(), model.family, out, source)
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert names == {"config.json", "tokenizer.json", str(Path("original/tokenizer.model")), "model.safetensors"}
    assert json.loads((out / "config.json").read_text())["note"] == "mine"


def test_the_files_that_a_model_brings_itself_are_in_its_export(model, tmp_path):
    family = dataclasses.replace(model.family, own_files=lambda: {"tokenizer.json": b"{}", "notes.txt": b"words"})
    save_hf(model.state_dict(), family, tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == b"{}" and (tmp_path / "notes.txt").read_bytes() == b"words"
    save_hf(model.state_dict(), model.family, tmp_path / "plain")
    assert not (tmp_path / "plain" / "notes.txt").exists()
