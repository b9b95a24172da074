"""The published sizes of InternVL2, 2.5 and 3 with InternViT-300M, from their config.json files."""

from dataclasses import replace
from typing import Any

from medtune.models.internvl._shape import InternVLShape

# All sizes use InternViT-300M-448px.
_VISION: dict[str, Any] = {
    "image_size": 448,
    "patch_size": 14,
    "vision_dim": 1024,
    "vision_layers": 24,
    "vision_heads": 16,
    "vision_mlp_dim": 4096,
}
_INTERNLM2: dict[str, Any] = {
    "decoder": "internlm2",
    "kv_heads": 8,
    "vocab_size": 92_553,
    "image_id": 92_546,
    "bos_id": 1,
    "eos_id": 92_542,
    "pad_id": 2,
    "norm_eps": 1e-5,
}
_QWEN2: dict[str, Any] = {
    "decoder": "qwen2",
    "vocab_size": 151_674,
    "image_id": 151_667,
    "bos_id": 151_643,
    "eos_id": 151_645,
    "pad_id": 151_643,
    "norm_eps": 1e-6,
}
# Decoders: InternLM2-1.8B and 2.5-1.8B, InternLM2.5-7B; Qwen2.5 of 0.5B, 1.5B, 3B, 7B and 14B.
_LM_2B = InternVLShape(**_VISION, **_INTERNLM2, dim=2048, layers=24, heads=16, mlp_dim=8192)
_LM_8B = InternVLShape(**_VISION, **_INTERNLM2, dim=4096, layers=32, heads=32, mlp_dim=14_336)
_Q_1B = InternVLShape(**_VISION, **_QWEN2, dim=896, layers=24, heads=14, kv_heads=2, mlp_dim=4864)
_Q_2B = InternVLShape(**_VISION, **_QWEN2, dim=1536, layers=28, heads=12, kv_heads=2, mlp_dim=8960)
_Q_4B = InternVLShape(**_VISION, **_QWEN2, dim=2048, layers=36, heads=16, kv_heads=2, mlp_dim=11_008)
_Q_8B = InternVLShape(**_VISION, **_QWEN2, dim=3584, layers=28, heads=28, kv_heads=4, mlp_dim=18_944)
_Q_14B = InternVLShape(**_VISION, **_QWEN2, dim=5120, layers=48, heads=40, kv_heads=8, mlp_dim=13_824)

SIZES: dict[str, InternVLShape] = {
    # Qwen2's tokenizer has fewer tokens than Qwen2.5's, and InternVL2's chat format another name for it
    "internvl2_1b": replace(_Q_1B, vocab_size=151_655, image_id=151_648, template="Hermes-2"),
    "internvl2_2b": _LM_2B,
    "internvl2_8b": _LM_8B,
    "internvl2_5_1b": _Q_1B,
    "internvl2_5_2b": replace(_LM_2B, template="internvl2_5"),
    "internvl2_5_4b": _Q_4B,
    "internvl2_5_8b": replace(_LM_8B, template="internvl2_5"),
    "internvl3_1b": _Q_1B,
    "internvl3_2b": _Q_2B,
    "internvl3_8b": _Q_8B,
    "internvl3_14b": _Q_14B,
}
"""Name of a builder -> sizes of its model."""
