"""Every published size of InternVL2, 2.5 and 3 with InternViT-300M: its named builders, chat format and image token."""

import inspect
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchao.dtypes.nf4tensor import NF4Tensor
from transformers import InternVLConfig, InternVLForConditionalGeneration

from medtune.config import Component, check_component
from medtune.data.sample import Message, Sample
from medtune.errors import ConfigError, ModelError
from medtune.models import from_checkpoint, internvl
from medtune.models.internvl._component_builders import LoraOptions, internvl_vlm
from medtune.models.internvl._sizes import SIZES
from medtune.models.internvl._transform import INTERNVL2_SYSTEM, INTERNVL3_SYSTEM
from medtune.models.published_config import builder_of, config_differences
from tests.models.folders import SIZES as PUBLISHED
from tests.models.folders import published_internvl
from tests.models.tiny_tokenizers import CHATML_MARKS, llama2, qwen2

NAMES = {name: f"internvl{name.removeprefix('InternVL').replace('-', '_').lower()}" for name in PUBLISHED}
# In billions, as the models' pages give them.
PARAMETERS = {
    "InternVL2-1B": 0.94, "InternVL2-2B": 2.21, "InternVL2-8B": 8.08, "InternVL2_5-1B": 0.94, "InternVL2_5-2B": 2.21,
    "InternVL2_5-4B": 3.71, "InternVL2_5-8B": 8.08, "InternVL3-1B": 0.94, "InternVL3-2B": 2.09, "InternVL3-8B": 7.94,
    "InternVL3-14B": 15.12,
}  # fmt: skip
ALL = LoraOptions(parts=("vision", "decoder"), mlp=True, quantize_base=True)


def test_every_published_size_has_its_three_builders() -> None:
    assert set(NAMES.values()) == set(SIZES) and PARAMETERS.keys() == NAMES.keys()
    for name in SIZES:
        assert {name, f"lora_{name}", f"qlora_{name}"} <= set(internvl.__all__)


