"""A model, its transform and its plan from a folder alone: of every family, in every layout; and folders that lie."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from medtune.data.sample import Message, Sample
from medtune.errors import ModelError
from medtune.models import (
    from_checkpoint,
    from_checkpoint_transform,
    lora_from_checkpoint,
    qlora_from_checkpoint,
)
from medtune.models.from_checkpoint import FAMILIES
from medtune.models.llama3_2_vision import llama3_2_vision_11b, llama3_2_vision_90b
from medtune.models.llava import huatuogpt_vision_7b, llava1_5_7b, llava1_5_13b, llava_med_v1_5_7b
from medtune.models.qwen2_5_vl._images import published_inputs
from medtune.models.weights import load_weights, save_hf
from medtune.training.plan import plan
from tests.models.folders import FOLDERS, published_internvl

QUESTION = (Message("user", "What is the cell size?"), Message("assistant", "small cell size, round"))
BY_TRANSFORMERS = [case for case in FOLDERS if "authors" not in case and "OpenGVLab" not in case]
FORMATS = {
    "InternVL, Qwen2": "<|im_start|>system", "InternVL, OpenGVLab's 2-1B": "<|im_start|>system",
    "LLaVA, Mistral": "ASSISTANT:", "LLaVA, Qwen2": "<|im_start|>assistant", "LLaVA, authors' Mistral": "[/INST]",
    "Qwen2.5-VL": "<|im_start|>system", "LLaVA, authors' Qwen2": "<|assistant|>", "LLaVA, authors' Llama": "ASSISTANT:",
    "Gemma 3": "<start_of_turn>model",
}  # fmt: skip


def loaded(folder: Path, **options: Any) -> Any:
    model = from_checkpoint(str(folder), **options)
    model.load_state_dict(load_weights(folder, model))
    return model.eval()


def sample(images: int = 1) -> Sample:
    return Sample("s1", tuple("abc"[:images]), QUESTION)


def picture(width: int = 40, height: int = 30) -> Image.Image:
    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


def batch_of(transform: Any) -> dict:
    """A question with an image, one with two of other sizes, and a text alone."""
    items = [
        transform(sample(1), [picture()]),
        transform(sample(2), [picture(90, 30), picture(28, 28)]),
        transform(sample(0), []),
    ]
    return transform.collate(items)


def logits(model: Any, batch: dict) -> torch.Tensor:
    with torch.no_grad():
        h = model.hidden(batch["tokens"], model.encode(batch["vision"]), vision_mask=batch["vision_mask"])
        return model.logits(h)


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_alone_is_a_model_and_a_transform(case: str, made: Any) -> None:
    folder = made(case)
    model, transform = loaded(folder), from_checkpoint_transform(str(folder))
    batch = batch_of(transform)
    found = logits(model, batch)
    assert found[batch["padding"]].isfinite().all()
    assert model.family.about.startswith(case.partition(",")[0])
    assert ("tied" in model.family.about) == ("tied" in case)
    trained = {name for name, p in lora_from_checkpoint(str(folder), lora_rank=2).named_parameters() if p.requires_grad}
    assert trained and all(".lora_" in name and name.startswith("decoder.") for name in trained)
    if case in FORMATS:
        assert FORMATS[case] in written(transform)


def written(transform: Any) -> str:
    """The whole text of a sample, special tokens included."""
    from medtune.models.common.chat_template import with_system

    template = transform.template
    turns = with_system(QUESTION, template.default_system)
    return "".join(template.turn(m.role)[0] + m.content + template.turn(m.role)[1] for m in turns)


@pytest.mark.parametrize("case", BY_TRANSFORMERS)
def test_it_computes_what_transformers_computes(case: str, made: Any) -> None:
    folder = made(case)
    options = {"hf_rows": True} if case == "Llama-3.2-Vision" else {}
    ours, transform = loaded(folder, **options), from_checkpoint_transform(str(folder))
    theirs = AutoModelForImageTextToText.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    ).eval()
    batch = transform.collate([transform(Sample("t", (), QUESTION), [])])
    with torch.no_grad():
        expected = theirs(input_ids=batch["tokens"]).logits
        found = ours.logits(ours.hidden(batch["tokens"]))
    assert (found - expected).abs().max() < 1e-5
    if case == "Llama-3.2-Vision":
        return  # its images are compared in tests/parity; transformers reads other layers of the encoder
    batch = batch_of(transform)
    real = batch["vision"]["tiles"]
    images = batch["vision"]["images"]
    if "grid" in batch["vision"]:
        grids = batch["vision"]["grid"].flatten(0, 1)
        given = published_inputs(images.flatten(0, 1)[grids[:, 0] > 0], grids[grids[:, 0] > 0])
        given["mm_token_type_ids"] = (batch["tokens"] == transform.image_id).long()
    else:
        pixels = [images[b, i, :n] for b, row in enumerate(real) for i, n in enumerate(row) if n]
        given = {"pixel_values": torch.cat(pixels)}
    if case == "Gemma 3":
        given["token_type_ids"] = (batch["tokens"] == transform.image_id).long()
    with torch.no_grad():
        expected = theirs(input_ids=batch["tokens"], attention_mask=batch["padding"].long(), **given).logits
    keep = batch["padding"]
    assert expected[keep].abs().max() > 1
    tolerance = 3e-5 if "grid" in batch["vision"] else 1e-5  # transformers' 3D convolution rounds otherwise
    assert (logits(ours, batch) - expected)[keep].abs().max() < tolerance


@pytest.mark.parametrize(
    "case",
    [
        "LLaVA, Llama",
        "LLaVA, Mistral",
        "LLaVA, Qwen2",
        "LLaVA, Qwen2, tied",
        "InternVL, Qwen2",
        "InternVL, Qwen2, tied",
    ],
)
def test_greedy_answers_are_those_of_transformers(case: str, made: Any) -> None:
    from medtune.generation.engine.generator import Generator
    from medtune.generation.requests import Request

    folder = made(case)
    transform = from_checkpoint_transform(str(folder))
    theirs = AutoModelForImageTextToText.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    ).eval()

    class Pictures:
        name = "pictures"

        def open_images(self, asked: Sample) -> list[Image.Image]:
            return [picture(40 + 9 * i, 30) for i, _ in enumerate(asked.images)]

    asked = [Request(f"q{n}", Sample(f"q{n}", tuple("ab"[:n]), QUESTION[:1]), Pictures()) for n in range(3)]
    generator = Generator(loaded(folder), transform, batch_size=3, max_new_tokens=8)
    found = {answer.id: answer.text for answer in generator(asked)}
    for request in asked:
        item = transform(request.sample, Pictures().open_images(request.sample), inference=True)
        batch = transform.collate([item])
        images, tiles = batch["vision"]["images"], batch["vision"]["tiles"]
        pixels = torch.cat([images[0, i, :n] for i, n in enumerate(tiles[0]) if n] or [images[0, 0, :0]])
        with torch.no_grad():
            out = theirs.generate(
                input_ids=batch["tokens"], attention_mask=torch.ones_like(batch["tokens"]), max_new_tokens=8,
                **({"pixel_values": pixels} if len(pixels) else {}), do_sample=False, eos_token_id=transform.stop_ids,
                pad_token_id=transform.pad_id,
            )  # fmt: skip
        assert found[request.id] == transform.decode(out[0, batch["tokens"].shape[1] :].tolist())
    assert len(set(found.values())) > 1


@pytest.mark.parametrize(
    "case", ["InternVL, Qwen2, tied", "InternVL, OpenGVLab's InternLM2", "LLaVA, authors' Mistral"]
)
def test_an_export_is_such_a_folder_again(case: str, made: Any, tmp_path: Path) -> None:
    model = loaded(made(case))
    save_hf(model.state_dict(), model.family, tmp_path, made(case))
    again, transform = loaded(tmp_path), from_checkpoint_transform(str(tmp_path))
    batch = batch_of(from_checkpoint_transform(str(made(case))))
    assert torch.equal(batch_of(transform)["tokens"], batch["tokens"])
    assert torch.equal(logits(again, batch), logits(model, batch))


@pytest.mark.parametrize("case", FOLDERS)
def test_plan_needs_the_folder_and_nothing_by_hand(case: str, made: Any, tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    rows = [{"id": str(i), "images": ["a.png"] * i, "messages": [vars(m) for m in QUESTION]} for i in range(3)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {"checkpoint": made(case), "device": "cpu", "optimizer.fused": "null", "output_dir": tmp_path / "run"}
    changes |= {"dataset.source": tmp_path / "train.jsonl", "dataset.image_root": tmp_path}
    found = plan("sft/auto", [f"{key}={value}" for key, value in changes.items()])
    text = found.text()
    assert not found.problems, found.problems
    assert f"Model\n{case.partition(',')[0]}: decoder" in text and "M parameters" in text
    assert "adapter.decoder" in text


@pytest.mark.parametrize(
    "build",
    [llava1_5_7b, llava1_5_13b, llava_med_v1_5_7b, huatuogpt_vision_7b, llama3_2_vision_11b, llama3_2_vision_90b],
)
@pytest.mark.parametrize("layout", ["hf", "original"])
def test_other_named_builders_agree_with_the_shapes_of_their_configs(build: Any, layout: str, tmp_path: Path) -> None:
    options = {} if "llama3_2" in build.__name__ else {"layout": layout}
    with torch.device("meta"):
        named = build(**options)
        (tmp_path / "config.json").write_text(json.dumps(named.family.hf_config()))
        found = from_checkpoint(str(tmp_path))
    assert found.family.hf_config() == named.family.hf_config()
    assert {k: v.shape for k, v in found.state_dict().items()} == {k: v.shape for k, v in named.state_dict().items()}


def test_sizes_that_llava_hfs_file_leaves_out_are_llamas(tmp_path: Path) -> None:
    """llava-1.5-7b-hf's text_config names neither width nor depth."""
    vision = {"model_type": "clip_vision_model", "intermediate_size": 4096, "image_size": 336, "patch_size": 14}
    vision |= {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 24}
    text = {"model_type": "llama", "rms_norm_eps": 1e-05, "max_position_embeddings": 4096, "vocab_size": 32_064}
    config = {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "image_token_index": 32_000}
    (tmp_path / "config.json").write_text(json.dumps({**config, "text_config": text, "vision_config": vision}))
    with torch.device("meta"):
        found, named = from_checkpoint(str(tmp_path)), llava1_5_7b()
    assert {k: v.shape for k, v in found.state_dict().items()} == {k: v.shape for k, v in named.state_dict().items()}


