"""The reports of Open-I with the labels that human indexers gave them."""

import tarfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple

# Finding to the headings of the indexers; after a slash a qualifier that the heading must have.
MESH = {
    "cardiomegaly": ("Cardiomegaly",),
    "pleural effusion": ("Pleural Effusion", "Hydropneumothorax", "Hemothorax"),
    "pneumothorax": ("Pneumothorax", "Hydropneumothorax", "Hemopneumothorax"),
    "atelectasis": ("Pulmonary Atelectasis",),
    "airspace opacity": ("Opacity", "Airspace Disease", "Infiltrate", "Consolidation"),
    "pneumonia": ("Pneumonia",),
    "congestion or edema": ("Pulmonary Edema", "Pulmonary Congestion", "Heart Failure"),
    "nodule or mass": ("Nodule", "Mass"),
    "granuloma": ("Calcified Granuloma", "Granuloma", "Granulomatous Disease"),
    "emphysema or hyperinflation": (
        "Emphysema",
        "Pulmonary Emphysema",
        "Bullous Emphysema",
        "Pulmonary Disease, Chronic Obstructive",
        "Lung/hyperdistention",
        "Lung, Hyperlucent",
        "Diaphragm/flattened",
    ),
    "low lung volumes": ("Lung/hypoinflation",),
    "scar or fibrosis": ("Cicatrix", "Pulmonary Fibrosis", "Fibrosis"),
    "pleural thickening": ("Thickening/pleura",),
    "fracture": ("Fractures, Bone",),
    "degenerative spine": (
        "Spondylosis",
        "Osteophyte",
        "Thoracic Vertebrae/degenerative",
        "Spine/degenerative",
        "Cervical Vertebrae/degenerative",
        "Lumbar Vertebrae/degenerative",
    ),
    "scoliosis": ("Scoliosis",),
    "aortic disease": (
        "Atherosclerosis",
        "Aorta/tortuous",
        "Aorta, Thoracic/tortuous",
        "Aorta/ectatic",
        "Aorta, Thoracic/ectatic",
        "Calcinosis/aorta",
        "Calcinosis/aorta, thoracic",
    ),
    "hiatal hernia": ("Hernia, Hiatal", "Hernia, Diaphragmatic"),
    "device": ("Catheters, Indwelling", "Implanted Medical Device", "Tube, Inserted", "Medical Device", "Stents"),
}


class Labelled(NamedTuple):
    """A report (findings and impression), and the findings by its headings."""

    number: int
    text: str
    findings: frozenset[str]


def read_openi(archive: Path) -> list[Labelled]:
    """All indexed reports with a text."""
    found = []
    with tarfile.open(archive) as files:
        for member in files:
            content = files.extractfile(member) if member.name.endswith(".xml") else None
            if content is None:
                continue
            tree = ElementTree.parse(content).getroot()
            headings = [heading.text.lower().strip() for heading in tree.iter("major")]
            sections = {part.get("Label"): part.text or "" for part in tree.iter("AbstractText")}
            text = "\n".join(sections.get(label, "") for label in ("FINDINGS", "IMPRESSION"))
            if headings and "no indexing" not in headings and text.strip():
                names = frozenset(name for name, wanted in MESH.items() if any(_has(headings, one) for one in wanted))
                found.append(Labelled(int(tree.find("pmcId").get("id")), text, names))
    return found


def _has(headings: list[str], wanted: str) -> bool:
    head, _, qualifier = wanted.lower().partition("/")
    for heading in headings:
        first, *qualifiers = heading.split("/")
        if first.strip() == head and (not qualifier or any(one.startswith(qualifier) for one in qualifiers)):
            return True
    return False
