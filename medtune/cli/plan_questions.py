"""``medtune plan`` of a predict config: how many queries it asks, by protocol, and what the robustness card adds."""

from collections import Counter
from collections.abc import Sequence

from medtune.config import instantiate, load_config
from medtune.config.composition import compose, resolve_path
from medtune.evaluation.robustness import PROBES
from medtune.generation.answering import plan, query_counts


def asks_questions(config: str) -> bool:
    """Return whether a config is one of predict; a training config may have questions too, but has an objective."""
    keys = compose(resolve_path(config)).tree.keys()
    return "questions" in keys and "objective" not in keys


def plan_questions(config: str, overrides: Sequence[str] = ()) -> str:
    """Return the number of queries of a predict config as a table.

    Args:
        config: Name or path of a predict config.
        overrides: ``key=value``.

    Raises:
        MedtuneError: If the config or the questions cannot be read.
    """
    from medtune.recipes.predict import PredictConfig

    settings = load_config(config, PredictConfig, overrides)
    queries = plan(
        instantiate(settings.questions),
        settings.protocols,
        swapped=settings.swapped,
        seed=settings.seed,
        limit=settings.limit,
        robustness=settings.robustness,
        question=settings.question,
    )
    counts = Counter(
        (query.task, "swapped" if query.meta.get("swapped") else query.meta.get("probe", "")) for query in queries
    )
    kinds = [kind for kind in ("", *PROBES) if any(kind == name for _, name in counts)]
    lines = [f"{'protocol':<22}" + "".join(f"{kind or 'as it is':>12}" for kind in kinds)]
    for task in dict.fromkeys(task for task, _ in counts):
        lines.append(f"{task:<22}" + "".join(f"{counts.get((task, kind), 0):>12,}" for kind in kinds))
    images = len({query.sample.images for query in queries if query.sample.images})
    return "\n".join(["Queries", *lines, "", query_counts(queries), f"{images:,} images are encoded"])
