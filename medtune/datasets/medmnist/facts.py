"""The 12 sets of MedMNIST 2D (Yang et al. 2023): classes, tasks and sizes as officially documented.

Classes, tasks and sizes are those of ``medmnist.INFO`` (version 3). Modalities and the words of the instructions are
ours. RetinaMNIST's official classes are the grades 0 to 4 as numbers; :data:`RETINOPATHY` gives their names on the
grading scale of DeepDRiD.
"""

from dataclasses import dataclass

from medtune.datasets.classification import ClassSet

SPLITS = ("train", "val", "test")
RETINOPATHY = (
    "no diabetic retinopathy",
    "mild nonproliferative diabetic retinopathy",
    "moderate nonproliferative diabetic retinopathy",
    "severe nonproliferative diabetic retinopathy",
    "proliferative diabetic retinopathy",
)
GRADES = ("0", "1", "2", "3", "4")

_ORGANS = (
    "bladder",
    "femur-left",
    "femur-right",
    "heart",
    "kidney-left",
    "kidney-right",
    "liver",
    "lung-left",
    "lung-right",
    "pancreas",
    "spleen",
)


@dataclass(frozen=True)
class Facts:
    """One set.

    Attributes:
        title: official name.
        words: classes and instruction.
        sizes: official number of images in train, val and test.
        colour: whether the official images are RGB; else they are grey.
    """

    title: str
    words: ClassSet
    sizes: tuple[int, int, int]
    colour: bool = False


def _organs(name: str, plane: str) -> ClassSet:
    return ClassSet(name, f"{plane} abdominal CT", "multi_class", _ORGANS, "to name the organ", "organs")


_SETS = (
    Facts(
        "PathMNIST",
        ClassSet(
            "path",
            "colon histology",
            "multi_class",
            (
                "adipose",
                "background",
                "debris",
                "lymphocytes",
                "mucus",
                "smooth muscle",
                "normal colon mucosa",
                "cancer-associated stroma",
                "colorectal adenocarcinoma epithelium",
            ),
            "to name the tissue",
            "tissues",
        ),
        (89996, 10004, 7180),
        colour=True,
    ),
    Facts(
        "ChestMNIST",
        ClassSet(
            "chest",
            "chest X-ray",
            "multi_label",
            (
                "atelectasis",
                "cardiomegaly",
                "effusion",
                "infiltration",
                "mass",
                "nodule",
                "pneumonia",
                "pneumothorax",
                "consolidation",
                "edema",
                "emphysema",
                "fibrosis",
                "pleural",
                "hernia",
            ),
            noun="findings",
        ),
        (78468, 11219, 22433),
    ),
    Facts(
        "DermaMNIST",
        ClassSet(
            "derma",
            "dermatoscope",
            "multi_class",
            (
                "actinic keratoses and intraepithelial carcinoma",
                "basal cell carcinoma",
                "benign keratosis-like lesions",
                "dermatofibroma",
                "melanoma",
                "melanocytic nevi",
                "vascular lesions",
            ),
        ),
        (7007, 1003, 2005),
        colour=True,
    ),
    Facts(
        "OCTMNIST",
        ClassSet(
            "oct",
            "retinal OCT",
            "multi_class",
            ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
        ),
        (97477, 10832, 1000),
    ),
    Facts(
        "PneumoniaMNIST",
        ClassSet("pneumonia", "pediatric chest X-ray", "multi_class", ("normal", "pneumonia")),
        (4708, 524, 624),
    ),
    Facts(
        "RetinaMNIST",
        ClassSet("retina", "retinal fundus", "ordinal", RETINOPATHY),
        (1080, 120, 400),
        colour=True,
    ),
    Facts(
        "BreastMNIST",
        ClassSet("breast", "breast ultrasound", "multi_class", ("malignant", "normal, benign")),
        (546, 78, 156),
    ),
    Facts(
        "BloodMNIST",
        ClassSet(
            "blood",
            "blood cell microscope",
            "multi_class",
            (
                "basophil",
                "eosinophil",
                "erythroblast",
                "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)",
                "lymphocyte",
                "monocyte",
                "neutrophil",
                "platelet",
            ),
            "to name the cell",
            "cells",
        ),
        (11959, 1712, 3421),
        colour=True,
    ),
    Facts(
        "TissueMNIST",
        ClassSet(
            "tissue",
            "kidney cortex microscope",
            "multi_class",
            (
                "Collecting Duct, Connecting Tubule",
                "Distal Convoluted Tubule",
                "Glomerular endothelial cells",
                "Interstitial endothelial cells",
                "Leukocytes",
                "Podocytes",
                "Proximal Tubule Segments",
                "Thick Ascending Limb",
            ),
            "to name the cell",
            "cells",
        ),
        (165466, 23640, 47280),
    ),
    Facts("OrganAMNIST", _organs("organa", "axial"), (34561, 6491, 17778)),
    Facts("OrganCMNIST", _organs("organc", "coronal"), (12975, 2392, 8216)),
    Facts("OrganSMNIST", _organs("organs", "sagittal"), (13932, 2452, 8827)),
)
FACTS = {facts.words.name: facts for facts in _SETS}
"""Name of a set (``blood``) to its facts, in the order of the paper's Table 1."""
