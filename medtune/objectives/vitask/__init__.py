"""VITask (exemplar prompting, response alignment, contrastive response tuning)."""

from medtune.objectives.vitask.objective import VITask

__all__ = ["VITask"]
