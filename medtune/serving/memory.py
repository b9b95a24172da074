"""What a server would need: ``medtune serve --dry-run`` reads no weights and takes no memory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torchtune.modules import KVCache, TransformerCrossAttentionLayer

from medtune.config import instantiate
from medtune.data.sample import Message, Sample
from medtune.errors import MedtuneError
from medtune.generation.answering import DTYPES
from medtune.models.lora.peft import WEIGHTS_NAME
from medtune.serving.config import ServeConfig
from medtune.serving.loading import Source, built_on_meta, source_of
from medtune.training.memory import tensor_bytes

_SAMPLE = Sample("dry run", ("",), (Message("user", "What does this image show?"),))


@dataclass(frozen=True)
class Estimate:
    """Memory of a server in bytes.

    Attributes:
        weights: The model.
        adapters: All adapters.
        per_token: Keys and values of one token of one row.
        per_image: Keys and values of one image of one row, for models that attend to images by cross-attention.
        prompt: Tokens of a question with one image of the largest size; None if there is no tokenizer here.
        longest: Most tokens of a row.
    """

    weights: float
    adapters: float
    per_token: float
    per_image: float
    prompt: int | None
    longest: int

    def rows(self, slots: int, tokens: int) -> float:
        """Return the memory of the caches if every row has so many tokens and one image."""
        return slots * (min(tokens, self.longest) * self.per_token + self.per_image)


def estimate(config: ServeConfig, source: Source) -> Estimate:
    """Count what a server needs, on a model without storage."""
    model = built_on_meta(source)
    weights = sum(map(tensor_bytes, (*model.parameters(), *model.buffers())))
    own, cross = _cache_bytes(model, DTYPES[source.dtype])
    prompt: int | None = None
    seen = 0
    try:
        transform = instantiate(source.transform)
        prompt = transform.token_count(_SAMPLE)
        seen = 0 if model.images_as_tokens else transform.tokens_per_tile * transform.tiler.max_tiles
        longest = transform.max_seq_len
    except MedtuneError:
        longest = int(source.transform.get("max_seq_len") or model.decoder.max_seq_len)
    return Estimate(weights, _adapter_bytes(config), own, cross * seen, prompt, longest)


def _adapter_bytes(config: ServeConfig) -> float:
    files = [Path(folder).expanduser() / WEIGHTS_NAME for folder in config.adapters.values()]
    return float(sum(file.stat().st_size for file in files if file.is_file()))


def _cache_bytes(model: Any, dtype: torch.dtype) -> tuple[float, float]:
    """Bytes of one column of all self-attention caches, and of all cross-attention caches."""
    with torch.device("meta"):
        model.setup_caches(1, dtype, encoder_max_seq_len=1, decoder_max_seq_len=1)
    crossing = {id(m.attn) for m in model.modules() if isinstance(m, TransformerCrossAttentionLayer)}
    sums = [0.0, 0.0]
    for module in model.modules():
        cache = getattr(module, "kv_cache", None)
        if isinstance(cache, KVCache):
            sums[id(module) in crossing] += sum(tensor_bytes(cache.get_buffer(name)) for name in ("k_cache", "v_cache"))
    return sums[0], sums[1]


def dry_run(config: ServeConfig) -> str:
    """Return what would be served, and its memory."""
    address = f"address        http://{config.host}:{config.port}/v1, " + (
        f"token in ${config.api_key_env}" if config.api_key_env else "no token"
    )
    routed = [*(["auto"] if config.router else []), "base", *config.adapters]
    if config.upstream:
        lines = [address, f"models         {', '.join(routed)}", f"upstream       {config.upstream}, no memory here"]
        return "\n".join(lines)
    source = source_of(config)
    found = estimate(config, source)
    longest = found.longest if found.prompt is None else found.prompt + config.max_new_tokens
    caches, most = found.rows(config.slots, longest), found.rows(config.slots, found.longest)
    asked = "without tokenizer here" if found.prompt is None else f"{found.prompt} tokens a question with one image"
    lines = [
        address,
        f"models         {', '.join(routed if config.adapters else [source.name])}",
        f"weights        {_gb(found.weights)} ({source.dtype}, {source.checkpoint})",
        f"adapters       {_gb(found.adapters)} ({len(config.adapters)})",
        f"caches         {_gb(caches)} ({config.slots} rows, {asked}, {config.max_new_tokens} of answer)",
        f"               {_gb(most)} at most ({config.slots} rows of {found.longest} tokens)",
        f"together       {_gb(found.weights + found.adapters + caches)}, "
        f"at most {_gb(found.weights + found.adapters + most)}; a GPU needs about 1 GB more, and the prompts' images",
    ]
    return "\n".join(lines)


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 or not size else f"{size / 1e6:.1f} MB"
