"""How many real answers of MedGemma 1.5, untuned and tuned, to FLARE 2026's questions are read, and why others are not.

    MEDTUNE_DATA=/data python benchmark/flare_answers.py

Reads ``flare_task5/model_answers/*.jsonl`` in ``$MEDTUNE_DATA`` (40 answers of each task and data set, from the
repository FLARE26-MedGemma; the questions and right answers are not published). Writes the counts of each task and data
set to ``benchmark/results/flare_answers.json`` and prints the table of docs/evaluation.md.
"""

import argparse
import json
import math
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent))

from paper_tables import heading, line

from medtune.data.writing import json_bytes, write_whole
from medtune.datasets.flare import TASKS, task_type
from medtune.datasets.flare.boxes import as_box, as_value
from medtune.errors import DataError, MedtuneError
from medtune.evaluation.flare.answers import read_answer
from medtune.evaluation.provenance import stamp

RESULT = Path(__file__).parent / "results" / "flare_answers.json"
FILES = {"untuned": "medgemma_1_5_untuned.jsonl", "tuned": "medgemma_1_5_tuned.jsonl"}
"""Model -> file."""
INSTANCES = ("chromosome",)
"""Data sets of instance detection, which FLARE 2026 names detection."""


def main(arguments: list[str]) -> int:
    """Read the answers, write the counts and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=str(RESULT))
    options = parser.parse_args(arguments)
    if "MEDTUNE_DATA" not in os.environ:
        print("set MEDTUNE_DATA to the folder that holds flare_task5", file=sys.stderr)
        return 2
    try:
        found = counts(Path(os.environ["MEDTUNE_DATA"]) / "flare_task5" / "model_answers")
    except MedtuneError as error:
        print(error, file=sys.stderr)
        return 2
    result = {**found, "provenance": stamp("benchmark/flare_answers.py", arguments)}
    write_whole(Path(options.out), json_bytes(result))
    print(markdown(result))
    return 0


def counts(folder: Path) -> dict[str, Any]:
    """Read every answer.

    Returns:
        ``{"models": {model: {task: {data set: {"answers", "read", "official", "reasons"}}}}}``: the number of answers,
        of those read into a value, and of those in the form that the published script of 2025 reads; and for the unread
        ones the number of each reason.

    Raises:
        DataError: If a file is absent, or a line is no answer.
    """
    models: dict[str, Any] = {}
    for model, file in FILES.items():
        tasks: dict[str, dict[str, Any]] = {}
        for where, row in _rows(folder / file):
            dataset, task = str(row["uid"]).split(":")[1], task_type(row["task_type"], where)
            if task == "detection" and dataset in INSTANCES:
                task = "instance_detection"
            reading = read_answer(task, row["prediction"], {}, ())
            cell = tasks.setdefault(task, {}).setdefault(
                dataset, {"answers": 0, "read": 0, "official": 0, "reasons": Counter()}
            )
            cell["answers"] += 1
            cell["read"] += reading.value is not None
            cell["official"] += official_form(task, row["prediction"])
            if reading.reason:
                cell["reasons"][reading.reason] += 1
        for of_task in tasks.values():
            for cell in of_task.values():
                cell["reasons"] = dict(sorted(cell["reasons"].items()))
        models[model] = {task: dict(sorted(tasks[task].items())) for task in TASKS if task in tasks}
    return {"models": models}


def official_form(task: str, answer: str) -> bool:
    """Return whether the published script of 2025 can count an answer as right: the bare value and nothing else.

    That is one letter or a text without a line end (classification), a text (labels and reports), a Python literal of a
    list of boxes, a JSON object, or a finite number.
    """
    text = answer.strip()
    if task == "classification":
        return len(text) == 1 or (len(text.split()) <= 4 and "\n" not in text and text[1:2] not in (":", ".", ")"))
    if task == "detection":
        value = as_value(answer)
        return isinstance(value, list) and all(as_box(box) for box in value)
    if task == "instance_detection":
        try:
            return isinstance(json.loads(answer), dict)
        except ValueError:
            return False
    if task in ("counting", "regression"):
        try:
            return math.isfinite(float(answer))
        except ValueError:
            return False
    return bool(text)


def _rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    if not path.is_file():
        raise DataError(f"The file {path} does not exist; it comes from FLARE26-MedGemma's folder output.")
    rows = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        where = f"{path.name}, line {number}"
        try:
            row = json.loads(text)
        except ValueError:
            raise DataError(f"{where}: this is not valid JSON; take the file anew.") from None
        texts = isinstance(row, dict) and all(
            isinstance(row.get(key), str) for key in ("uid", "task_type", "prediction")
        )
        if not texts or row["uid"].count(":") < 1:
            raise DataError(f"{where}: an answer needs the texts uid (split:data set:...), task_type and prediction.")
        rows.append((where, row))
    return rows


def markdown(result: dict[str, Any]) -> str:
    """Return the table: a row for each model and task, and the reasons of its unread answers."""
    lines = heading(["MedGemma 1.5", "task", "answers", "read", "in the script's form", "why others are not read"])
    for model, tasks in result["models"].items():
        for task, sets in tasks.items():
            reasons: Counter[str] = Counter()
            for cell in sets.values():
                reasons.update(cell["reasons"])
            why = ", ".join(
                f"{reason} {n}" for reason, n in sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0]))
            )
            sums = [str(sum(cell[key] for cell in sets.values())) for key in ("answers", "read", "official")]
            lines.append(line([model, task.replace("_", " "), *sums, why]))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
