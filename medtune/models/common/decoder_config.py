"""Reads the sizes of a language model from its part of ``config.json``: Llama, Mistral, Qwen2 and InternLM2."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from medtune.errors import ModelError
from medtune.models.published_config import rope_of

DecoderType = Literal["llama", "mistral", "qwen2", "internlm2"]
# What transformers assumes of a key that a config.json leaves out; the same for every type first.
_DEFAULTS: dict[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
}
_OF_TYPE: dict[str, dict[str, Any]] = {
    "llama": {"intermediate_size": 11_008, "vocab_size": 32_000, "max_position_embeddings": 2048, "bias": False},
    "mistral": {
        "intermediate_size": 14_336,
        "vocab_size": 32_000,
        "max_position_embeddings": 131_072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    "qwen2": {
        "intermediate_size": 22_016,
        "vocab_size": 151_936,
        "max_position_embeddings": 32_768,
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-6,
    },
    "internlm2": {"intermediate_size": 11_008, "vocab_size": 103_168, "max_position_embeddings": 2048, "bias": True},
}
_WITHOUT_REMEDY = "predict can ask such a model through a backend (predict/transformers_local, predict/openai_server)"
_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@dataclass(frozen=True)
class DecoderSizes:
    """Sizes of a language model.

    Attributes:
        kind: ``llama``, ``mistral``, ``qwen2`` or ``internlm2``.
        dim: width.
        layers: depth.
        heads: attention heads.
        kv_heads: key/value heads.
        mlp_dim: width of the MLPs.
        vocab_size: rows of the embedding table.
        norm_eps: epsilon of the norms.
        rope_base: base of the rotary positions.
        max_seq_len: longest text; of a model with a sliding window, its width.
        tied: whether the output layer is the embedding table.
        bos_id: begin of text.
        eos_id: end of text.
        pad_id: fills rows.
    """

    kind: DecoderType
    dim: int
    layers: int
    heads: int
    kv_heads: int
    mlp_dim: int
    vocab_size: int
    norm_eps: float
    rope_base: float
    max_seq_len: int
    tied: bool
    bos_id: int
    eos_id: int
    pad_id: int

    def fields(self) -> dict[str, Any]:
        """Every size by its name, except the kind: the arguments of a family's shape."""
        return {name: value for name, value in vars(self).items() if name != "kind"}


def decoder_sizes(text: Mapping[str, Any], where: str, otherwise: str = "llama") -> DecoderSizes:
    """The sizes that a language model's config describes. Keys that it lacks have transformers' default values.

    Args:
        text: the parsed ``text_config`` or ``llm_config``, or a ``config.json`` of a model whose sizes are at the top.
        where: file and key, for messages: ``config.json: text_config``.
        otherwise: the type of the model if the config names none.

    Raises:
        ModelError: if the type is unknown, a value is of another type, or the model computes something that these
            layers do not: scaled positions, another activation, biases, or wider heads.
    """
    kind = text.get("model_type") or otherwise
    if kind not in _OF_TYPE:
        raise ModelError(
            f"{where}: a decoder of type {kind!r}; medtune builds {', '.join(_OF_TYPE)}. {_WITHOUT_REMEDY}"
        )
    given = {key: value for key, value in text.items() if value is not None or key == "sliding_window"}
    values = {**_DEFAULTS, **_OF_TYPE[kind], **given}
    _refuse_others(kind, text, values, where)
    heads = _whole(values, "num_attention_heads", where)
    rope = rope_of(text)
    return DecoderSizes(
        kind=kind,  # type: ignore[arg-type]
        dim=_whole(values, "hidden_size", where),
        layers=_whole(values, "num_hidden_layers", where),
        heads=heads,
        kv_heads=_whole({"num_key_value_heads": heads, **values}, "num_key_value_heads", where),
        mlp_dim=_whole(values, "intermediate_size", where),
        vocab_size=_whole(values, "vocab_size", where),
        norm_eps=_number(values, "rms_norm_eps", where),
        rope_base=_number({"rope_theta": rope.get("rope_theta", values["rope_theta"])}, "rope_theta", where),
        max_seq_len=_longest(kind, values, where),
        tied=bool(values["tie_word_embeddings"]),
        **{f"{key.partition('_')[0]}_id": _token(values.get(key), otherwise) for key, otherwise in _TOKENS.items()},
    )


def _refuse_others(kind: str, text: Mapping[str, Any], values: Mapping[str, Any], where: str) -> None:
    """Refuse what changes a model's results and is not computed by Llama's and Qwen2's layers."""
    dim, heads = _whole(values, "hidden_size", where), _whole(values, "num_attention_heads", where)
    if dim % heads or values.get("head_dim", dim // heads) != dim // heads:
        raise ModelError(
            f"{where}: {heads} heads of {values.get('head_dim', dim / heads)} are not {dim} wide (hidden_size), which "
            f"medtune's layers need. {_WITHOUT_REMEDY}"
        )
    found = [
        f"{key} is {values[key]!r}"
        for key, allowed in (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False))
        if values.get(key, allowed) != allowed
    ]
    if kind == "internlm2" and values["bias"]:
        found.append("bias is True")
    scaling = rope_of(text).get("rope_scaling")
    if scaling:
        found.append(f"positions are scaled ({scaling.get('rope_type')})")
    if found:
        raise ModelError(f"{where}: {'; '.join(found)}, which medtune's layers do not compute. {_WITHOUT_REMEDY}")


def _longest(kind: str, values: Mapping[str, Any], where: str) -> int:
    """The longest text; with a sliding window, the longest in which every token sees everything before it."""
    longest = _whole(values, "max_position_embeddings", where)
    slides = values.get("sliding_window") is not None and (kind == "mistral" or values.get("use_sliding_window"))
    return min(longest, _whole(values, "sliding_window", where)) if slides else longest


def _whole(values: Mapping[str, Any], key: str, where: str) -> int:
    value = values[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(f"{where}: {key} must be a positive whole number, got {value!r}; download the file again")
    return value


def _number(values: Mapping[str, Any], key: str, where: str) -> float:
    value = values[key]
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise ModelError(f"{where}: {key} must be a positive number, got {value!r}; download the file again")
    return float(value)


def _token(value: Any, otherwise: int) -> int:
    """A token's id; some files list several."""
    first = value[0] if isinstance(value, list) and value else value
    return first if isinstance(first, int) else otherwise
