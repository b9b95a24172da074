"""Visual instruction tuning on conversations: full, LoRA or QLoRA, one process or many.

tune run medtune/recipes/sft.py --config sft/mini
tune run --nproc_per_node 4 medtune/recipes/sft.py --config sft/llama3_2_vision_11b_lora_distributed
"""

from medtune.config import recipe
from medtune.training.config import TrainConfig
from medtune.training.trainer import Trainer


@recipe(TrainConfig)
def main(config: TrainConfig) -> int:
    """Train."""
    return Trainer(config).run()


if __name__ == "__main__":
    raise SystemExit(main())
