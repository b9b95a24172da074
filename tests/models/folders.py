"""Tiny downloaded folders of every family: as transformers' ``save_pretrained`` writes them, and as authors do."""

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MllamaConfig,
    MllamaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from medtune.models.from_checkpoint import family_of
from medtune.models.internvl._component_builders import internvl_vlm
from medtune.models.internvl._shape import InternVLShape
from medtune.models.llava._component_builders import llava_vlm
from medtune.models.mini import train_mini_tokenizer
from medtune.models.weights import save_hf
from tests.models.conftest import SENTENCES
from tests.models.tiny_gemma import processor
from tests.models.tiny_tokenizers import llama2, qwen2

TEXT = {
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "rope_parameters": {"rope_theta": 50_000.0, "rope_type": "default"}, "rms_norm_eps": 1e-6,
}  # fmt: skip
CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 3,
    "num_attention_heads": 4, "image_size": 28, "patch_size": 7,
}  # fmt: skip
INTERNVIT = {
    "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "attention_bias": True, "image_size": [28, 28], "patch_size": [7, 7],
}  # fmt: skip
GEMMA_MARKS = {
    "image_token_index": "<image_soft_token>",
    "boi_token_index": "<start_of_image>",
    "eoi_token_index": "<end_of_image>",
}
VICUNA_TEMPLATE = "{% for m in messages %}{{ m.role }} USER: ASSISTANT:{% endfor %}"
CHATML_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}{% endfor %}"


