"""The mini model of every family, as the matrix of methods and families builds it; one list for all of its tests.

The owner of a family adds an entry here and a row to the table "Methods and families" of docs/models.md.
"""

from dataclasses import dataclass, field
from typing import Any

MINI = "medtune.models.mini."
SIZES = {"vocab_size": 1024, "embed_dim": 16, "vision_layers": 2, "decoder_layers": 2, "image_size": 16}
LORA = {"lora_attn_modules": ["q_proj", "v_proj"], "apply_lora_to_mlp": True, "lora_rank": 2, "lora_alpha": 8}


@dataclass(frozen=True)
class MiniFamily:
    """One family.

    Attributes:
        title: its name in the documents' table.
        plain: the component of its mini model without adapters.
        adapted: the component with adapters in its decoder.
        transform: the component of its transform; the path of the tokenizer is added.
        not_built: method -> why this family does not have it; the matrix then shows "not built".
    """

    title: str
    plain: dict[str, Any]
    adapted: dict[str, Any]
    transform: dict[str, Any]
    not_built: dict[str, str] = field(default_factory=dict)


def _mini(title: str, name: str, transform: str, model: dict[str, Any] | None = None, **images: Any) -> MiniFamily:
    sizes = {**SIZES, **(model or {})}
    return MiniFamily(
        title,
        {"_component_": f"{MINI}{name}", **sizes},
        {"_component_": f"{MINI}lora_{name}", **sizes, **LORA, "lora_parts": ["decoder"]},
        {"_component_": f"{MINI}{transform}", "image_size": 16, **images},
    )


def _without_image_size(family: MiniFamily) -> MiniFamily:
    """For a family whose images keep their own sizes."""
    parts = (family.plain, family.adapted, family.transform)
    kept = ({key: value for key, value in part.items() if key != "image_size"} for part in parts)
    return MiniFamily(family.title, *kept, family.not_built)


FAMILIES: dict[str, MiniFamily] = {
    "llama3_2_vision": _mini("Llama-3.2-Vision", "mini_vlm", "mini_transform"),
    "internvl_internlm2": _mini(
        "InternVL, InternLM2", "mini_internvl", "mini_internvl_transform", {"decoder": "internlm2"}, max_num_tiles=2
    ),
    "internvl_qwen2": _mini(
        "InternVL, Qwen2", "mini_internvl", "mini_internvl_transform", {"decoder": "qwen2"}, max_num_tiles=2
    ),
    "llava": _mini("LLaVA, Llama", "mini_llava", "mini_llava_transform"),
    "llava_mistral": _mini("LLaVA, Mistral", "mini_llava", "mini_llava_transform", {"decoder": "mistral"}),
    "llava_qwen2": _mini("LLaVA, Qwen2", "mini_llava", "mini_llava_transform", {"decoder": "qwen2"}),
    "sq_llava": _mini("SQ-LLaVA", "mini_sq_llava", "mini_llava_transform"),
    "qwen2_5_vl": _without_image_size(
        _mini(
            "Qwen2.5-VL",
            "mini_qwen2_5_vl",
            "mini_qwen2_5_vl_transform",
            {"patch_size": 4, "heads": 2},
            patch_size=4,
            min_pixels=256,
            max_pixels=512,
        ),
    ),
    "gemma3": _mini("Gemma 3", "mini_gemma3", "mini_gemma3_transform"),
}

METHODS = ("SFT", "InstFree", "VITask", "DPO", "routing")
