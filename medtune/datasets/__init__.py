"""Builders of sample sources: one function per layout, each usable as a config's ``_component_``."""

from medtune.datasets._csv import report_csv_dataset
from medtune.datasets._images import images_dataset
from medtune.datasets._jsonl import jsonl_dataset
from medtune.datasets._llava_json import llava_json_dataset
from medtune.datasets._mixture import mixture_dataset
from medtune.datasets.cells import rendered_cells_dataset
from medtune.datasets.conversations import conversation_dataset
from medtune.datasets.preferences import preference_dataset, preference_json_dataset

__all__ = [
    "conversation_dataset",
    "images_dataset",
    "jsonl_dataset",
    "llava_json_dataset",
    "mixture_dataset",
    "preference_dataset",
    "preference_json_dataset",
    "rendered_cells_dataset",
    "report_csv_dataset",
]
