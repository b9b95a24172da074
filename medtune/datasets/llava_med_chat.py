"""The chat questions of LLaVA-Med: 193 questions on 50 figures, with captions and answers of GPT-4 (Li et al. 2023)."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medtune.data.sample import Message, Sample, is_identifier
from medtune.data.source import decode_json
from medtune.datasets.figure_captions import figure_of
from medtune.datasets.prepared import Prepared
from medtune.errors import DataError

NAME = "llava_med_chat"
DOMAINS = ("chest_xray", "mri", "ct_scan", "histology", "gross")
"""A question whose figure shows several of these counts for the first; so does Table 2 of BioMed-VITAL."""


def prepare_llava_med_chat(source: str) -> Prepared:
    """Make a split ``test`` of open questions about figures, for the protocol ``chat``.

    Args:
        source: JSON Lines of ``{"question_id", "image", "text", "type", "domain", "fig_caption", "in_text_mention",
            "gpt4_answer"}``, as in LLaVA-Med's ``llava_med_eval_qa50_qa.jsonl``. ``gpt4_answer``, the reference answer,
            may be absent: a judge can make one from the caption.

    Raises:
        DataError: Naming file and line: a field is missing or no text, a question has no known domain, or an id occurs
            twice.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        raise DataError(f"The file of questions {path} does not exist; correct its path.")
    samples: dict[str, Sample] = {}
    several = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path.name}, line {number}"
            row = decode_json(line, where)
            sample = _sample(row, where)
            if samples.setdefault(sample.id, sample) is not sample:
                raise DataError(f"{where}: the question_id {sample.id!r} occurs twice; give each question its own.")
            several += sum(map(bool, row["domain"].values())) > 1
    if not samples:
        raise DataError(f"{path.name} holds no question.")
    found = list(samples.values())
    summary = {
        "domains": dict(sorted(Counter(sample.meta["attribute"] for sample in found).items())),
        "question_types": dict(sorted(Counter(sample.meta["question_type"] for sample in found).items())),
        "with_reference": sum("answer" in sample.meta for sample in found),
        "of_several_domains": several,
    }
    return Prepared(NAME, {"test": found}, {"source": path}, {}, summary=summary)


def _sample(row: Any, where: str) -> Sample:
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: a question must be a JSON object, this one is a {type(row).__name__}.")
    if not is_identifier(row.get("question_id")):
        raise DataError(f"{where}: the field 'question_id' must be a number or a text; correct the question.")
    texts = {key: _text(row, key, where) for key in ("image", "text", "type")}
    figure = figure_of(row, where)
    meta: dict[str, Any] = {
        "attribute": _domain(row.get("domain"), where),
        "question_type": texts["type"],
        "caption": figure.caption,
        "mentions": list(figure.mentions),
    }
    if row.get("gpt4_answer") is not None:
        meta["answer"] = _text(row, "gpt4_answer", where)
    return Sample.from_dict(
        {
            "id": str(row["question_id"]),
            "images": [texts["image"]],
            "messages": [vars(Message("user", texts["text"]))],
            "meta": meta,
        },
        where,
    )


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: the field {key!r} is missing or no text; correct or remove the question.")
    return value.strip()


def _domain(flags: Any, where: str) -> str:
    if not isinstance(flags, Mapping):
        raise DataError(f"{where}: 'domain' must be an object such as {{\"mri\": true}}.")
    known = [name for name in DOMAINS if flags.get(name)]
    if not known:
        raise DataError(f"{where}: 'domain' names none of {', '.join(DOMAINS)}; correct or remove the question.")
    return known[0]
