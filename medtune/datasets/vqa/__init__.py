"""Medical visual question answering: VQA-RAD, SLAKE and PathVQA, as their owners ship them."""

from medtune.datasets.vqa.path_vqa import prepare_path_vqa
from medtune.datasets.vqa.slake import prepare_slake
from medtune.datasets.vqa.vqa_rad import prepare_vqa_rad

__all__ = ["prepare_path_vqa", "prepare_slake", "prepare_vqa_rad"]
