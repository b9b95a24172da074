"""Task routers of published sizes, of a local encoder, and in miniature; and reading of a trained one."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from medtune.data.opening import refuse_special
from medtune.errors import ConfigError, ModelError
from medtune.models.task_router.model import MODEL_TYPE, ClassPooling, TaskRouterModel, TextPooling
from medtune.models.task_router.transform import QuestionTransform
from medtune.models.weight_files import read_json, read_tensors, weight_files
from medtune.models.weights import load_weights

_DEBERTA_V3: dict[str, Any] = {
    "model_type": "deberta-v2",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "hidden_act": "gelu",
    "attention_probs_dropout_prob": 0.1,
    "hidden_dropout_prob": 0.1,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-7,
    "max_position_embeddings": 512,
    "type_vocab_size": 0,
    "relative_attention": True,
    "max_relative_positions": -1,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "pad_token_id": 0,
    "legacy": True,
}


def gliclass_deberta_v3_small(
    tokenizer: str,
    labels: Sequence[str],
    max_seq_len: int = 512,
    encoder: str | None = None,
    class_token_pooling: ClassPooling = "average",
    text_pooling: TextPooling = "avg",
    dropout: float = 0.1,
) -> TaskRouterModel:
    """Build a GLiClass on DeBERTa-v3-small, as ME-VLIP has it: 6 layers, 141 M parameters.

    Args:
        tokenizer: ``tokenizer.json`` or its folder.
        labels: names of the tasks.
        max_seq_len: most tokens of labels and question.
        encoder: local folder or safetensors file with the encoder's pretrained weights; None: random, or those of the
            run's ``checkpoint``.
        class_token_pooling: see :class:`TaskRouterModel`.
        text_pooling: see :class:`TaskRouterModel`.
        dropout: of the pooled vectors.

    Raises:
        ConfigError: for wrong labels, or without the package ``gliclass``.
        ModelError: if the tokenizer or the weights are missing or do not fit.
    """
    return _build(
        {**_DEBERTA_V3, "num_hidden_layers": 6},
        tokenizer,
        labels,
        max_seq_len,
        encoder,
        class_token_pooling=class_token_pooling,
        text_pooling=text_pooling,
        dropout=dropout,
    )


def gliclass_deberta_v3_base(
    tokenizer: str,
    labels: Sequence[str],
    max_seq_len: int = 512,
    encoder: str | None = None,
    class_token_pooling: ClassPooling = "average",
    text_pooling: TextPooling = "avg",
    dropout: float = 0.1,
) -> TaskRouterModel:
    """Build a GLiClass on DeBERTa-v3-base: 12 layers, 184 M parameters; see :func:`gliclass_deberta_v3_small`."""
    return _build(
        {**_DEBERTA_V3, "num_hidden_layers": 12},
        tokenizer,
        labels,
        max_seq_len,
        encoder,
        class_token_pooling=class_token_pooling,
        text_pooling=text_pooling,
        dropout=dropout,
    )


def gliclass_encoder(
    encoder: str,
    labels: Sequence[str],
    tokenizer: str | None = None,
    max_seq_len: int = 256,
    pretrained: bool = True,
    class_token_pooling: ClassPooling = "average",
    text_pooling: TextPooling = "avg",
    dropout: float = 0.1,
) -> TaskRouterModel:
    """Build a GLiClass on any BERT-like encoder in a local folder.

    Args:
        encoder: folder with ``config.json``, ``tokenizer.json`` and safetensors, as the hub has them.
        labels: names of the tasks.
        tokenizer: ``tokenizer.json`` or its folder; None takes the encoder's folder.
        max_seq_len: most tokens of labels and question; at most what the encoder has positions for.
        pretrained: start from the folder's weights; False starts from random ones of this size.
        class_token_pooling: see :class:`TaskRouterModel`.
        text_pooling: see :class:`TaskRouterModel`.
        dropout: of the pooled vectors.

    Raises:
        ConfigError: if transformers has no such encoder, or it has too few positions.
        ModelError: if a file is missing, unreadable or does not fit.
    """
    config = read_json(Path(encoder) / "config.json")
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and config.get("position_biased_input", True) and max_seq_len > positions:
        raise ConfigError(f"max_seq_len {max_seq_len}: the encoder in {encoder} has {positions} positions; lower it")
    return _build(
        config,
        tokenizer or encoder,
        labels,
        max_seq_len,
        encoder if pretrained else None,
        class_token_pooling=class_token_pooling,
        text_pooling=text_pooling,
        dropout=dropout,
    )


def mini_gliclass(
    tokenizer: str,
    labels: Sequence[str],
    max_seq_len: int = 512,
    embed_dim: int = 64,
    layers: int = 2,
    heads: int = 4,
    class_token_pooling: ClassPooling = "average",
    text_pooling: TextPooling = "avg",
    dropout: float = 0.1,
) -> TaskRouterModel:
    """Build a small random GLiClass on a DeBERTa of the same kind, for a CPU.

    Args:
        tokenizer: ``tokenizer.json`` or its folder.
        labels: names of the tasks.
        max_seq_len: most tokens of labels and question.
        embed_dim: width of the encoder.
        layers: its layers.
        heads: its attention heads.
        class_token_pooling: see :class:`TaskRouterModel`.
        text_pooling: see :class:`TaskRouterModel`.
        dropout: of the pooled vectors.

    Raises:
        ConfigError: for wrong labels or sizes, or without the package ``gliclass``.
        ModelError: if the tokenizer is missing.
    """
    if embed_dim < 1 or heads < 1 or embed_dim % heads:
        raise ConfigError(f"embed_dim {embed_dim} must be a multiple of heads {heads}")
    sizes = {
        "hidden_size": embed_dim,
        "intermediate_size": 2 * embed_dim,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "position_buckets": 32,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return _build(
        {**_DEBERTA_V3, **sizes},
        tokenizer,
        labels,
        max_seq_len,
        None,
        class_token_pooling=class_token_pooling,
        text_pooling=text_pooling,
        dropout=dropout,
    )


def _build(
    config: Mapping[str, Any],
    tokenizer: str,
    labels: Sequence[str],
    max_seq_len: int,
    encoder: str | None,
    **arguments: Any,
) -> TaskRouterModel:
    planned, missing = torch.empty(0).is_meta, []
    try:
        transform = QuestionTransform(tokenizer, labels, max_seq_len)
    except ModelError as error:
        if not planned or Path(tokenizer).exists():
            raise
        missing.append(str(error))
        transform = QuestionTransform.planned(labels, max_seq_len)
    model = TaskRouterModel(transform, config, **arguments)
    if encoder is not None and not planned:
        model.load_encoder(read_tensors(weight_files(encoder), None), encoder)
    elif encoder is not None and not Path(encoder).exists():
        missing.append(f"the pretrained weights are not here: {encoder} (the config's header has the download line)")
    model.missing = tuple(missing)
    return model


def load_task_router(folder: str | Path) -> TaskRouterModel:
    """Read a trained router, frozen and in evaluation mode.

    Args:
        folder: the ``weights`` folder of a ``task_router`` run.

    Raises:
        ModelError: if the folder does not hold such a model, or it is damaged.
        ConfigError: without the package ``gliclass``.
    """
    folder = Path(folder)
    file = folder / "config.json"
    refuse_special(file, ModelError)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        settings, encoder = config["medtune_router"], config["encoder_config"]
        if config["model_type"] != MODEL_TYPE:
            raise ValueError(f"model_type {config['model_type']!r}")
        labels, length = tuple(settings["labels"]), int(settings["max_seq_len"])
        pooling = {
            "class_token_pooling": config.get("class_token_pooling", "first"),
            "text_pooling": config.get("pooling_strategy", "first"),
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else error
        raise ModelError(
            f"{folder} holds no task router ({what}); name the weights folder of a task_router run"
        ) from error
    model = _build(encoder, str(folder), labels, length, None, **pooling)
    model.load_state_dict(load_weights(folder, model))
    return model.eval().requires_grad_(False)
