"""InstFree: training on image-report pairs without instructions (momentum proxy instruction, response shuffling).

tune run medtune/recipes/instfree.py --config instfree/mini
tune run --nproc_per_node 4 medtune/recipes/instfree.py --config instfree/llama3_2_vision_11b_distributed
"""

from medtune.config import recipe
from medtune.objectives import InstFree
from medtune.training.config import TrainConfig, require_objective
from medtune.training.trainer import Trainer


@recipe(TrainConfig)
def main(config: TrainConfig) -> int:
    """Warm up the proxy, then train the model with it, in one run."""
    require_objective(config, InstFree)
    return Trainer(config).run()


if __name__ == "__main__":
    raise SystemExit(main())
