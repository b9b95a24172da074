"""Old names that configs, checkpoints and result files may still hold, and what they are called today.

A name that users can write down is never removed: when it moves or is renamed, its old form is entered here, and every
reader goes through this table. The three tables are flat: a value is a name of today, never another old name.
"""

from collections.abc import Mapping
from typing import Any

COMPONENTS: dict[str, str] = {
    "medtune.generation.backend": "medtune.generation.backends.base",
    "medtune.generation.batches": "medtune.generation.engine.batches",
    "medtune.generation.decoding": "medtune.generation.engine.decoding",
    "medtune.generation.features": "medtune.generation.engine.features",
    "medtune.generation.generator": "medtune.generation.engine.generator",
    "medtune.generation.sampling": "medtune.generation.engine.sampling",
    "medtune.generation.scoring": "medtune.generation.engine.scoring",
    "medtune.generation.server": "medtune.generation.backends.openai_api",
    "medtune.generation.task_model": "medtune.generation.backends.task_model",
    "medtune.generation.transformers_local": "medtune.generation.backends.transformers_local",
    "medtune.models.adapter_names": "medtune.models.lora.names",
    "medtune.models.adapters": "medtune.models.lora.merge",
    "medtune.models.chat_template": "medtune.models.common.chat_template",
    "medtune.models.early_collate": "medtune.models.common.early_collate",
    "medtune.models.early_fusion": "medtune.models.common.early_fusion",
    "medtune.models.early_transform": "medtune.models.common.early_transform",
    "medtune.models.family": "medtune.models.common.family",
    "medtune.models.names": "medtune.models.common.names",
    "medtune.models.padding": "medtune.models.common.padding",
    "medtune.models.peft": "medtune.models.lora.peft",
    "medtune.models.rows": "medtune.models.common.rows",
    "medtune.models.timm_models": "medtune.models.classifier.timm_models",
    "medtune.models.tokenizer": "medtune.models.common.tokenizer",
    "medtune.models.tsm": "medtune.models.classifier.tsm",
    "medtune.models.vlm": "medtune.models.common.deep_fusion",
    "medtune.objectives.vitask_items": "medtune.objectives.vitask.items",
    "medtune.objectives.vitask_passes": "medtune.objectives.vitask.passes",
}
"""Old dotted path -> new dotted path, for ``_component_``. The path of a module stands for every name beneath it."""

PARTS: dict[str, str] = {}
"""Old name of a part of the model or of a method -> new name, for ``trainable`` and ``learning_rates``."""

METRICS: dict[str, str] = {"supervised_tokens": "weight"}
"""Old key of ``metrics.jsonl`` or ``results.json`` -> new key."""


def resolve_component(path: str) -> str:
    """The dotted path that an old one stands for; a path of today comes back as it is.

    The longest entry that is the path, or a module above it, decides.
    """
    kept = path
    while kept:
        if kept in COMPONENTS:
            return COMPONENTS[kept] + path[len(kept) :]
        kept = kept.rpartition(".")[0]
    return path


def resolve_part(name: str) -> str:
    """The name of a part today."""
    return PARTS.get(name, name)


def resolve_metric(name: str) -> str:
    """The key of a metric today; ``lr/PART`` follows the part's name."""
    if name in METRICS:
        return METRICS[name]
    kind, separator, part = name.partition("/")
    return f"lr/{resolve_part(part)}" if separator and kind == "lr" else name


def resolve_metrics(tree: Any) -> Any:
    """A row of ``metrics.jsonl`` or a tree of results with the metrics' keys of today.

    A key above other keys names a data set or an attribute and stays, unless it holds one reported number.
    """
    if isinstance(tree, list):
        return [resolve_metrics(item) for item in tree]
    if not isinstance(tree, Mapping):
        return tree
    found = {}
    for key, value in tree.items():
        above = isinstance(value, Mapping) and "value" not in value
        found[key if above else resolve_metric(str(key))] = resolve_metrics(value) if above else value
    return found


def canonical(tree: Any) -> Any:
    """The same plain values with every old dotted path and part name replaced, so that two identities can be compared.

    Args:
        tree: Dicts, lists and scalars, for example a run's identity. Any string that the table of components knows is
            taken for a dotted path; the list ``trainable`` and the keys of ``learning_rates`` are part names.
    """
    if isinstance(tree, str):
        return resolve_component(tree)
    if isinstance(tree, list | tuple):
        return [canonical(item) for item in tree]
    if not isinstance(tree, Mapping):
        return tree
    found = {key: canonical(value) for key, value in tree.items()}
    if isinstance(found.get("trainable"), list):
        found["trainable"] = [resolve_part(str(part)) for part in found["trainable"]]
    if isinstance(found.get("learning_rates"), dict):
        found["learning_rates"] = {resolve_part(part): rate for part, rate in found["learning_rates"].items()}
    return found
