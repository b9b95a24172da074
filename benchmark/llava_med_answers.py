"""Three real models' answers to VQA-RAD's test questions, from LLaVA-Med's repository, scored in both definitions.

    MEDTUNE_DATA=/data python benchmark/llava_med_answers.py

Reads ``vqa_rad/testset.json`` and ``llava_med/vqa_rad_answers/*.jsonl`` in ``$MEDTUNE_DATA``. Line i of an answer file
answers question i; this is checked by the question's text. Writes every number with n, interval and definition to
``benchmark/results/llava_med_answers.json`` and prints the table of docs/evidence.md.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent))

from paper_tables import estimate, heading, line

from medtune.data.writing import json_bytes, write_whole
from medtune.datasets.vqa import prepare_vqa_rad
from medtune.errors import DataError, MedtuneError
from medtune.evaluation.evaluation import evaluate
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.registry import plan_queries
from medtune.evaluation.provenance import stamp

RESULT = Path(__file__).parent / "results" / "llava_med_answers.json"
FILES = {
    "LLaVA, zero-shot": "answer-file-llava-zeorshot.jsonl",
    "LLaVA-Med, projection tuned on instructions": "answer-file.jsonl",
    "LLaVA-Med, pre-trained, one epoch": "answer-file-1epoch.jsonl",
}
"""Name in the table -> file; which model wrote a file is told by its ``model_id``."""
COLUMNS = {
    "open_recall_micro": "open recall",
    "open_precision_micro": "open precision",
    "open_f1_micro": "open F1",
    "closed_accuracy_micro": "closed, LLaVA-Med",
    "closed_accuracy_strict_micro": "closed, strict",
    "closed_unread_micro": "closed, unread",
}


def main(arguments: list[str]) -> int:
    """Score, write the result and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=str(RESULT))
    parser.add_argument("--resamples", type=int, default=1000)
    options = parser.parse_args(arguments)
    if "MEDTUNE_DATA" not in os.environ:
        print("set MEDTUNE_DATA to the folder that holds vqa_rad and llava_med", file=sys.stderr)
        return 2
    try:
        result = {
            **scores(Path(os.environ["MEDTUNE_DATA"]), options.resamples),
            "provenance": stamp("benchmark/llava_med_answers.py", arguments),
        }
    except MedtuneError as error:
        print(error, file=sys.stderr)
        return 2
    write_whole(Path(options.out), json_bytes(result))
    print(markdown(result))
    return 0


def scores(data: Path, resamples: int = 1000) -> dict[str, Any]:
    """Score every answer file.

    Returns:
        ``{"questions": {"open": n, "closed": n}, "models": {name: {"overall": numbers, "attributes": numbers}}}``.

    Raises:
        DataError: If a file is absent, or an answer is one to another question.
    """
    samples = list(prepare_vqa_rad(test=str(data / "vqa_rad" / "testset.json")).splits["test"])
    queries = plan_queries(samples, ["vqa"])
    models: dict[str, Any] = {}
    counts: dict[str, int] = {}
    for name, file in FILES.items():
        answers = _read(data / "llava_med" / "vqa_rad_answers" / file)
        if len(answers) != len(queries):
            raise DataError(f"{file} holds {len(answers)} answers to {len(queries)} questions; give the whole file.")
        rows = []
        for number, (query, answer) in enumerate(zip(queries, answers, strict=True), start=1):
            if not answer["prompt"].startswith(query.prompt):
                raise DataError(
                    f"{file}, line {number}: this answers another question than row {number} of the test set."
                )
            rows.append(Prediction(query.id, "vqa", "", answer["text"], query.references, dict(query.meta)))
        found = evaluate(samples, rows, {}, name=name, protocols=["vqa"], resamples=resamples).results
        models[name] = {key: found["protocols"]["vqa"][key] for key in ("overall", "attributes")}
        counts = found["vocabulary"]["vqa"]
    return {"questions": counts, "models": models}


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise DataError(
            f"The file {path} does not exist; it comes from LLaVA-Med's repository, llava/eval/eval_metrics."
        )
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def markdown(result: dict[str, Any]) -> str:
    """Return the table: a row for each model, percent with 95% intervals, then n."""
    models = result["models"]
    lines = heading(["answers", *COLUMNS.values()])
    for name, model in models.items():
        lines.append(line([name, *(estimate(model["overall"][key]) for key in COLUMNS)]))
    first = next(iter(models.values()))["overall"]
    lines.append(line(["n", *(str(first[key]["n"]) for key in COLUMNS)]))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
