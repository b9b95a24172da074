"""The twelve attributes of a white blood cell, as WBCAtt names them, and how rendered cells draw them.

Names and values are those of the annotation tables of WBCAtt (Tsutsui, Pang and Wen, "WBCAtt: a white blood cell
dataset annotated with detailed morphological attributes", NeurIPS 2023), with underscores read as spaces.
"""

import random
from types import MappingProxyType

from medtune.data.multiple_choice import fixed_order
from medtune.data.reports import attribute_report

Attributes = dict[str, str]

#: Attribute -> its values, in the order in which reports list the attributes.
ATTRIBUTES: MappingProxyType[str, tuple[str, ...]] = MappingProxyType(
    {
        "cell size": ("big", "small"),
        "cell shape": ("round", "irregular"),
        "nucleus shape": (
            "segmented-bilobed",
            "unsegmented-band",
            "unsegmented-indented",
            "segmented-multilobed",
            "unsegmented-round",
            "irregular",
        ),
        "nuclear cytoplasmic ratio": ("low", "high"),
        "chromatin density": ("densely", "loosely"),
        "cytoplasm vacuole": ("no", "yes"),
        "cytoplasm texture": ("clear", "frosted"),
        "cytoplasm colour": ("light blue", "blue", "purple blue"),
        "granularity": ("yes", "no"),
        "granule type": ("small", "round", "coarse", "nil"),
        "granule colour": ("pink", "red", "purple", "nil"),
        "label": ("Neutrophil", "Eosinophil", "Monocyte", "Basophil", "Lymphocyte"),
    }
)

#: The value of a granule attribute of a cell that has no granules: never an option, never in a report.
ABSENT = "nil"

_WITH_GRANULES = 0.62
_TYPE_OF_GRANULES = {"pink": "Neutrophil", "red": "Eosinophil", "purple": "Basophil"}
_TYPICAL_GRANULES = {"Neutrophil": ("small", "pink"), "Eosinophil": ("round", "red"), "Basophil": ("coarse", "purple")}

# How often (per cent) WBCAtt's training split has each value, in the order of ATTRIBUTES["label"] and, within a cell
# type, of the attribute's values.
_TYPE_SHARES = (32, 30, 14, 12, 12)
_SHARES: dict[str, tuple[tuple[int, ...], ...]] = {
    "cell size": ((60, 40), (64, 36), (87, 13), (26, 74), (1, 99)),
    "cell shape": ((77, 23), (92, 8), (43, 57), (89, 11), (68, 32)),
    "nucleus shape": (
        (19, 67, 0, 13, 0, 1),
        (69, 11, 1, 18, 0, 1),
        (0, 0, 73, 0, 7, 20),
        (29, 7, 2, 18, 3, 41),
        (0, 0, 19, 0, 78, 3),
    ),
    "nuclear cytoplasmic ratio": ((100, 0), (100, 0), (93, 7), (99, 1), (8, 92)),
    "chromatin density": ((99, 1), (99, 1), (41, 59), (100, 0), (98, 2)),
    "cytoplasm vacuole": ((97, 3), (100, 0), (53, 47), (100, 0), (100, 0)),
    "cytoplasm texture": ((100, 0), (100, 0), (12, 88), (100, 0), (36, 64)),
    "cytoplasm colour": ((100, 0, 0), (100, 0, 0), (8, 46, 46), (99, 0, 1), (3, 61, 36)),
}


def options(attribute: str) -> list[str]:
    """Return the answers that a question about `attribute` offers, in their fixed order (without "nil")."""
    return fixed_order([value for value in ATTRIBUTES[attribute] if value != ABSENT])


def asked_attributes(attributes: Attributes) -> list[str]:
    """Return the attributes that a cell can be asked about: all but those whose value is "nil"."""
    return [name for name, value in attributes.items() if value != ABSENT]


def cell_report(attributes: Attributes) -> str:
    """Write a cell's report as the reports of WBCAtt are written: "big cell size, round cell shape, ..."."""
    return attribute_report(attributes, value_only=("label",))


def sample_independent(rng: random.Random) -> Attributes:
    """Draw a cell with independent attributes, so that each has to be recognised in the image.

    There are two exceptions: a cell without granules has neither type nor colour of granules, and the cell type follows
    from the granules' colour or, without granules, from the nuclear cytoplasmic ratio.
    """
    cell = {name: rng.choice(values) for name, values in ATTRIBUTES.items()}
    if rng.random() < _WITH_GRANULES:
        cell |= {"granularity": "yes"}
        cell |= {name: rng.choice(options(name)) for name in ("granule type", "granule colour")}
        cell["label"] = _TYPE_OF_GRANULES[cell["granule colour"]]
    else:
        cell |= {"granularity": "no", "granule type": ABSENT, "granule colour": ABSENT}
        cell["label"] = "Lymphocyte" if cell["nuclear cytoplasmic ratio"] == "high" else "Monocyte"
    return cell


def sample_natural(rng: random.Random) -> Attributes:
    """Draw a cell type by its share of WBCAtt's training split, then each attribute by its share of that type."""
    row = rng.choices(range(len(_TYPE_SHARES)), _TYPE_SHARES)[0]
    label = ATTRIBUTES["label"][row]
    cell = {name: rng.choices(ATTRIBUTES[name], shares[row])[0] for name, shares in _SHARES.items()}
    kind, colour = _TYPICAL_GRANULES.get(label, (ABSENT, ABSENT))
    granular = "no" if kind == ABSENT else "yes"
    return cell | {"granularity": granular, "granule type": kind, "granule colour": colour, "label": label}


def sample_attributes(rng: random.Random, natural: float = 0.0) -> Attributes:
    """Draw a cell.

    Args:
        rng: source of all randomness.
        natural: share of cells that follow WBCAtt's own frequencies instead of independent, even ones.
    """
    return sample_natural(rng) if rng.random() < natural else sample_independent(rng)
