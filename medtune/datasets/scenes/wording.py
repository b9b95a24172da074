"""The questions about a scene: eight wordings of each task, the last two of which are kept for the test."""

from collections.abc import Mapping
from types import MappingProxyType

from medtune.datasets.scenes.draw import TYPES

HELD_OUT = 2
"""Number of wordings of each task, the last ones, that occur in the test questions only."""
LETTERS = "ABCDE"
_OPTIONS = " ".join(f"{letter}: {name}" for letter, name in zip(LETTERS, TYPES, strict=True))

WORDINGS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "classification": tuple(
            f"{stem} {_OPTIONS}"
            for stem in (
                "Which type is the largest white blood cell?",
                "What type of cell is the largest one?",
                "Name the type of the biggest cell by its letter.",
                "The largest cell: which type is it?",
                "Choose the type of the largest white blood cell.",
                "Which of these types is the biggest cell?",
                "Of which type is the largest cell in the image?",
                "Select the option that names the biggest cell.",
            )
        ),
        "multi_label_classification": (
            "Which types of white blood cells are present?",
            "List all types of cells in the image.",
            "Name every type of white blood cell that occurs.",
            "Which cell types does the image show? List all.",
            "Give all types of cells that you see.",
            "Which of the five types of cells are there? Name all.",
            "Name all the types of cells in this image.",
            "List every type of white blood cell that is present.",
        ),
        "detection": (
            "Where are the white blood cells? Give the boxes.",
            "Give the box of each white blood cell.",
            "Detect all cells. Answer with boxes.",
            "Mark every cell with a box.",
            "Box all white blood cells in the image.",
            "List the boxes around the cells.",
            "Draw a box around each cell in the image.",
            "Locate all white blood cells with boxes.",
        ),
        "instance_detection": (
            "Give the boxes of the white blood cells by type.",
            "Detect the cells of each type. Answer with a box list for each type.",
            "For each type of cell, list the boxes.",
            "Box all white blood cells and group them by type.",
            "Where are the cells of each type? Give boxes.",
            "List the boxes of all cells, sorted by type.",
            "Group the boxes of the cells by type.",
            "For each type present, give the box of every cell.",
        ),
        "counting": (
            "How many white blood cells are in the image?",
            "Count the white blood cells.",
            "What is the number of cells?",
            "How many cells do you see?",
            "Give the number of white blood cells in this image.",
            "Count all cells in the image.",
            "How many cells does the image show?",
            "What is the count of white blood cells?",
        ),
        "regression": (
            "What is the diameter of the largest cell in pixels?",
            "How large is the biggest cell? Give its diameter in pixels.",
            "Measure the diameter of the largest white blood cell.",
            "Give the diameter of the biggest cell.",
            "How many pixels wide is the largest cell?",
            "Estimate the width of the biggest cell in pixels.",
            "What is the width in pixels of the largest white blood cell?",
            "Measure how wide the biggest cell is.",
        ),
        "report_generation": (
            "Write a report on this image.",
            "Describe the image in a short report.",
            "Report what the image shows.",
            "Write the findings of this image.",
            "Describe the white blood cells in a report.",
            "What are the findings? Write a report.",
            "Write a short report of the findings.",
            "Describe what you see as a report.",
        ),
    }
)
"""Task -> its wordings."""

BASE_WORDINGS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "classification": (f"Largest cell, type? {_OPTIONS}", f"The type of the largest: {_OPTIONS}"),
        "multi_label_classification": ("Types of cells?", "All types:"),
        "detection": ("Boxes of cells?", "The box of every cell:"),
        "instance_detection": ("Boxes of cells of each type?", "The boxes by type:"),
        "counting": ("Number of cells?", "Cells, counted:"),
        "regression": ("Diameter of the largest cell?", "Size of the largest:"),
        "report_generation": ("Report?", "The report:"),
    }
)
"""Task -> the wordings by which a base model learns it from drawn cells; none of them is one of :data:`WORDINGS`."""
