"""Names that vLLM looks for, from its source; vLLM itself is not run here, because it needs another torch.

Read from the releases 0.10.2, 0.11.0 and 0.33.0, which agree in everything below except where it is said:
``model_executor/models/gemma3_mm.py``, ``gemma3.py``, ``siglip.py``, ``qwen2_5_vl.py``, ``qwen2.py``, ``llava.py``,
``clip.py``, ``interns1.py`` and ``interns1_vit.py`` (InternVL in transformers' layout), ``internvl.py``,
``intern_vit.py``, ``internlm2.py``, and ``lora/utils.py``, ``lora/peft_helper.py``.
"""

import re
from dataclasses import dataclass

BOTH = ("weight", "bias")


def params(prefix: str, *names: str, kinds: tuple[str, ...] = ("weight",)) -> set[str]:
    """Names of parameters of modules below a prefix."""
    return {f"{prefix}{name}.{kind}" for name in names for kind in kinds}


@dataclass(frozen=True)
class Architecture:
    """One class of vLLM.

    Adapters in PEFT's format of CLIP and SigLIP have transformers' newer names, without ``vision_model.``, which are
    names of no module there.

    Attributes:
        renames: ``hf_to_vllm_mapper``: prefixes that it replaces, one after the other, in weights and in adapters.
        parameters: every parameter after that, ``N`` for a layer's number, as files have them: q, k and v, and gate and
            up, are joined on loading.
        adapters: modules of the language model that take adapters; those of tower and connector are refused or left out
            (0.33.0 takes some if ``enable_tower_connector_lora`` is set).
    """

    renames: tuple[tuple[str, str], ...]
    parameters: frozenset[str]
    adapters: frozenset[str]


