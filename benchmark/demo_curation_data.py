"""Writes the recorded answers and choices that the demo of curation reads beside the package's white blood cells.

    python benchmark/demo_curation_data.py [--out medtune/assets/demo_curation] [--seed 0]

No model and no person made them. A rule of known truth stands in for the generator: each answer names a cell's
attributes, half of the answers rightly, and in the others four are exchanged for another cell's. It stands in for the
people too, who prefer the right answer but for one choice in ten, and for the model that rates: from 0 to 10 by the
share of right attributes, with noise.

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
QUESTION, CAPTION = "Describe the cell.", "A white blood cell in a stained smear."
PEOPLE, RATED = 100, 400
EXCHANGED, SLIPS, NOISE = 4, 0.1, 2.0
NAMES = [name for name in ATTRIBUTES if name not in ("granularity", "cytoplasm_vacuole")]
Row = dict[str, str]


def answer(row: Row) -> str:
    """The cell's attributes in words, as the reports of WBCAtt have them."""
    said = [row[name] if name == "label" else f"{row[name]} {name.replace('_', ' ')}" for name in NAMES]
    return ", ".join(said) + "."


def exchanged(row: Row, rows: list[Row], rng: random.Random) -> Row:
    """The row with four attributes that are those of other cells."""
    wrong = dict(row)
    for name in rng.sample(NAMES, EXCHANGED):
        wrong[name] = rng.choice(sorted({other[name] for other in rows} - {row[name]}) or [row[name]])
    return wrong


def conversation(name: str, row: Row, said: Row) -> dict[str, Any]:
    """A conversation as curate writes it."""
    turns = [{"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": answer(said)}]
    return {"id": name, "image": row["path"], "caption": CAPTION, "mentions": [], "conversations": turns}


def recorded(rows: list[Row], seed: int) -> dict[str, list[dict[str, Any]]]:
    """The rows of every file."""
    rng = random.Random(seed)
    rows = rng.sample(rows, len(rows))
    people, rated, rest = rows[:PEOPLE], rows[PEOPLE : PEOPLE + RATED], rows[PEOPLE + RATED :]
    found: dict[str, list[dict[str, Any]]] = {"annotations": [], "rated": [], "ratings": [], "conversations": []}
    for number, row in enumerate(people):
        answers = [answer(row), answer(exchanged(row, rows, rng))]
        right = rng.randrange(2)
        chosen = right if rng.random() >= SLIPS else 1 - right
        candidate = {
            "id": f"asked_{number}",
            "images": [row["path"]],
            "messages": [{"role": "user", "content": f"<image>\n{QUESTION}"}],
            "answers": answers if right == 0 else answers[::-1],
            "meta": {"caption": CAPTION},
        }
        found["annotations"].append({**candidate, "preference": ("first", "second")[chosen], "annotator": "a rule"})
    for kind, some in (("rated", rated), ("conversations", rest)):
        for number, row in enumerate(some):
            said = row if rng.random() < 0.5 else exchanged(row, rows, rng)
            name = f"{kind}_{number}"
            found[kind].append(conversation(name, row, said))
            if kind == "rated":
                right_share = sum(said[key] == row[key] for key in NAMES) / len(NAMES)
                rating = min(10.0, max(0.0, 10 * right_share + rng.gauss(0, NOISE)))
                found["ratings"].append({"id": f"{name}/turn_1", "rating": round(rating)})
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
