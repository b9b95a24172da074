"""The task-specific model of VITask: a timm classifier trained on class labels, for VITask and as a baseline.

tune run medtune/recipes/tsm.py --config tsm/mini
tune run --nproc_per_node 4 medtune/recipes/tsm.py --config tsm/vit_base_distributed
"""

from medtune.config import recipe
from medtune.errors import ConfigError
from medtune.objectives import Classification
from medtune.training.config import TrainConfig, require_objective
from medtune.training.trainer import Trainer


@recipe(TrainConfig)
def main(config: TrainConfig) -> int:
    """Train; VITask's ``objective.tsm`` and predict's backend read the weights folder."""
    require_objective(config, Classification)
    for switch in ("activation_checkpointing", "activation_offloading", "compile"):
        if getattr(config, switch):
            raise ConfigError(f"{switch}: timm's models are trained without; set {switch}=false")
    return Trainer(config).run()


if __name__ == "__main__":
    raise SystemExit(main())
