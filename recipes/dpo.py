"""Direct preference optimization on pairs of answers about images: full or LoRA, with any of three references.

tune run medtune/recipes/dpo.py --config dpo/mini
tune run --nproc_per_node 4 medtune/recipes/dpo.py --config dpo/llava1_5_7b_lora_distributed
"""

from medtune.config import recipe
from medtune.objectives import DPO
from medtune.training.config import TrainConfig, require_objective
from medtune.training.trainer import Trainer


@recipe(TrainConfig)
def main(config: TrainConfig) -> int:
    """Train."""
    require_objective(config, DPO)
    return Trainer(config).run()


if __name__ == "__main__":
    raise SystemExit(main())
