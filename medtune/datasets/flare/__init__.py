"""FLARE's 2D questions about medical images (FLARE 2025 task 5, FLARE 2026 MLLM-2D), in their official layout."""

from medtune.datasets.flare.builder import flare, prepare_flare
from medtune.datasets.flare.task_types import TASKS, task_type

__all__ = ["TASKS", "flare", "prepare_flare", "task_type"]
