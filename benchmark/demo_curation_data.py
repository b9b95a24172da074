"""Writes the recorded answers and choices that the demo of curation reads beside the package's white blood cells.

    python benchmark/demo_curation_data.py [--out medtune/assets/demo_curation] [--seed 0]

No model and no person made them. A rule of known truth stands in for the generator: each conversation asks about five
attributes of a cell; half of the conversations are right, and in the others three of the five answers are another
cell's. It stands in for the people too, who prefer the right one of two answers but for one choice in ten, and for the
model that rates each answer from 0 to 10: about 7 if it is right and 3 if it is wrong, with noise.

``conversations.jsonl`` is what is selected from, ``rated.jsonl`` and ``ratings.jsonl`` are the model's preferences,
``annotations.jsonl`` the people's. All are about training cells, each about other ones. ``random.csv`` gives each
conversation a number by chance, by which a random half is taken.
"""

import argparse
import csv
import json
import random
from pathlib import Path
from typing import Any

from medtune.config import PACKAGE
from medtune.data.writing import write_whole
from medtune.datasets.wbcatt import ATTRIBUTES

CELLS = PACKAGE / "assets" / "demo_wbcatt"
CAPTION = "A white blood cell in a stained smear."
PEOPLE, RATED = 200, 400
TURNS, WRONG, SLIPS, NOISE = 5, 3, 0.1, 1.5
NAMES = [name for name in ATTRIBUTES if name != "label"]
Row = dict[str, str]


def question(name: str) -> str:
    """The question about an attribute, as the test asks it."""
    return f"What is the {name.replace('_', ' ')}?"


def another(name: str, row: Row, rows: list[Row], rng: random.Random) -> str:
    """A value of an attribute that the cell does not have."""
    return rng.choice(sorted({other[name] for other in rows} - {row[name]}))


def conversation(name: str, row: Row, rows: list[Row], rng: random.Random) -> tuple[dict[str, Any], list[bool]]:
    """A conversation as curate writes it, and which of its answers are right."""
    asked = rng.sample(NAMES, TURNS)
    right = [True] * TURNS
    if rng.random() < 0.5:
        right = [place >= WRONG for place in rng.sample(range(TURNS), TURNS)]
    turns = []
    for place, (attribute, true) in enumerate(zip(asked, right, strict=True)):
        tag = "" if place else "<image>\n"
        value = row[attribute] if true else another(attribute, row, rows, rng)
        turns += [{"from": "human", "value": tag + question(attribute)}, {"from": "gpt", "value": value}]
    made = {"id": name, "image": row["path"], "caption": CAPTION, "mentions": [], "conversations": turns}
    return made, right


def recorded(rows: list[Row], seed: int) -> dict[str, list[dict[str, Any]]]:
    """The rows of every file."""
    rng = random.Random(seed)
    rows = rng.sample(rows, len(rows))
    people, rated, rest = rows[:PEOPLE], rows[PEOPLE : PEOPLE + RATED], rows[PEOPLE + RATED :]
    found: dict[str, list[dict[str, Any]]] = {"annotations": [], "rated": [], "ratings": [], "conversations": []}
    for number, row in enumerate(people):
        attribute = rng.choice(NAMES)
        answers = [row[attribute], another(attribute, row, rows, rng)]
        right = rng.randrange(2)
        chosen = right if rng.random() >= SLIPS else 1 - right
        candidate = {
            "id": f"asked_{number}",
            "images": [row["path"]],
            "messages": [{"role": "user", "content": f"<image>\n{question(attribute)}"}],
            "answers": answers if right == 0 else answers[::-1],
            "meta": {"caption": CAPTION},
        }
        found["annotations"].append({**candidate, "preference": ("first", "second")[chosen], "annotator": "a rule"})
    for kind, some in (("rated", rated), ("conversations", rest)):
        for number, row in enumerate(some):
            made, right_ones = conversation(f"{kind}_{number}", row, rows, rng)
            found[kind].append(made)
            for turn, true in enumerate(right_ones, start=1) if kind == "rated" else ():
                rating = min(10.0, max(0.0, (7 if true else 3) + rng.gauss(0, NOISE)))
                found["ratings"].append({"id": f"{made['id']}/turn_{turn}", "rating": round(rating)})
    return found


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=PACKAGE / "assets" / "demo_curation", help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with (CELLS / "pbc_attr_v1_train.csv").open(encoding="utf-8", newline="") as file:
        files = recorded(list(csv.DictReader(file)), arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        write_whole(arguments.out / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    rng = random.Random(arguments.seed)
    chance = [f"{row['id']},{rng.random():.6f}\n" for row in files["conversations"]]
    write_whole(arguments.out / "random.csv", "".join(["id,score\n", *chance]).encode())


if __name__ == "__main__":
    main()
