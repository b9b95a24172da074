"""Sentences about cells: how questions are put, and descriptions in plain prose.

Descriptions are always full sentences. A report's style (terms separated by commas) never answers a request to
describe, so that a model which starts to do so has changed.
"""

import random

from medtune.datasets.cells.attributes import ABSENT, Attributes

OPEN_QUESTIONS = (
    "What is the {name}?",
    "What is the {name} of this cell?",
    "Which {name} does this cell have?",
    "Tell me the {name}.",
    "Please name the {name}.",
    "What {name} do you see?",
    "Look at the image. What is the {name}?",
)

BRIEF_QUESTIONS = (
    "Answer in one word: what is the {name}?",
    "What is the {name}? Answer with the value only.",
    "{name}? Only the value.",
    "In short, what is the {name}?",
)

DESCRIBE = (
    "What does this image show?",
    "Describe this image.",
    "Describe this medical scan.",
    "Describe the image.",
    "Describe the cell.",
    "Describe this cell in a few sentences.",
    "Please describe what you see.",
    "What do you see in this image?",
    "What can you see?",
    "What is shown here?",
    "What is in this picture?",
    "Give a description of the image.",
    "Give a short description of this cell.",
    "Write a description of this medical image.",
    "Can you describe the image in detail?",
    "Explain what this picture shows.",
    "Summarize the findings in this image.",
    "Tell me about this cell.",
    "How would you describe this blood cell?",
    "Provide a description of the given image.",
    "Look at the scan and say what it shows.",
    "What are the findings?",
)

PHRASES = (
    ("Write short phrases about this cell, separated by commas.", ", "),
    ("Give the findings as short phrases with commas between them.", ", "),
    ("Note the key points of this cell, separated by commas.", ", "),
    ("Only short phrases, please: what does the cell look like?", ", "),
    ("List the findings as phrases.", ", "),
    ("Write short phrases about this cell, separated by semicolons.", "; "),
    ("Give the findings as short phrases with semicolons between them.", "; "),
    ("Write short phrases about this cell, one per line.", "\n"),
    ("Give the findings, one phrase per line.", "\n"),
)
"""Requests for phrases instead of sentences, and the separator between the phrases."""

LIST_ATTRIBUTES = (
    "Name the attributes.",
    "List the values of all attributes.",
    "Give the twelve attribute values.",
    "Which values do the attributes have?",
    "Fill in the attribute table.",
)

_OPENINGS = ("This image shows", "The image shows", "This is", "I see", "Here is", "The picture shows", "There is")


def article(phrase: str) -> str:
    """Put "a" or "an" before a phrase."""
    return f"{'an' if phrase[0].lower() in 'aeiou' else 'a'} {phrase}"


def open_answer(name: str, value: str) -> str:
    """Answer a question about one attribute in a sentence."""
    return f"The {name} is {value}."


def _opening(cell: Attributes, rng: random.Random) -> str:
    size, shape, label = cell["cell size"], cell["cell shape"], cell["label"]
    subject = rng.choice((label, f"{size} {label}", f"{size} {label}", f"{shape} {label}", f"{size}, {shape} {label}"))
    details = [
        f"with {article(cell['nucleus shape'])} nucleus",
        f"with {article(shape)} shape and {article(cell['nucleus shape'])} nucleus",
        f"with {_granules(cell)}",
        f"with {article(cell['cytoplasm colour'])} cytoplasm",
    ]
    detail = f" {rng.choice(details)}" if rng.random() < 0.6 else ""
    return f"{rng.choice(_OPENINGS)} {article(subject)}{detail}."


def _granules(cell: Attributes) -> str:
    if cell["granule type"] == ABSENT:
        return "no granules"
    return f"{cell['granule type']} {cell['granule colour']} granules"


def _remarks(cell: Attributes) -> list[str]:
    """Return one sentence per aspect of the cell; each may follow the opening."""
    vacuoles = "no vacuoles" if cell["cytoplasm vacuole"] == "no" else "vacuoles"
    return [
        f"The cytoplasm is {cell['cytoplasm texture']} and {cell['cytoplasm colour']}.",
        f"The cytoplasm is {cell['cytoplasm colour']}, with {_granules(cell)}.",
        f"The cytoplasm is {cell['cytoplasm texture']} and has {vacuoles}.",
        f"It has {_granules(cell)}.",
        f"There are {vacuoles} in the cytoplasm.",
        f"The chromatin is {cell['chromatin density']} packed.",
        f"The nuclear cytoplasmic ratio is {cell['nuclear cytoplasmic ratio']}.",
        f"The nucleus is {cell['nucleus shape']} and the chromatin is {cell['chromatin density']} packed.",
        f"The cell is {cell['cell size']} and its shape is {cell['cell shape']}.",
    ]


def describe(cell: Attributes, rng: random.Random) -> str:
    """Describe a cell in one to four sentences that mention some of its attributes."""
    return " ".join([_opening(cell, rng), *rng.sample(_remarks(cell), k=rng.choice((0, 1, 1, 2, 2, 3)))])
