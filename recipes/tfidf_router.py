"""A task router of word statistics (TF-IDF, logistic regression): the baseline of task_router, fitted in a second.

tune run medtune/recipes/tfidf_router.py --config tfidf_router/flare
"""

from dataclasses import dataclass, field
from pathlib import Path

from medtune.config import Component, instantiate, recipe, save_config
from medtune.datasets.flare.task_types import TASKS
from medtune.routing.fitting import fit_tfidf, save_fitted


@dataclass
class TfidfRouterConfig:
    """Keys of a TF-IDF router."""

    output_dir: str = field(metadata={"help": "folder of the run; the router is in its folder weights"})
    dataset: Component = field(metadata={"help": "questions with their tasks, and texts of no task"})
    labels: list[str] = field(
        default_factory=lambda: list(TASKS), metadata={"help": "names of the tasks; the default is FLARE's seven"}
    )
    inverse_penalty: float = field(default=10.0, metadata={"help": "C: C x sum of losses + |W|^2 / 2 is minimised"})
    min_texts: int = field(default=2, metadata={"help": "a word is used if it is in at least this number of texts"})
    max_ngram: int = field(default=1, metadata={"help": "neighbouring words that make one feature, at most"})
    balanced: bool = field(default=True, metadata={"help": "give each task the same total weight"})

    def __post_init__(self) -> None:
        """Refuse values that no fit can have."""
        if self.inverse_penalty <= 0 or self.min_texts < 1 or self.max_ngram < 1:
            raise ValueError("inverse_penalty must be above 0, min_texts and max_ngram at least 1")


@recipe(TfidfRouterConfig)
def main(config: TfidfRouterConfig) -> None:
    """Fit and save; ``medtune.routing.load_router`` reads the folder."""
    source = instantiate(config.dataset)
    router = fit_tfidf(
        source,
        config.labels,
        inverse_penalty=config.inverse_penalty,
        min_texts=config.min_texts,
        max_ngram=config.max_ngram,
        balanced=config.balanced,
    )
    folder = save_fitted(router, config.output_dir)
    save_config(config, Path(config.output_dir) / "config.yaml")
    print(f"{len(source)} questions, {len(router.vocabulary)} words, {len(router.labels)} tasks: {folder}")


if __name__ == "__main__":
    raise SystemExit(main())
