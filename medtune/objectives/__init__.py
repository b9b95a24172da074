"""Training methods. Each is one small object; see :mod:`medtune.objectives.base`."""

from medtune.objectives.classification import Classification
from medtune.objectives.dpo.objective import DPO
from medtune.objectives.instfree import InstFree
from medtune.objectives.selection import Selection
from medtune.objectives.sft import SFT
from medtune.objectives.task_routing import TaskRouting
from medtune.objectives.vitask.objective import VITask

__all__ = ["DPO", "SFT", "Classification", "InstFree", "Selection", "TaskRouting", "VITask"]
