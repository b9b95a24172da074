"""Old names that configs, checkpoints and result files may still contain, and their current names.

A name that users can write in a file is never removed. If it is moved or renamed, its old form is added here, and every
reader uses this table. The three tables are flat: a value is always a current name, never another old name.
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
"""Old dotted path -> new dotted path, for ``_component_``. The path of a module covers every name in it."""

PARTS: dict[str, str] = {}
"""Old name of a part of the model or of a method -> new name, for ``trainable`` and ``learning_rates``."""

METRICS: dict[str, str] = {"supervised_tokens": "weight"}
"""Old key of ``metrics.jsonl`` or ``results.json`` -> new key."""


def resolve_component(path: str) -> str:
    """Return the current dotted path for an old one; a current path is returned unchanged.

    The longest entry that equals the path or one of its parent modules is used.
    """
    prefix = path
    while prefix:
        if prefix in COMPONENTS:
            return COMPONENTS[prefix] + path[len(prefix) :]
        prefix = prefix.rpartition(".")[0]
    return path


def resolve_part(name: str) -> str:
    """Return the current name of a part."""
    return PARTS.get(name, name)


def resolve_metric(name: str) -> str:
    """Return the current key of a metric; ``lr/PART`` follows the part's name."""
    if name in METRICS:
        return METRICS[name]
    kind, separator, part = name.partition("/")
    return f"lr/{resolve_part(part)}" if separator and kind == "lr" else name


def resolve_metrics(tree: Any) -> Any:
    """Return a row of ``metrics.jsonl`` or a tree of results with the current metric keys.

    A key whose value is a mapping names a data set or an attribute and is kept, unless the mapping is one reported
    number.
    """
    if isinstance(tree, list):
        return [resolve_metrics(item) for item in tree]
    if not isinstance(tree, Mapping):
        return tree
    result = {}
    for key, value in tree.items():
        above = isinstance(value, Mapping) and "value" not in value
        result[key if above else resolve_metric(str(key))] = resolve_metrics(value) if above else value
    return result


def canonical(tree: Any) -> Any:
    """Return the plain values with every old dotted path and part name replaced, so that identities can be compared.

    Args:
        tree: Dicts, lists and scalars, for example a run's identity. Any string that is in the table of components is
            treated as a dotted path; the list ``trainable`` and the keys of ``learning_rates`` are part names.
    """
    if isinstance(tree, str):
        return resolve_component(tree)
    if isinstance(tree, list | tuple):
        return [canonical(item) for item in tree]
    if not isinstance(tree, Mapping):
        return tree
    result = {key: canonical(value) for key, value in tree.items()}
    if isinstance(result.get("trainable"), list):
        result["trainable"] = [resolve_part(str(part)) for part in result["trainable"]]
    if isinstance(result.get("learning_rates"), dict):
        result["learning_rates"] = {resolve_part(part): rate for part, rate in result["learning_rates"].items()}
    return result
