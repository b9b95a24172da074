"""``config.json`` beside weights is compared with what the builder builds, and names the type that was written."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from medtune.errors import ModelError
from medtune.models.common.family import ModelFamily
from medtune.models.internvl import internvl2_2b, internvl3_8b
from medtune.models.llava import llava1_5_7b
from medtune.models.mini import mini_internvl, mini_llava, mini_vlm
from medtune.models.published_config import check_config, config_differences
from medtune.models.weights import check_weights, load_weights, save_hf

SMALL = {"image_size": 16, "vision_layers": 2, "decoder_layers": 2, "embed_dim": 32, "heads": 2}
BUILDERS = {
    "mllama": lambda: mini_vlm(300, **SMALL),
    "internvl": lambda: mini_internvl(300, **SMALL),
    "internvl qwen2": lambda: mini_internvl(300, decoder="qwen2", **SMALL),
    "internvl original": lambda: mini_internvl(300, layout="original", **SMALL),
    "llava": lambda: mini_llava(300, **SMALL),
}


def published(build: object) -> ModelFamily:
    with torch.device("meta"):
        return build().family  # type: ignore[operator]


@pytest.fixture(scope="module")
def eight() -> ModelFamily:
    return published(internvl3_8b)


@pytest.fixture(scope="module")
def two() -> ModelFamily:
    return published(internvl2_2b)


@pytest.fixture(scope="module")
def llava() -> ModelFamily:
    return published(llava1_5_7b)


def changed(config: dict, key: str, value: object) -> dict:
    """A copy with another value at a dotted key."""
    first, _, rest = key.partition(".")
    return {**config, first: changed(config[first], rest, value) if rest else value}


CHANGES = {
    "rope_theta": ("mllama", "text_config.rope_theta", 1e4),
    "rope scaling": ("mllama", "text_config.rope_scaling", {"rope_type": "llama3", "factor": 32.0}),
    "heads": ("mllama", "text_config.num_attention_heads", 4),
    "heads of the vision tower": ("mllama", "vision_config.attention_heads", 4),
    "intermediate layers": ("mllama", "vision_config.intermediate_layers_indices", [2]),
    "fusion layers": ("mllama", "text_config.cross_attention_layers", [0]),
    "key/value heads": ("internvl", "text_config.num_key_value_heads", 1),
    "epsilon": ("internvl qwen2", "text_config.rms_norm_eps", 1e-5),
    "activation": ("internvl", "vision_config.hidden_act", "quick_gelu"),
    "pixel shuffle": ("internvl", "downsample_ratio", 0.25),
    "kind of decoder": ("internvl", "text_config.model_type", "qwen2"),
    "pixel shuffle version": ("internvl original", "ps_version", "v1"),
    "normalised queries and keys": ("internvl original", "vision_config.qk_normalization", True),
    "feature layer": ("llava", "vision_feature_layer", -1),
    "class token kept": ("llava", "vision_feature_select_strategy", "full"),
    "patch size": ("llava", "vision_config.patch_size", 4),
    "image token": ("llava", "image_token_index", 7),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_config_of_another_model_is_refused_by_its_key(case: str, tmp_path: Path) -> None:
    """The tensors are the same in every case: only the config tells the two models apart."""
    family, key, value = CHANGES[case]
    model = BUILDERS[family]()
    save_hf(model.state_dict(), model.family, tmp_path)
    load_weights(tmp_path, model)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(changed(config, key, value)))
    shown = key.rpartition(".")[2].replace("image_token_index", "image_token_id").replace("attention_heads", "heads")
    for check in (load_weights, check_weights):
        with pytest.raises(ModelError, match="describes another model") as error:
            check(tmp_path, model)
        assert shown.removeprefix("num_") in str(error.value)


def test_what_does_not_change_the_model_is_not_compared(tmp_path: Path) -> None:
    model = BUILDERS["internvl"]()
    save_hf(model.state_dict(), model.family, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"] |= {"max_position_embeddings": 9, "rope_scaling": {"type": "dynamic", "factor": 2.0}}
    config["text_config"] |= {"eos_token_id": 3, "attention_dropout": 0.1, "head_dim": None}
    config["vision_config"]["image_size"] = 16  # the same side as [16, 16]
    (tmp_path / "config.json").write_text(json.dumps(config))
    load_weights(tmp_path, model)


def test_a_config_saved_by_transformers_5_says_the_same_in_other_words() -> None:
    family = BUILDERS["mllama"]().family
    config = family.hf_config()
    text = dict(config["text_config"])
    text["rope_parameters"] = {"rope_theta": text.pop("rope_theta"), **text.pop("rope_scaling")}
    vision = dict(config["vision_config"])
    vision["num_attention_heads"] = vision.pop("attention_heads")
    vision["intermediate_layers_indices"] = [i - 1 for i in vision["intermediate_layers_indices"]]
    given = {**config, "text_config": text, "vision_config": vision}
    assert config_differences(given, family) == []
    text["rope_parameters"]["rope_theta"] = 1.0
    assert config_differences(given, family) == ["text_config.rope_theta is 1.0, the model has 500000.0"]


# Sizes and names of published config.json files, as far as they are compared.
_TOWER = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
PUBLISHED_3 = {
    "1B": {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2},
    "2B": {"hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2},
    "8B": {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4},
    "14B": {"hidden_size": 5120, "num_hidden_layers": 48, "num_attention_heads": 40, "num_key_value_heads": 8},
}


def internvl3(size: str) -> dict:
    text = {"model_type": "qwen2", "rope_theta": 1e6, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}
    return {
        "model_type": "internvl",
        "architectures": ["InternVLForConditionalGeneration"],
        "vision_feature_layer": -1,
        "torch_dtype": "bfloat16",
        "text_config": {**text, **PUBLISHED_3[size]},
        "vision_config": _TOWER,
    }


def beside(folder: Path, config: dict) -> Path:
    """A folder of weights with this config."""
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("size", ["1B", "2B", "14B"])
def test_weights_of_another_size_of_internvl3_are_told_by_their_config(
    size: str, eight: ModelFamily, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=f"hidden_size is {PUBLISHED_3[size]['hidden_size']}, the model has 3584"):
        check_config(beside(tmp_path, internvl3(size)), eight)


def test_weights_that_another_builder_builds_name_it(two: ModelFamily, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"set model._component_ to medtune.models.internvl.internvl3_8b"):
        check_config(beside(tmp_path, internvl3("8B")), two)


def test_weights_of_another_family_name_its_builder(eight: ModelFamily, llava: ModelFamily, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"type 'llava', but internvl3_8b needs 'internvl'; .*llava.llava1_5_7b"):
        check_config(beside(tmp_path, llava.hf_config()), eight)


def test_internvl2_5_is_told_from_internvl2_by_its_chat_format(two: ModelFamily, tmp_path: Path) -> None:
    """The two have tensors of the same names and sizes."""
    with torch.device("meta"):
        config = internvl2_2b(layout="original").family.hf_config()
    check_config(beside(tmp_path, config), two)
    with pytest.raises(ModelError, match="template is 'internvl2_5', the model has 'internlm2-chat'"):
        check_config(beside(tmp_path, {**config, "template": "internvl2_5"}), two)


def test_llava_med_and_huatuogpt_name_their_builders(llava: ModelFamily, tmp_path: Path) -> None:
    for kind, builder in (("llava_mistral", "llava_med_v1_5_7b"), ("llava_qwen2", "huatuogpt_vision_7b")):
        with pytest.raises(ModelError, match=rf"set model._component_ to medtune.models.llava.{builder} "):
            check_config(beside(tmp_path, {"model_type": kind}), llava)


@pytest.mark.parametrize("size", PUBLISHED_3)
def test_every_size_of_internvl3_names_its_builder(size: str, two: ModelFamily, tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=rf"set model._component_ to medtune.models.internvl.internvl3_{size.lower()} "
    ):
        check_config(beside(tmp_path, internvl3(size)), two)


def test_a_size_without_a_builder_names_the_one_that_reads_the_folder(two: ModelFamily, tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"set model._component_ to medtune.models.from_checkpoint \(or its lora_ form\)"
    ):
        config = internvl3("14B")
        config["text_config"]["num_hidden_layers"] = 40
        check_config(beside(tmp_path, config), two)


def test_a_model_that_nothing_builds_is_named(llava: ModelFamily, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"LLaVA-NeXT \(type llava_next\) has other image features"):
        check_config(beside(tmp_path, {"model_type": "llava_next"}), llava)


def test_the_authors_llava_config_is_compared_in_their_words(llava: ModelFamily, tmp_path: Path) -> None:
    theirs = {"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"], "hidden_size": 4096}
    check_config(beside(tmp_path, {**theirs, "mm_vision_select_layer": -2, "vocab_size": 32000}), llava)
    with pytest.raises(ModelError, match="mm_vision_select_layer is -1"):
        check_config(beside(tmp_path, {**theirs, "mm_vision_select_layer": -1}), llava)
    with pytest.raises(ModelError, match="hidden_size is 5120"):
        check_config(beside(tmp_path, {**theirs, "hidden_size": 5120}), llava)


def test_quantised_weights_are_named(llava: ModelFamily, tmp_path: Path) -> None:
    config = {**llava.hf_config(), "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    with pytest.raises(ModelError, match=r"quantised weights \(bitsandbytes\)"):
        check_config(beside(tmp_path, config), llava)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_an_export_names_the_type_that_it_holds(dtype: torch.dtype, tmp_path: Path) -> None:
    model = BUILDERS["llava"]()
    source = save_hf(model.state_dict(), model.family, tmp_path / "base")
    config = json.loads((source / "config.json").read_text())
    config |= {"torch_dtype": "float64", "text_config": {**config["text_config"], "dtype": "float64"}}
    (source / "config.json").write_text(json.dumps(config))
    state = {key: tensor.to(dtype) for key, tensor in model.state_dict().items()}
    out = save_hf(state, model.family, tmp_path / "out", source)
    written = json.loads((out / "config.json").read_text())
    name = str(dtype).removeprefix("torch.")
    assert (written["torch_dtype"], written["text_config"]["dtype"]) == (name, name)
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {dtype}


def test_an_export_of_mixed_types_has_the_widest_and_rounds_nothing(tmp_path: Path) -> None:
    model = BUILDERS["llava"]()
    state = model.state_dict()
    state["decoder.output.weight"] = state["decoder.output.weight"].bfloat16()
    out = save_hf(state, model.family, tmp_path)
    again = load_weights(out, model)
    assert {tensor.dtype for tensor in again.values()} == {torch.float32}
    assert all(torch.equal(again[key], tensor.float()) for key, tensor in state.items())
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "float32"


def test_transformers_takes_the_named_type(tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    model = BUILDERS["llava"]()
    state = {key: tensor.bfloat16() for key, tensor in model.state_dict().items()}
    out = save_hf(state, model.family, tmp_path)
    assert AutoModelForImageTextToText.from_pretrained(out, dtype="auto").dtype == torch.bfloat16