def randomise(model: nn.Module, tied: bool = False) -> nn.Module:
    """Every weight random, norms and biases included."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = parameter.ndim < 2 and "norm" in name and "bias" not in name or "lambda" in name
            wide = parameter.ndim < 2 or ("embed" in name and not tied)
            parameter.copy_(1 + 0.3 * noise if is_norm else noise * (0.4 if wide else 0.15))
    return model


def _saved(model: Any, folder: Path, tied: bool = False) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        randomise(model, tied).save_pretrained(folder)
    return folder


def internvl_hf(folder: Path, tied: bool = False, kind: str = "qwen2") -> Path:
    tokenizer = qwen2(folder)
    text = {**TEXT, "model_type": kind, "vocab_size": len(tokenizer) + 3, "tie_word_embeddings": tied}
    image = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    config = InternVLConfig(text_config=text, vision_config=INTERNVIT, image_token_id=image, tie_word_embeddings=tied)
    return _saved(InternVLForConditionalGeneration(config), folder, tied)


def internvl_original(folder: Path, template: str = "internlm2-chat") -> Path:
    """OpenGVLab's layout, which transformers opens by the folder's own code only."""
    internlm2 = template == "internlm2-chat"
    if internlm2:
        marks = ("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")
        size = len(llama2(folder, legacy=True, marks=marks))
        (folder / "tokenizer.json").unlink()
        image = json.loads((folder / "added_tokens.json").read_text())["<IMG_CONTEXT>"]
    else:
        size, image = _byte_pair_files(folder)
    shape = InternVLShape(
        image_size=28, patch_size=7, vision_dim=32, vision_layers=3, vision_heads=4, vision_mlp_dim=96,
        decoder="internlm2" if internlm2 else "qwen2", dim=48, layers=3, heads=4, kv_heads=2, mlp_dim=80,
        vocab_size=size + 1, image_id=image, bos_id=1, eos_id=2, pad_id=0, norm_eps=1e-6, rope_base=50_000.0,
        max_seq_len=1024, template=template,  # type: ignore[arg-type]
    )  # fmt: skip
    model = internvl_vlm("tiny", shape, layout="original")
    randomise(model)
    return save_hf(model.state_dict(), model.family, folder)


def _byte_pair_files(folder: Path) -> tuple[int, int]:
    """Qwen2's tokenizer as OpenGVLab's folders have it: vocab.json and merges.txt, without tokenizer.json."""
    tokenizer = qwen2(folder)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    (folder / "tokenizer.json").unlink()
    vocab = content["model"]["vocab"]
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    pairs = [" ".join(pair) if isinstance(pair, list) else pair for pair in content["model"]["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(pairs) + "\n", encoding="utf-8")
    added = {entry["content"]: entry["id"] for entry in content["added_tokens"]}
    (folder / "added_tokens.json").write_text(json.dumps(added), encoding="utf-8")
    listed = {str(e["id"]): {"content": e["content"], "special": e["special"]} for e in content["added_tokens"]}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": listed}), encoding="utf-8")
    return len(tokenizer), added["<IMG_CONTEXT>"]


def llava_hf(folder: Path, kind: str = "llama", tied: bool = False) -> Path:
    if kind == "qwen2":
        tokenizer = qwen2(folder)
        image, size, template = len(tokenizer), len(tokenizer) + 2, CHATML_TEMPLATE
    else:
        tokenizer = llama2(folder, legacy=False)
        image, size, template = tokenizer.convert_tokens_to_ids("<image>"), len(tokenizer) + 2, VICUNA_TEMPLATE
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({"legacy": False, "chat_template": template}))
    extra = {"sliding_window": None} if kind == "mistral" else {}
    text = {**TEXT, **extra, "model_type": kind, "vocab_size": size, "tie_word_embeddings": tied}
    config = LlavaConfig(text_config=text, vision_config=CLIP, image_token_index=image, tie_word_embeddings=tied)
    return _saved(LlavaForConditionalGeneration(config), folder, tied)


def llava_original(folder: Path, kind: str) -> Path:
    """The LLaVA authors' layout: of LLaVA-1.5, LLaVA-Med v1.5 or HuatuoGPT-Vision."""
    made = llava_hf(folder / "hf", kind)  # for its shape
    _, shape, _ = family_of(made)
    size = len(qwen2(folder) if kind == "qwen2" else llama2(folder, legacy=True, marks=()))
    own = replace(shape, vocab_size=-(-(size + 2) // 64) * 64, image_id=size)
    model = llava_vlm("tiny", own, layout="original")
    randomise(model)
    save_hf(model.state_dict(), model.family, folder)
    for file in sorted((folder / "hf").iterdir()):
        file.unlink()
    (folder / "hf").rmdir()
    return folder


def mllama_hf(folder: Path) -> Path:
    vocabulary = train_mini_tokenizer(SENTENCES, 340, folder).vocab_size
    text = {
        **{key: value for key, value in TEXT.items() if key != "rope_parameters"},
        "vocab_size": vocabulary, "num_hidden_layers": 6, "cross_attention_layers": [1, 4], "rms_norm_eps": 1e-5,
        "bos_token_id": vocabulary - 7, "eos_token_id": vocabulary - 6, "pad_token_id": vocabulary - 5,
        "rope_parameters": {
            "rope_theta": 500_000.0, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 4, "num_global_layers": 2,
        "attention_heads": 4, "image_size": 28, "patch_size": 7, "max_num_tiles": 4, "vision_output_dim": 96,
        "intermediate_layers_indices": [1, 3],
    }  # fmt: skip
    config = MllamaConfig(text_config=text, vision_config=vision, image_token_index=vocabulary)
    return _saved(MllamaForConditionalGeneration(config), folder)


def qwen2_5_vl_hf(folder: Path, tied: bool = False) -> Path:
    tokenizer = qwen2(folder)
    file, names = folder / "tokenizer.json", ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
    content = file.read_text(encoding="utf-8")
    for ours, theirs in zip(("<img>", "</img>", "<IMG_CONTEXT>"), names, strict=True):
        content = content.replace(json.dumps(ours), json.dumps(theirs))
    file.write_text(content, encoding="utf-8")
    start, end, image = tokenizer.convert_tokens_to_ids(["<img>", "</img>", "<IMG_CONTEXT>"])
    rope = {"rope_theta": 50_000.0, "rope_type": "default", "type": "mrope", "mrope_section": [2, 2, 2]}
    text = {**TEXT, "vocab_size": len(tokenizer) + 3, "rope_parameters": rope, "tie_word_embeddings": tied}
    vision = {
        "depth": 3, "hidden_size": 48, "intermediate_size": 44, "num_heads": 3, "out_hidden_size": 48,
        "fullatt_block_indexes": [1],
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=image, video_token_id=image + 1,
        vision_start_token_id=start, vision_end_token_id=end, tie_word_embeddings=tied,
    )  # fmt: skip
    return _saved(Qwen2_5_VLForConditionalGeneration(config), folder, tied)


def gemma3_hf(folder: Path) -> Path:
    tokenizer = processor(folder, 42, 9).tokenizer
    marks = {key: tokenizer.convert_tokens_to_ids(token) for key, token in GEMMA_MARKS.items()}
    text = {
        **{key: value for key, value in TEXT.items() if key != "rope_parameters"},
        "vocab_size": len(tokenizer) + 3, "head_dim": 14, "query_pre_attn_scalar": 23, "sliding_window": 12,
        "num_hidden_layers": 7, "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }  # fmt: skip
    vision = {
        "hidden_size": 36, "intermediate_size": 52, "num_hidden_layers": 3, "num_attention_heads": 3,
        "image_size": 42, "patch_size": 7, "vision_use_head": False,
    }  # fmt: skip
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=9, **marks)
    model = randomise(Gemma3ForConditionalGeneration(config), tied=True)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, parameter in model.named_parameters():
            if "norm" in name and "vision_tower" not in name:
                parameter.sub_(1)  # Gemma's norms add one
        model.save_pretrained(folder)
    return folder


FOLDERS: dict[str, Callable[[Path], Path]] = {
    "InternVL, Qwen2": internvl_hf,
    "InternVL, Qwen2, tied": lambda folder: internvl_hf(folder, tied=True),
    "InternVL, OpenGVLab's InternLM2": internvl_original,
    "InternVL, OpenGVLab's 2.5": lambda folder: internvl_original(folder, "internvl2_5"),
    "InternVL, OpenGVLab's 2-1B": lambda folder: internvl_original(folder, "Hermes-2"),
    "LLaVA, Llama": llava_hf,
    "LLaVA, Mistral": lambda folder: llava_hf(folder, "mistral"),
    "LLaVA, Qwen2": lambda folder: llava_hf(folder, "qwen2"),
    "LLaVA, Qwen2, tied": lambda folder: llava_hf(folder, "qwen2", tied=True),
    "LLaVA, authors' Llama": lambda folder: llava_original(folder, "llama"),
    "LLaVA, authors' Mistral": lambda folder: llava_original(folder, "mistral"),
    "LLaVA, authors' Qwen2": lambda folder: llava_original(folder, "qwen2"),
    "Llama-3.2-Vision": mllama_hf,
    "Qwen2.5-VL": qwen2_5_vl_hf,
    "Qwen2.5-VL, tied": lambda folder: qwen2_5_vl_hf(folder, tied=True),
    "Gemma 3": gemma3_hf,
}
"""Case -> what fills an empty folder; the owner of a family adds its own here."""

# Files as they are published, as far as they are compared: sizes of Qwen2.5 and InternLM2 in InternVL2 to 3.
SIZES = {
    "InternVL2-1B": ("qwen2", 896, 24, 14, 2, 4864, 151_655, "Hermes-2"),
    "InternVL2-2B": ("internlm2", 2048, 24, 16, 8, 8192, 92_553, "internlm2-chat"),
    "InternVL2-8B": ("internlm2", 4096, 32, 32, 8, 14_336, 92_553, "internlm2-chat"),
    "InternVL2_5-1B": ("qwen2", 896, 24, 14, 2, 4864, 151_674, "internvl2_5"),
    "InternVL2_5-2B": ("internlm2", 2048, 24, 16, 8, 8192, 92_553, "internvl2_5"),
    "InternVL2_5-4B": ("qwen2", 2048, 36, 16, 2, 11_008, 151_674, "internvl2_5"),
    "InternVL2_5-8B": ("internlm2", 4096, 32, 32, 8, 14_336, 92_553, "internvl2_5"),
    "InternVL3-1B": ("qwen2", 896, 24, 14, 2, 4864, 151_674, "internvl2_5"),
    "InternVL3-2B": ("qwen2", 1536, 28, 12, 2, 8960, 151_674, "internvl2_5"),
    "InternVL3-8B": ("qwen2", 3584, 28, 28, 4, 18_944, 151_674, "internvl2_5"),
    "InternVL3-14B": ("qwen2", 5120, 48, 40, 8, 13_824, 151_674, "internvl2_5"),
}
TOWER = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}


def published_internvl(name: str, **text: Any) -> dict:
    kind, dim, layers, heads, kv_heads, mlp, vocab, template = SIZES[name]
    return {
        "architectures": ["InternVLChatModel"], "model_type": "internvl_chat", "template": template, "ps_version": "v2",
        "force_image_size": 448, "downsample_ratio": 0.5, "use_thumbnail": True, "select_layer": -1,
        "llm_config": {
            "model_type": kind, "hidden_size": dim, "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "intermediate_size": mlp, "vocab_size": vocab,
            "rms_norm_eps": 1e-5 if kind == "internlm2" else 1e-6,
            "rope_theta": 1e6, "max_position_embeddings": 32_768, "bias": False, "tie_word_embeddings": False,
            "rope_scaling": {"type": "dynamic", "factor": 2.0}, **text,
        },
        "vision_config": {**TOWER, "image_size": 448, "patch_size": 14, "qkv_bias": True, "norm_type": "layer_norm"},
    }  # fmt: skip
