"""Direct preference optimization of vision-language models."""

from medtune.objectives.dpo.objective import DPO

__all__ = ["DPO"]
