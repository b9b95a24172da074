"""Routed answers and the verdicts of each adapter, as predict and evaluate write them."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from medtune.evaluation.prediction import Prediction, write_predictions

SCORES = (0.9, 0.8, 0.6, 0.4, 0.2)
CORRECT = {"counting": (1, 1, 0, 0, 0), "all": (0, 0, 1, 1, 0)}


def write_routed(file: Path, scores: Iterable[float] = SCORES) -> None:
    """Answers q0, q1, ... that were routed to counting with these scores."""
    file.parent.mkdir(parents=True, exist_ok=True)
    notes = [{"route": "counting", "score": score, "adapter": "counting"} for score in scores]
    rows = [Prediction(f"q{i}", "prompt", "?", "7", (), {"notes": note}) for i, note in enumerate(notes)]
    write_predictions(file, rows)


def write_verdicts(folders: Mapping[str, Path], correct: Mapping[str, Sequence[int]] = CORRECT) -> None:
    """A verdicts.csv for each adapter; one without numbers of its own has those of ``all``."""
    for name, folder in folders.items():
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "verdicts.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["id", "correct", "measure:f1"])
            table.writerows([f"q{i}", value, value / 2] for i, value in enumerate(correct.get(name, correct["all"])))
