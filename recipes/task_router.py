"""The task router of ME-VLIP: GLiClass trained on questions and their tasks, to choose the adapter that answers.

tune run medtune/recipes/task_router.py --config task_router/mini
tune run medtune/recipes/task_router.py --config task_router/deberta_v3_small
"""

from medtune.config import recipe
from medtune.errors import ConfigError
from medtune.objectives import TaskRouting
from medtune.training.config import TrainConfig, require_objective
from medtune.training.trainer import Trainer


@recipe(TrainConfig)
def main(config: TrainConfig) -> int:
    """Train; ``medtune.routing.load_router`` reads the weights folder."""
    require_objective(config, TaskRouting)
    for switch in ("activation_checkpointing", "activation_offloading", "compile"):
        if getattr(config, switch):
            raise ConfigError(f"{switch}: the encoders of transformers are trained without; set {switch}=false")
    return Trainer(config).run()


if __name__ == "__main__":
    raise SystemExit(main())
