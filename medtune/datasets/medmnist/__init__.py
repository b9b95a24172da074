"""MedMNIST 2D (Yang et al. 2023): 12 sets of small medical images with labels, as published."""

from medtune.datasets.medmnist.door import find_files, prepare_medmnist
from medtune.datasets.medmnist.facts import FACTS, GRADES, RETINOPATHY, Facts
from medtune.datasets.medmnist.reports import prepare_medmnist_reports

__all__ = ["FACTS", "GRADES", "RETINOPATHY", "Facts", "find_files", "prepare_medmnist", "prepare_medmnist_reports"]
