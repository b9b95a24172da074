"""The questions of a run in training: which are drawn, and how they are asked."""

from pathlib import Path

import torch

from medtune.training.questions import QuestionSet, chosen
from medtune.training.runtime import Runtime
from tests.runs import CELLS, SFT, tiny

SOURCE = {"_component_": CELLS, "size": 4, "seed": 5, "offset": 50, "kind": "questions", "image_size": 16}


def test_each_question_drawn_is_asked_by_each_protocol(tmp_path: Path) -> None:
    settings = {"source": SOURCE, "limit": 3, "protocols": ["open", "multiple_choice"]}
    asked = QuestionSet(tiny(tmp_path, **SFT, questions=settings), None, Runtime(torch.device("cpu")))
    drawn = [asked.source[index].id for index in chosen(len(asked.source), 3)]
    assert [sample.id for sample in asked.samples] == drawn and len(drawn) == 3
    found = sorted((query.meta["sample_id"], query.task) for query in asked.queries)
    assert found == sorted((name, task) for name in drawn for task in ("open", "multiple_choice"))