@pytest.mark.parametrize("published", NAMES)
def test_a_named_builder_is_the_model_of_its_folder_and_of_transformers(published: str, tmp_path: Path) -> None:
    """Names, shapes and config.json, in both layouts; the number of parameters is that of the model's page."""
    name = NAMES[published]
    (tmp_path / "config.json").write_text(json.dumps(published_internvl(published)))
    with torch.device("meta"):
        named, read = getattr(internvl, name)(layout="hf"), from_checkpoint(str(tmp_path), layout="hf")
        theirs = InternVLForConditionalGeneration(InternVLConfig(**named.family.hf_config()))
    state = named.state_dict()
    found = {named.family.live_name(key): v.shape for key, v in named.family.tune_to_hf(state).items()}
    assert found == {key: tensor.shape for key, tensor in theirs.state_dict().items()}
    assert sum(p.numel() for p in named.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert sum(size.numel() for size in found.values()) / 1e9 == pytest.approx(PARAMETERS[published], abs=0.006)
    assert {key: v.shape for key, v in read.state_dict().items()} == {key: v.shape for key, v in state.items()}
    assert config_differences(published_internvl(published), named.family) == []
    for config in (make() for make in (read.family.hf_config, *read.family.layouts)):
        assert config_differences(config, named.family) == []


@pytest.mark.parametrize("layout", ["hf", "original"])
@pytest.mark.parametrize("name", SIZES)
def test_a_folder_that_a_named_builder_wrote_is_read_as_the_same_sizes(name: str, layout: str, tmp_path: Path) -> None:
    shape = SIZES[name]
    with torch.device("meta"):
        small = internvl_vlm(name, replace(shape, layers=1, vision_layers=1), layout=layout)  # type: ignore[arg-type]
        (tmp_path / "config.json").write_text(json.dumps(small.family.hf_config()))
        again = from_checkpoint(str(tmp_path))
    assert again.image_id == small.image_id == shape.image_id
    assert again.family.hf_config() == small.family.hf_config()


@pytest.mark.parametrize("name", SIZES)
def test_a_config_names_its_builder(name: str) -> None:
    """InternVL2.5-1B and InternVL3-1B, of one shape, by the layout in which they are published."""
    with torch.device("meta"):
        config = getattr(internvl, name)().family.hf_config()
    assert builder_of(config) == f"medtune.models.internvl.{name}"


@pytest.mark.parametrize("name", SIZES)
def test_its_builders_with_adapters_take_the_same_arguments_and_have_adapters_alone_to_train(name: str) -> None:
    lora, qlora = getattr(internvl, f"lora_{name}"), getattr(internvl, f"qlora_{name}")
    assert lora.__name__ == f"lora_{name}" and name in qlora.__doc__ and "lora_parts" in lora.__doc__
    assert inspect.signature(lora).parameters.keys() == inspect.signature(internvl.lora_internvl3_8b).parameters.keys()
    assert inspect.signature(qlora).parameters["quantize_base"].default is True
    for path in (f"lora_{name}", f"qlora_{name}"):
        component = {"_component_": f"medtune.models.internvl.{path}"}
        check_component(Component({**component, "lora_rank": 4, "layout": "hf"}), "model")
        with pytest.raises(ConfigError, match="takes no 'lora_rnk'; did you mean 'lora_rank'"):
            check_component(Component({**component, "lora_rnk": 4}), "model")
    with torch.device("meta"):
        model = lora(lora_rank=2)
    trained = {key for key, p in model.named_parameters() if p.requires_grad}
    assert trained == set(model.parts()["adapter.decoder"])
    assert len(trained) == 2 * 7 * SIZES[name].layers


@pytest.mark.parametrize("name", SIZES)
def test_every_map_of_a_size_fits_the_blocks_of_nf4(name: str) -> None:
    with torch.device("meta"):
        model = internvl_vlm(name, replace(SIZES[name], layers=1, vision_layers=1), layout="hf", lora=ALL)
    maps = {key.rsplit(".", 2)[1] for key, p in model.named_parameters() if isinstance(p.data, NF4Tensor)}
    assert maps == {"q_proj", "k_proj", "v_proj", "output_proj", "w1", "w2", "w3"}


# -- chat formats and image tokens ------------------------------------------------------------------------------------

QWEN2_0_5B = {"<|endoftext|>": 151_643, "<|im_start|>": 151_644, "<|im_end|>": 151_645}
QWEN_IDS = {
    "internvl2_1b": {**QWEN2_0_5B, "<img>": 151_646, "</img>": 151_647, "<IMG_CONTEXT>": 151_648},
    "qwen2.5": {**QWEN2_0_5B, "<img>": 151_665, "</img>": 151_666, "<IMG_CONTEXT>": 151_667},
}
INTERNLM_IDS = {
    "<|im_end|>": 92_542,
    "<|im_start|>": 92_543,
    "<img>": 92_544,
    "</img>": 92_545,
    "<IMG_CONTEXT>": 92_546,
}
# Builder -> its transform, and how its conversation begins and ends a turn in OpenGVLab's conversation.py.
CHATS: dict[str, tuple[Any, str, str]] = {
    "internvl2_1b": (internvl.internvl2_1b_transform, INTERNVL2_SYSTEM, "<|im_end|>"),
    "internvl2_2b": (internvl.internvl2_transform, INTERNVL2_SYSTEM, "<|im_end|>"),
    "internvl2_8b": (internvl.internvl2_transform, INTERNVL2_SYSTEM, "<|im_end|>"),
    "internvl2_5_1b": (internvl.internvl2_5_transform, INTERNVL3_SYSTEM, "<|im_end|>\n"),
    "internvl2_5_2b": (internvl.internvl2_5_transform, INTERNVL3_SYSTEM, "<|im_end|>\n"),
    "internvl2_5_4b": (internvl.internvl2_5_transform, INTERNVL3_SYSTEM, "<|im_end|>\n"),
    "internvl2_5_8b": (internvl.internvl2_5_transform, INTERNVL3_SYSTEM, "<|im_end|>\n"),
    "internvl3_1b": (internvl.internvl3_transform, INTERNVL3_SYSTEM, "<|im_end|>\n"),
    "internvl3_2b": (internvl.internvl3_transform, INTERNVL3_SYSTEM, "<|im_end|>\n"),
    "internvl3_8b": (internvl.internvl3_transform, INTERNVL3_SYSTEM, "<|im_end|>\n"),
    "internvl3_14b": (internvl.internvl3_transform, INTERNVL3_SYSTEM, "<|im_end|>\n"),
}


def tokenizer_folder(folder: Path, kind: str) -> Path:
    """A tiny tokenizer of the kind of a size, whose special tokens have the published ids."""
    if kind == "internlm2":
        llama2(folder, legacy=True, marks=tuple(CHATML_MARKS))
        (folder / "tokenizer.json").unlink()  # the published folders have none
        (folder / "added_tokens.json").write_text(json.dumps(INTERNLM_IDS))
        return folder
    qwen2(folder)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    for entry in content["added_tokens"]:
        entry["id"] = QWEN_IDS[kind].get(entry["content"], 151_600)
        content["model"]["vocab"][entry["content"]] = entry["id"]
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: tokenizer_folder(tmp_path_factory.mktemp("t"), kind) for kind in ("internlm2", *QWEN_IDS)}