def test_embeddings_are_tied_where_the_files_are(made: Any, tmp_path: Path) -> None:
    """As transformers does: an output layer with other values is kept, the same table twice is one."""
    folder = tmp_path / "tied"
    shutil.copytree(made("LLaVA, Qwen2, tied"), folder)
    file = folder / "model.safetensors"
    state = load_file(file)
    words = next(name for name in state if name.endswith("embed_tokens.weight"))
    head = "language_model.lm_head.weight"
    plain = loaded(folder).state_dict()
    save_file({**state, head: state[words].clone()}, file)
    assert loaded(folder).state_dict().keys() == plain.keys(), "a second copy of the table"
    save_file({**state, head: state[words] + 1}, file)
    model = loaded(folder)
    assert "tied" not in model.family.about
    assert torch.equal(model.state_dict()["decoder.output.weight"], state[words] + 1)
    save_file(state, file)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["tie_word_embeddings"] = config["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"an output layer of its own .* the files hold none; finish the download"):
        from_checkpoint(str(folder))


def test_qlora_quantises_the_decoder_of_any_folder(tmp_path: Path) -> None:
    config = published_internvl("InternVL3-2B", num_hidden_layers=1)
    config["vision_config"]["num_hidden_layers"] = 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        model = qlora_from_checkpoint(str(tmp_path), lora_parts=["decoder"])
    kinds = {type(p).__name__ for name, p in model.named_parameters() if name.endswith("q_proj.weight")}
    assert "NF4Tensor" in kinds


def test_every_family_of_the_table_can_be_imported() -> None:
    import importlib

    assert {importlib.import_module(module).FAMILY.title for module in FAMILIES.values()} >= {"InternVL", "LLaVA"}
