"""Folders that medtune cannot build, or that contradict themselves: one sentence that says what to do."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from medtune.errors import ModelError
from medtune.models import from_checkpoint, from_checkpoint_transform
from medtune.models.weights import check_weights
from tests.models.folders import published_internvl


# Not covered, and refused by name: what the folder is and what to do.
def changed(config: dict, key: str, value: Any) -> dict:
    first, _, rest = key.partition(".")
    return {**config, first: changed(config[first], rest, value) if rest else value}


BASE = published_internvl("InternVL2_5-8B")
LLAVA = {
    "model_type": "llava_llama",
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
}
REFUSED: dict[str, tuple[dict, str]] = {
    "InternVL2-4B": (
        changed(BASE, "llm_config.model_type", "phi3"),
        "this is InternVL2-4B .* take a size of 1B to 14B",
    ),
    "InternVL3-9B": (changed(BASE, "llm_config.model_type", "internlm3"), "this is InternVL3-9B"),
    "InternVL3.5": (changed(BASE, "llm_config.model_type", "qwen3"), "this is InternVL3.5 "),
    "the 6B tower": (changed(BASE, "vision_config.norm_type", "rms_norm"), "vision transformer of 6B parameters"),
    "an InternVL before version 2": (changed(BASE, "ps_version", "v1"), "before version 2"),
    "another chat format": (changed(BASE, "template", "phi3-chat"), "chat format 'phi3-chat' is not known"),
    "scaled positions": (
        changed(BASE, "llm_config.rope_scaling", {"type": "linear", "factor": 2.0}),
        r"positions are scaled \(linear\)",
    ),
    "another pixel shuffle": (changed(BASE, "downsample_ratio", 0.25), "downsample_ratio is 0.25, the model has 0.5"),
    "LLaVA-NeXT": ({"model_type": "llava_next"}, r"LLaVA-NeXT \(type llava_next\) .* no builder; predict"),
    "LLaVA-1.6 of the authors": ({**LLAVA, "image_aspect_ratio": "anyres"}, "this is a LLaVA-NeXT"),
    "FastVLM": (
        {**LLAVA, "model_type": "llava_qwen2", "mm_vision_tower": "mobileclip_l_1024"},
        "vision tower 'mobileclip_l_1024'",
    ),
    "another projection": ({**LLAVA, "mm_projector_type": "linear"}, "projection of type 'linear'"),
    "SQ-LLaVA": ({**LLAVA, "mm_projector_type": "cluster"}, r"an SQ-LLaVA; set model\._component_ to .*sq_llava_7b"),
    "LLaVA with SigLIP": (
        {"model_type": "llava", "vision_config": {"model_type": "siglip_vision_model"}},
        "tower of type 'siglip_vision",
    ),
    "LLaVA with Phi-3": ({"model_type": "llava", "text_config": {"model_type": "phi3"}}, "a decoder of type 'phi3'"),
    "a text model": ({"model_type": "qwen2"}, "a model of type 'qwen2'; medtune builds "),
    "no type": ({"hidden_size": 3}, "a config.json without model_type"),
    "quantised weights": ({**LLAVA, "quantization_config": {"quant_method": "awq"}}, r"quantised weights \(awq\)"),
    "a size that is no number": (
        changed(BASE, "llm_config.hidden_size", "wide"),
        "hidden_size must be a positive whole",
    ),
    "heads that do not divide": (changed(BASE, "llm_config.num_attention_heads", 7), "7 heads of .* are not 4096 wide"),
    "no language model": ({key: BASE[key] for key in BASE if key != "llm_config"}, "config.json has no llm_config"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_covered_is_refused_by_name(case: str, tmp_path: Path) -> None:
    config, sentence = REFUSED[case]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with torch.device("meta"), pytest.raises(ModelError, match=sentence) as error:
        from_checkpoint(str(tmp_path))
    assert "\n" not in str(error.value)


def test_folders_that_are_no_models_are_told_by_what_they_are(made: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no weights at nowhere: download the model first"):
        from_checkpoint("nowhere")
    with pytest.raises(ModelError, match="holds no safetensors"):
        from_checkpoint(str(tmp_path))
    copy = tmp_path / "copy"
    shutil.copytree(made("LLaVA, Mistral"), copy)
    (copy / "config.json").unlink()
    with pytest.raises(ModelError, match=r"has no config.json, so nothing tells .* download the whole folder"):
        from_checkpoint(str(copy))
    (copy / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config.json is not JSON"):
        from_checkpoint(str(copy))
    shutil.copytree(made("LLaVA, Mistral"), copy, dirs_exist_ok=True)
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickled weights \(.bin, .pth\) can execute code"):
        from_checkpoint(str(copy))


def test_a_config_of_another_size_than_the_weights_is_found_out(made: Any, tmp_path: Path) -> None:
    folder = tmp_path / "lies"
    shutil.copytree(made("LLaVA, Mistral"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(changed(config, "text_config.intermediate_size", 96)))
    with pytest.raises(ModelError, match=r"config.json describes another model than the weights beside it"):
        check_weights(folder, from_checkpoint(str(folder)))


def test_a_tokenizer_of_another_model_is_refused(made: Any, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(made("LLaVA, Mistral"), folder)
    shutil.copy(made("InternVL, Qwen2") / "tokenizer.json", folder)
    with pytest.raises(ModelError, match=r"no token </s>|belongs to another model"):
        from_checkpoint_transform(str(folder))
    content = json.loads((made("LLaVA, Mistral") / "tokenizer.json").read_text())
    content["added_tokens"] += [{**content["added_tokens"][-1], "id": 90_000, "content": "<more>"}]
    content["model"]["vocab"]["<more>"] = 90_000
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"has 90,001 tokens and the model .*: it belongs to another model"):
        from_checkpoint_transform(str(folder))
    for file in ("tokenizer.json", "tokenizer.model"):
        (folder / file).unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer \(tokenizer.json"):
        from_checkpoint_transform(str(folder))


def test_a_chat_format_that_the_folder_does_not_tell_is_asked_for(made: Any, tmp_path: Path) -> None:
    folder = tmp_path / "silent"
    shutil.copytree(made("LLaVA, Qwen2"), folder)
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match=r"does not tell its chat format .* set transform.chat to one of vicuna"):
        from_checkpoint_transform(str(folder))
    assert from_checkpoint_transform(str(folder), chat="chatml").template.name == "chatml"


def test_options_of_another_family_are_refused_by_the_nearest_name(made: Any) -> None:
    folder = str(made("LLaVA, Mistral"))
    with pytest.raises(ModelError, match=r"\(LLaVA\) takes no 'max_num_tiles'"):
        from_checkpoint_transform(folder, max_num_tiles=2)
    with pytest.raises(ModelError, match=r"takes no 'layuot'; .*layout"):
        from_checkpoint(folder, layuot="hf")
    with pytest.raises(ModelError, match=r"layout must be one of hf, original"):
        from_checkpoint(folder, layout="other")
