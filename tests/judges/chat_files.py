"""Questions of a chat with images made in a test, answers to them, and the words of a run that scores the answers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medtune.data.sample import Message, Sample
from medtune.evaluation.chat_grades import ChatGrade
from medtune.evaluation.prediction import Prediction, write_predictions
from medtune.evaluation.protocols.chat import Chat
from medtune.evaluation.questions import read_questions
from tests.judges.judge_server import MODEL

DOMAINS = ("mri", "ct_scan")


def question(number: int, **meta: Any) -> Sample:
    """Question ``number``: two questions on each image, domains by image, types by question."""
    image = number // 2
    known = {
        "attribute": DOMAINS[image % 2],
        "question_type": ("conversation", "detailed_description")[number % 2],
        "answer": f"Reference {number}.",
        "caption": f"Caption {image}.",
        "mentions": [f"Mention {image}."],
    }
    kept = {name: value for name, value in {**known, **meta}.items() if value is not None}
    return Sample(f"q{number}", (f"{image}.png",), (Message("user", f"Question {number}?\n<image>"),), kept)


def write_questions(folder: Path, count: int, **meta: Any) -> list[Sample]:
    """Write ``prepared/test.jsonl`` and ``images``."""
    samples = [question(number, **meta) for number in range(count)]
    for name in ("prepared", "images"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for image in {sample.images[0] for sample in samples}:
        pixels = np.random.default_rng(int(image[:-4])).integers(0, 256, (6, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / image)
    lines = "".join(json.dumps(sample.to_dict()) + "\n" for sample in samples)
    (folder / "prepared/test.jsonl").write_text(lines)
    return samples


def answered(samples: list[Sample], answers: Mapping[int, str]) -> list[Prediction]:
    """Predictions as the predict recipe writes them; an answer that is not given is ``Answer <number>.``."""
    rows = []
    for number, sample in enumerate(samples):
        (query,) = Chat().plan(sample)
        text = answers.get(number, f"Answer {number}.")
        rows.append(Prediction(query.id, query.task, query.prompt, text, query.references, query.meta))
    return rows


def write_answers(folder: Path, count: int, answers: Mapping[int, str] = {}, out: str = "answers", **meta: Any) -> Path:
    """Write questions and ``<out>.jsonl``, the answers to them."""
    path = folder / f"{out}.jsonl"
    rows = answered(write_questions(folder, count, **meta), answers)
    path.write_text("".join(json.dumps(row.to_dict()) + "\n" for row in rows))
    return path


def scoring(folder: Path, url: str, *more: str, out: str = "judged") -> list[str]:
    """The words of a run that scores ``answers.jsonl``."""
    return [
        "--config", "judge/chat_openai_server", f"score={folder / 'answers.jsonl'}", f"image_root={folder / 'images'}",
        f"output_dir={folder / out}", f"server.base_url={url}", f"server.model={MODEL}", "server.concurrency=4",
        "server.timeout=20", *more,
    ]  # fmt: skip


def points(question: str, first: str, second: str) -> str:
    """A judge of known truth: 8 for a reference, N (1 to 9) for answer N, one point more for the first place."""
    scores = []
    for place, text in enumerate((first, second)):
        digits = "".join(letter for letter in text if letter.isdigit())
        own = 8 if text.startswith(("Reference", "The answer to")) else min(9, max(1, int(digits or 1)))
        scores.append(own + (place == 0))
    return f"{scores[0]} {scores[1]}\nBecause of {question!r}."


def write_llava_med(folder: Path, count: int = 6) -> None:
    """Write questions in the layout of LLaVA-Med's file, and their images."""
    samples = write_questions(folder, count)
    rows = [
        {
            "question_id": number,
            "image": sample.images[0],
            "text": sample.messages[0].content,
            "type": sample.meta["question_type"],
            "domain": {sample.meta["attribute"]: True},
            "fig_caption": sample.meta["caption"],
            "in_text_mention": [{"tokens": text} for text in sample.meta["mentions"]],
            "gpt4_answer": sample.meta["answer"],
        }
        for number, sample in enumerate(samples)
    ]
    (folder / "llava_med_eval_qa50_qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def provide_graded(config: Any, folder: Path) -> None:
    """Write the scored answers that an evaluation reads, if a judge has not: what a run of a served judge leaves."""
    path = folder / str(getattr(config, "predictions", ""))
    if path.name != "graded.jsonl" or path.exists() or getattr(config, "protocols", None) != ["chat"]:
        return
    shown = ((8.0, 4.0), (8.0, 5.0))
    grade = ChatGrade(shown, "", ("8 4", "5 8"), "Reference.", False, "model, chat-v1, orders both").to_dict()
    asked = [
        query for sample in read_questions(folder / config.prepared_dir / "test.jsonl") for query in Chat().plan(sample)
    ]
    rows = [
        Prediction(one.id, one.task, one.prompt, "An answer.", one.references, {**one.meta, "chat": grade})
        for one in asked
    ]
    write_predictions(path, rows)