def kind_of(name: str) -> str:
    return "internlm2" if SIZES[name].decoder == "internlm2" else name if name in QWEN_IDS else "qwen2.5"


@pytest.mark.parametrize("name", SIZES)
def test_its_transform_writes_the_published_conversation_with_its_image_token(name: str, tokenizers: Any) -> None:
    make, system, end = CHATS[name]
    folder = tokenizers[kind_of(name)]
    transform = make(folder, max_num_tiles=1)
    turns = (Message("user", "<image>\nWhat is the cell size?"), Message("assistant", "small"))
    found = transform(Sample("s1", ("a.png",), turns), [Image.new("RGB", (30, 40))])
    shape = SIZES[name]
    assert found["tokens"].count(shape.image_id) == 256 and transform.image_id == shape.image_id
    expected = f"<|im_start|>system\n{system}{end}<|im_start|>user\n<img></img>\nWhat is the cell size?{end}"
    assert shown(transform, found["tokens"]) == expected + f"<|im_start|>assistant\nsmall{end}"
    assert (found["tokens"][0] == 1) == (shape.decoder == "internlm2"), "<s> begins InternLM2's texts alone"
    assert transform.tokenizer.special_id("<|im_end|>") in transform.stop_ids


def shown(transform: Any, tokens: list[int]) -> str:
    """The text of tokens with ChatML's and the image's marks, without the image's features and a leading ``<s>``."""
    marks = {transform.tokenizer.special_id(m): m for m in ("<|im_start|>", "<|im_end|>", "<img>", "</img>")}
    text, run = "", []
    for token in [*tokens, -1]:
        if token in marks or token == -1:
            text += transform.decode([t for t in run if t not in (1, transform.image_id)]) if run else ""
            text, run = text + marks.get(token, ""), []
        else:
            run.append(token)
    return re.sub(r"(?<=<\|im_start\|>) ", "", text)


def test_a_tokenizer_of_another_size_is_refused_by_its_image_token(tokenizers: Any) -> None:
    with pytest.raises(ModelError, match="the tokenizer of .* has 151,668 tokens and the model 151,655: it belongs to"):
        internvl.internvl2_1b_transform(tokenizers["qwen2.5"], max_num_tiles=1)
    with pytest.raises(ModelError, match=r"<IMG_CONTEXT> is token 151648 of this tokenizer, but 151667 of the model"):
        internvl.internvl3_transform(tokenizers["internvl2_1b"], max_num_tiles=1)
    with pytest.raises(ModelError, match=r"<IMG_CONTEXT> is token 151648 of this tokenizer, but 151667 of the model"):
        internvl.internvl2_5_transform(tokenizers["internvl2_1b"], max_num_tiles=1)
