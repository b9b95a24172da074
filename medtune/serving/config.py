"""The config of ``medtune serve``: which model, which adapters, where, and within which limits."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medtune.config import Component, build, load_config
from medtune.config.composition import Composed, Place, compose, resolve_path
from medtune.config.environment import resolved
from medtune.config.overrides import overridden
from medtune.errors import ConfigError
from medtune.generation.answering import OWN
from medtune.generation.engine.sampling import Sampling
from medtune.generation.named_model import kind_of
from medtune.serving.chat import ImagePlace
from medtune.serving.limits import Limits
from medtune.serving.remote_images import origin_of

RESERVED = ("base", "auto")
"""Names that no adapter can have: the model without adapters, and the choice by the router."""


@dataclass
class ServeConfig:
    """Every key of a server's config."""

    source: str | None = field(
        default=None, metadata={"help": "a run's folder, an exported folder or a predict config, in place of a model"}
    )
    model: Component | None = field(default=None, metadata={"help": "model builder"})
    transform: Component | None = field(default=None, metadata={"help": "tokenizer and image transform"})
    checkpoint: str | None = field(
        default=None, metadata={"help": "weights: a folder in HF layout or one safetensors file"}
    )
    name: str | None = field(
        default=None, metadata={"help": "name of the model without adapters in requests; default: that of the source"}
    )
    adapters: dict[str, str] = field(
        default_factory=dict, metadata={"help": "name -> PEFT folder; a request's model names one, or base"}
    )
    router: str | None = field(default=None, metadata={"help": "folder of a task router; the model auto asks it"})
    threshold: float = field(default=0.5, metadata={"help": "least score for the adapter of a task"})
    fallback: str | None = field(
        default=None, metadata={"help": "adapter of questions below the threshold; null is the base"}
    )
    upstream: str | None = field(
        default=None,
        metadata={"help": "address of a vLLM server, with /v1, in place of a model; adapters maps names to its names"},
    )
    upstream_key_env: str | None = field(
        default=None, metadata={"help": "environment variable that holds the upstream server's key"}
    )
    host: str = field(default="127.0.0.1", metadata={"help": "any other than loopback needs api_key_env"})
    port: int = field(default=8000, metadata={"help": "0 takes a free one"})
    api_key_env: str | None = field(
        default=None, metadata={"help": "environment variable that holds the token which clients must send"}
    )
    slots: int = field(default=16, metadata={"help": "requests that are answered at the same time"})
    max_new_tokens: int = field(default=256, metadata={"help": "of requests that set no max_tokens"})
    sampling: Sampling | None = field(
        default=None, metadata={"help": "of requests that set no temperature; null is greedy"}
    )
    images: ImagePlace = field(
        default="first",
        metadata={"help": "first: a turn's images before its text, as in training; as_sent: in the request's order"},
    )
    allow_image_hosts: list[str] = field(
        default_factory=list,
        metadata={"help": "exact hosts that images are fetched from over https; empty: images are never fetched"},
    )
    center_crop: float | None = field(
        default=None, metadata={"help": "share of an image's sides that is kept; default: as the source was trained"}
    )
    pad_to_square: int | None = field(
        default=None, metadata={"help": "side of the square that images are padded to; default: as in training"}
    )
    dtype: Literal["fp32", "bf16"] | None = field(
        default=None, metadata={"help": "type of weights and caches; default: that of the source, else bf16"}
    )
    device: Literal["auto", "cpu", "cuda"] = field(default="auto", metadata={"help": "auto: cuda if available"})
    limits: Limits = field(default_factory=Limits, metadata={"help": "limits.KEY=...; see docs/serving.md"})

    def __post_init__(self) -> None:
        """Refuse what cannot be served."""
        given = [key for key in OWN if getattr(self, key) is not None]
        if self.source is not None and given:
            raise ValueError(f"source and {given[0]} are both given; leave one out")
        if self.upstream is None and self.source is None and len(given) < len(OWN):
            raise ValueError(f"give {', '.join(OWN)}, or a source instead: a run's folder or a predict config")
        for key in ("slots", "max_new_tokens"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, got {getattr(self, key)}")
        if not 0 <= self.port < 65536:
            raise ValueError(f"port {self.port} is not from 0 to 65535")
        for entry in self.allow_image_hosts:
            origin_of(entry)
        if self.allow_image_hosts and self.upstream is not None:
            raise ValueError(
                "allow_image_hosts: requests are passed on as they are; let the upstream server fetch none"
            )
        for name in self.adapters:
            if name in RESERVED or not name.strip() or not name.isprintable():
                raise ValueError(
                    f"adapters: {name!r} cannot be the name of an adapter ({', '.join(RESERVED)} are taken)"
                )
        if self.router is not None and not self.adapters:
            raise ValueError("a router needs adapters to choose from")
        if self.fallback is not None and self.fallback not in self.adapters:
            raise ValueError(f"the fallback {self.fallback!r} is not among the adapters")

    def token(self) -> str | None:
        """Return the token that clients must send; None for none.

        Raises:
            ConfigError: If the environment variable holds none that can be sent in an HTTP header.
        """
        if self.api_key_env is None:
            return None
        token = os.environ.get(self.api_key_env, "").strip()
        if len(token) < 8 or not (token.isascii() and token.isprintable()) or " " in token:
            raise ConfigError(
                f"the environment variable {self.api_key_env} (api_key_env) must hold a token of at least 8 letters, "
                "digits or signs"
            )
        return token


def settings_of(source: str, overrides: Sequence[str] = ()) -> ServeConfig:
    """Return the config that a command names.

    Args:
        source: A config of ``serve``, or what its key ``source`` takes.
        overrides: ``key=value``.

    Raises:
        ConfigError: If it is none of them, or the config has an error.
    """
    if kind_of(source) == "config":
        keys = compose(resolve_path(source)).tree.keys()
        if "questions" not in keys:
            return load_config(source, ServeConfig, overrides)
    # A run's folder or a predict config: a serve config of one key.
    composed = Composed(Path(source), {"source": source}, {}, [])
    try:
        values: Any = resolved(overridden(composed, overrides))
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from error
    return build(ServeConfig, values, Place(source, (), composed.origins))
