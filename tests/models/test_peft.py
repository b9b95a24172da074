"""Adapters go to PEFT's files and back bit for bit; what does not fit is refused by name."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from medtune.errors import ModelError
from medtune.models.common.names import is_adapter_key
from medtune.models.lora.peft import CONFIG_NAME, WEIGHTS_NAME, load_peft, save_peft
from medtune.models.mini import lora_mini_vlm, mini_vlm, qlora_mini_vlm

SIZES = {"image_size": 16, "vision_layers": 2, "decoder_layers": 4, "embed_dim": 32, "heads": 2}
EVERYWHERE = {"apply_lora_to_mlp": True, "apply_lora_to_output": True}
ATTENTION = ["q_proj", "k_proj", "v_proj", "output_proj"]


def build(modules=ATTENTION, **changes):
    model = lora_mini_vlm(300, modules, **{"lora_rank": 2, "lora_alpha": 3.0, **SIZES, **changes})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_adapter_key(name):
                parameter.normal_()
    return model


def adapters_of(model):
    return {key: tensor for key, tensor in model.state_dict().items() if is_adapter_key(key)}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def model():
    return build(**EVERYWHERE)


@pytest.fixture
def saved(model, tmp_path):
    return save_peft(adapters_of(model), model, tmp_path / "adapter", "base")


def change(folder, **values):
    file = folder / CONFIG_NAME
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize(
    "options", [EVERYWHERE, {"lora_parts": ["vision"]}, {"lora_parts": ["fusion"]}, {"modules": ["k_proj"]}]
)
def test_round_trip(options, tmp_path):
    model = build(**options)
    save_peft(adapters_of(model), model, tmp_path, "base")
    assert same(load_peft(tmp_path, model), adapters_of(model))


def test_reading_needs_no_weights(saved, model):
    with torch.device("meta"):
        empty = build(**EVERYWHERE)
    assert same(load_peft(saved, empty), adapters_of(model))


def test_only_rotary_maps_are_reordered(saved, model):
    """lora_B of the decoder's own q and k; everything else is the same tensor under another name."""
    written = [tensor for tensor in load_file(saved / WEIGHTS_NAME).values()]
    moved = [
        key
        for key, tensor in adapters_of(model).items()
        if not any(torch.equal(tensor, w) for w in written if w.shape == tensor.shape)
    ]
    assert sorted(moved) == [
        f"decoder.layers.{i}.attn.{m}.lora_b.weight" for i in range(4) for m in ("k_proj", "q_proj")
    ]


def test_adapters_of_a_quantised_base_are_the_same_files(tmp_path):
    model = qlora_mini_vlm(300, ["q_proj", "v_proj"], lora_rank=2)
    save_peft(adapters_of(model), model, tmp_path, "base")
    assert same(load_peft(tmp_path, model), adapters_of(model))


def test_dtype_is_kept(model, tmp_path):
    half = {key: tensor.bfloat16() for key, tensor in adapters_of(model).items()}
    save_peft(half, model, tmp_path, "base")
    assert {tensor.dtype for tensor in load_file(tmp_path / WEIGHTS_NAME).values()} == {torch.bfloat16}
    assert same(load_peft(tmp_path, model), half)


