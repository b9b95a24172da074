"""Train the selection model on pairs of people's and a model's preferences, and measure it on held-out ones.

tune run medtune/recipes/selector.py --config selector/features
tune run medtune/recipes/selector.py --config selector/biomed_clip_whole

BioMed-VITAL, Sec. 3.2 and 4.2. The recipe selector_pairs makes the pairs; ``selection.json`` and ``selection.html``
hold the measures on the pairs of ``dataset_val``.
"""

from pathlib import Path

from medtune.config import recipe
from medtune.curation.selector_measures import measure_selector, write_measures
from medtune.errors import ConfigError
from medtune.objectives.selection import Selection
from medtune.training.config import TrainConfig, require_objective
from medtune.training.trainer import Trainer


@recipe(TrainConfig)
def main(config: TrainConfig) -> int:
    """Train, then measure; the recipe ``selection`` reads the weights folder."""
    require_objective(config, Selection)
    for switch in ("activation_checkpointing", "activation_offloading", "compile"):
        if getattr(config, switch):
            raise ConfigError(f"{switch}: the selection model is trained without; set {switch}=false")
    trainer = Trainer(config)
    status = trainer.run()
    folder = Path(config.output_dir)
    weights = folder / "weights"
    if status == 0 and trainer.runtime.is_main and config.dataset_val is not None and weights.is_dir():
        write_measures(folder, measure_selector(weights, config.dataset_val, config.transform, config.batch_size))
    return status


if __name__ == "__main__":
    raise SystemExit(main())
