"""VITask: task tuning with the features of a task-specific model (exemplar prompting, response alignment, contrast).

tune run medtune/recipes/vitask.py --config vitask/mini
tune run --nproc_per_node 4 medtune/recipes/vitask.py --config vitask/internvl2_2b_distributed
"""

from medtune.config import recipe
from medtune.objectives import VITask
from medtune.training.config import TrainConfig, require_objective
from medtune.training.trainer import Trainer


@recipe(TrainConfig)
def main(config: TrainConfig) -> int:
    """Train with response alignment first, then with contrast of images, in one run."""
    require_objective(config, VITask)
    return Trainer(config).run()


if __name__ == "__main__":
    raise SystemExit(main())
