"""VITask: tuning for a task with a task-specific model's features (exemplar prompting, response alignment, contrast).

tune run medtune/recipes/vitask.py --config vitask/mini
tune run --nproc_per_node 4 medtune/recipes/vitask.py --config vitask/internvl2_2b_distributed
"""

from medtune.config import recipe
from medtune.objectives import VITask
from medtune.training.config import TrainConfig, require_objective
from medtune.training.trainer import Trainer


@recipe(TrainConfig)
def main(config: TrainConfig) -> int:
    """Align with the task-specific model, then contrast images, in one run."""
    require_objective(config, VITask)
    return Trainer(config).run()


if __name__ == "__main__":
    raise SystemExit(main())