def test_the_config_comes_last_and_an_earlier_adapter_is_replaced(saved, model, monkeypatch):
    def fail(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr("medtune.models.weights.save_file", fail)
    with pytest.raises(OSError, match="no space"):
        save_peft(adapters_of(model), model, saved, "other")
    assert not (saved / CONFIG_NAME).exists()


def test_names_of_older_transformers_are_read(saved, model):
    tensors = load_file(saved / WEIGHTS_NAME)
    older = {
        name.replace("model.model.language_model.layers", "model.language_model.model.layers")
        .replace("model.model.vision_model", "model.vision_model")
        .replace("model.model.multi_modal_projector", "model.multi_modal_projector")
        .replace("model.lm_head", "model.language_model.lm_head"): tensor
        for name, tensor in tensors.items()
    }
    assert not older.keys() & tensors.keys()
    save_file(older, saved / WEIGHTS_NAME)
    assert same(load_peft(saved, model), adapters_of(model))


def test_what_is_not_every_adapter_is_not_written(model, tmp_path):
    adapters = adapters_of(model)
    with pytest.raises(ModelError, match=r"1 that the model has no adapter for \(first: \['decoder.norm.scale'\]"):
        save_peft({**adapters, "decoder.norm.scale": torch.zeros(32)}, model, tmp_path / "a", "base")
    adapters.pop("decoder.output.lora_a.weight")
    with pytest.raises(ModelError, match=r"1 tensors missing \(first: \['decoder.output.lora_a"):
        save_peft(adapters, model, tmp_path / "a", "base")
    assert not (tmp_path / "a").exists()


def test_a_model_without_adapters_or_without_a_layout_is_refused(model, tmp_path):
    plain = mini_vlm(300, **SIZES)
    with pytest.raises(ModelError, match="has no adapters"):
        save_peft({}, plain, tmp_path, "base")
    other = build()
    other.family = replace(other.family, adapters_to_peft=None)
    with pytest.raises(ModelError, match="no known layout"):
        save_peft(adapters_of(other), other, tmp_path, "base")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"r": 4}, "the adapter has r=4, the model 2; set model.lora_rank"),
        ({"lora_alpha": 16}, "lora_alpha=16, the model 3; set model.lora_alpha"),
        ({"use_dora": True}, "use_dora cannot be read"),
        ({"use_rslora": True}, "use_rslora cannot be read"),
        ({"use_rslora": True, "use_dora": True}, "use_dora, use_rslora cannot be read"),
        ({"lora_bias": True}, "lora_bias cannot be read"),
        ({"use_qalora": True}, "use_qalora cannot be read"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices cannot be read"),
        ({"layer_replication": [[0, 2]]}, "layer_replication cannot be read"),
        ({"target_parameters": ["a"]}, "target_parameters cannot be read"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens cannot be read"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights=pissa_niter_4 cannot be read"),
        ({"init_lora_weights": "olora"}, "init_lora_weights=olora cannot be read"),
        ({"modules_to_save": ["lm_head"]}, r"no tensor of modules_to_save=\['lm_head'\]"),
        ({"rank_pattern": {"q_proj": 5}}, "the adapter has r=5, the model 2; set model.lora_rank, or what lora_parts"),
        ({"alpha_pattern": {r".*vision_model.*": 9}}, "lora_alpha=9, the model 3"),
        ({"rank_pattern": {"(": 5}}, "rank and alpha of .* cannot be read"),
        ({"lora_alpha": "much"}, "rank and alpha of .* cannot be read"),
        ({"bias": "all"}, "bias cannot be read"),
        ({"peft_type": "PREFIX_TUNING"}, "not the config of a LoRA adapter"),
    ],
)
def test_another_kind_of_adapter_is_named(saved, model, changes, said):
    change(saved, **changes)
    with pytest.raises(ModelError, match=said):
        load_peft(saved, model)


def test_what_changes_no_formula_is_read(saved, model):
    change(saved, init_lora_weights="gaussian", use_rslora=False, qalora_group_size=16, megatron_core="megatron.core",
           rank_pattern={}, alpha_pattern={"no_such_module": 5})  # fmt: skip
    assert same(load_peft(saved, model), adapters_of(model))


def test_adapters_of_other_places_or_sizes_are_named(saved):
    with pytest.raises(ModelError, match="that the model has no adapter for .* check lora_parts"):
        load_peft(saved, build(["q_proj"]))
    with pytest.raises(ModelError, match="no adapters of this model"):
        load_peft(saved, build(decoder_layers=2, **EVERYWHERE))
    with pytest.raises(ModelError, match=r"is \[2, 32\], the model has \[2, 48\]"):
        load_peft(saved, build(embed_dim=48, **EVERYWHERE))


def test_missing_and_torn_files_are_named(saved, model, tmp_path):
    with pytest.raises(ModelError, match="give the folder of a PEFT adapter"):
        load_peft(tmp_path / "nowhere", model)
    (saved / WEIGHTS_NAME).write_bytes(b"torn")
    with pytest.raises(ModelError, match=WEIGHTS_NAME):
        load_peft(saved, model)
    (saved / WEIGHTS_NAME).unlink()
    with pytest.raises(ModelError, match="pickled adapters are not read"):
        load_peft(saved, model)
