"""The task-specific model (TSM) of VITask: the public names, which configs use."""

from medtune.models.classifier.builders import load_tsm, task_model
from medtune.models.classifier.sets import LabelledSet, label_sets
from medtune.models.classifier.task_model import MODEL_TYPE, TaskModel, Tokens
from medtune.models.classifier.transform import PixelTransform

__all__ = [
    "MODEL_TYPE",
    "LabelledSet",
    "PixelTransform",
    "TaskModel",
    "Tokens",
    "label_sets",
    "load_tsm",
    "task_model",
]