_NEW = (
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("lm_head.", "language_model.lm_head."),
)
_TEXT, _LAYER = "language_model.model.", "language_model.model.layers.N."
_MAPS = (*(f"self_attn.{name}_proj" for name in "qkvo"), "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_NORMS = ("input_layernorm", "post_attention_layernorm")
_LLAMA = params(_TEXT, "embed_tokens", "norm") | params(_LAYER, *_MAPS, *_NORMS)
_HEAD = {"language_model.lm_head.weight"}
_QWEN2 = _LLAMA | params(_LAYER, *_MAPS[:3], kinds=("bias",))
_DECODER = frozenset(_LAYER + name for name in _MAPS)

_CLIP = "vision_tower.vision_model."
_CLIP_LAYER = f"{_CLIP}encoder.layers.N."
_OF_CLIP = params(
    _CLIP_LAYER, *(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")), kinds=BOTH
)
_OF_CLIP |= params(_CLIP_LAYER, "mlp.fc1", "mlp.fc2", "layer_norm1", "layer_norm2", kinds=BOTH)
_OF_CLIP |= params(_CLIP, "embeddings.position_embedding", "embeddings.patch_embedding")
_OF_CLIP |= params(_CLIP, "post_layernorm", kinds=BOTH)

_VIT = "vision_tower."
_OF_VIT = {f"{_VIT}embeddings.{name}" for name in ("cls_token", "position_embeddings")}
_OF_VIT |= params(_VIT, "embeddings.patch_embeddings.projection", kinds=BOTH)
_OF_VIT |= {f"{_VIT}encoder.layer.N.lambda_{n}" for n in (1, 2)}
_OF_VIT |= params(
    f"{_VIT}encoder.layer.N.", *(f"attention.{name}" for name in ("q_proj", "k_proj", "v_proj", "projection_layer")),
    "layernorm_before", "layernorm_after", "mlp.fc1", "mlp.fc2", kinds=BOTH,
)  # fmt: skip
_OF_VIT |= params("multi_modal_projector.", "layer_norm", "linear_1", "linear_2", kinds=BOTH)

_OWN = "vision_model."
_OF_OWN = {f"{_OWN}embeddings.{name}_embedding" for name in ("class", "position")}
_OF_OWN |= params(_OWN, "embeddings.patch_embedding", kinds=BOTH) | params("mlp1.", "0", "1", "3", kinds=BOTH)
_OF_OWN |= {f"{_OWN}encoder.layers.N.ls{n}" for n in (1, 2)}
_OF_OWN |= params(
    f"{_OWN}encoder.layers.N.", "attn.qkv", "attn.proj", "norm1", "norm2", "mlp.fc1", "mlp.fc2", kinds=BOTH
)
_LM2 = ("attention.wqkv", "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
_INTERNLM2 = params(_TEXT, "tok_embeddings", "norm") | params(_LAYER, *_LM2, "attention_norm", "ffn_norm")
_INTERNLM2 |= {"language_model.output.weight"}

_BLOCK = "visual.blocks.N."
_VISUAL = params("visual.", "patch_embed.proj", "merger.ln_q") | params(_BLOCK, "norm1", "norm2")
_VISUAL |= params("visual.merger.mlp.", "0", "2", kinds=BOTH)
_VISUAL |= params(_BLOCK, "attn.qkv", "attn.proj", *_MAPS[4:], kinds=BOTH)

GEMMA3 = Architecture(
    _NEW,
    frozenset(
        _LLAMA
        | params(_LAYER, "self_attn.q_norm", "self_attn.k_norm", "pre_feedforward_layernorm")
        | params(_LAYER, "post_feedforward_layernorm")
        | _OF_CLIP
        | {f"{_CLIP}embeddings.patch_embedding.bias", "multi_modal_projector.mm_input_projection_weight"}
        | params("multi_modal_projector.", "mm_soft_emb_norm")
    ),
    _DECODER,
)
QWEN2_5_VL = Architecture(
    (
        ("model.language_model.", "language_model.model."),
        ("model.visual.", "visual."),
        ("lm_head.", "language_model.lm_head."),
        ("model.", "language_model.model."),
    ),
    frozenset(_QWEN2 | _HEAD | _VISUAL),
    _DECODER,
)
# 0.10.2 and 0.11.0 take no adapters for LLaVA, 0.33.0 does.
LLAVA = Architecture(
    _NEW,
    frozenset(
        _LLAMA
        | _HEAD
        | _OF_CLIP
        | params(_CLIP, "pre_layrnorm", kinds=BOTH)
        | {f"{_CLIP}embeddings.class_embedding"}
        | params("multi_modal_projector.", "linear_1", "linear_2", kinds=BOTH)
    ),
    _DECODER,
)
INTERNVL_HF = Architecture(_NEW, frozenset(_QWEN2 | _HEAD | _OF_VIT), _DECODER)
INTERNVL_HF_LLAMA = Architecture(_NEW, frozenset(_LLAMA | _HEAD | _OF_VIT), _DECODER)
INTERNVL_QWEN2 = Architecture((), frozenset(_QWEN2 | _HEAD | _OF_OWN), _DECODER)
INTERNVL_INTERNLM2 = Architecture((), frozenset(_INTERNLM2 | _OF_OWN), frozenset(_LAYER + name for name in _LM2))


def renamed(name: str, architecture: Architecture, numbers: bool = False) -> str:
    """A name after vLLM's renaming, with ``N`` for the number of a layer unless ``numbers`` are kept."""
    for theirs, ours in architecture.renames:
        if name.startswith(theirs):
            name = name.replace(theirs, ours, 1)
    return name if numbers else re.sub(r"\b(layers?|blocks)\.\d+\.", r"\1.N.", name)


def adapted_module(name: str, architecture: Architecture, numbers: bool = False) -> str:
    """The module that a tensor of a PEFT folder is for, as vLLM finds it."""
    found = re.fullmatch(r"(?:base_model\.model\.)?(.+)\.lora_[AB]\.weight", name)
    assert found is not None, f"{name} is no tensor of an adapter"
    return renamed(found[1], architecture, numbers)
