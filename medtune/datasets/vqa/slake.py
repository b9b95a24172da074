"""SLAKE 1.0 (Liu et al. 2021): questions in English and Chinese about CT, MRI and X-ray images."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from medtune.datasets.prepared import Prepared
from medtune.datasets.vqa.rows import VqaRow, answer_type_of, prepare_rows, read_array
from medtune.errors import ConfigError, DataError

LANGUAGES = ("en", "zh")
_NEEDED = ("qid", "img_name", "question", "answer", "answer_type", "content_type", "q_lang")


def prepare_slake(
    train: str | None = None,
    validate: str | None = None,
    test: str | None = None,
    languages: Sequence[str] = LANGUAGES,
    closed_hint: str = "",
) -> Prepared:
    """Convert SLAKE to its three splits.

    The type of a question is its ``content_type``; that of a Chinese question ends in ``(zh)``, so that the two
    languages have scores of their own.

    Args:
        train: ``train.json`` (9,835 questions).
        validate: ``validate.json`` (2,099 questions), written as ``val``.
        test: ``test.json`` (2,094 questions, 1,061 of them English).
        languages: ``en``, ``zh`` or both; papers mostly report English.
        closed_hint: a sentence after each question whose answer is yes or no (in English).

    Raises:
        ConfigError: if no file is given, or a language is unknown.
        DataError: for a missing or empty field, another ``answer_type`` or language, an id that occurs twice, or no
            question in these languages.
    """
    files = {
        split: Path(path).expanduser() for split, path in (("train", train), ("val", validate), ("test", test)) if path
    }
    if not files:
        raise ConfigError("slake: give at least one of train, validate and test.")
    if not languages or set(languages) - set(LANGUAGES):
        raise ConfigError(f"slake: languages must be some of {', '.join(LANGUAGES)}; got {list(languages)}.")
    counts: Counter[str] = Counter()
    rows = [row for split, path in files.items() for row in _rows(path, split, languages, counts)]
    if not rows:
        raise DataError(f"slake: the files hold no question in {', '.join(languages)}; choose other languages.")
    return prepare_rows(
        "slake",
        rows,
        inputs=files,
        options={"languages": sorted(languages)},
        closed_hint=closed_hint,
        summary={"languages": dict(sorted(counts.items()))},
    )


def _rows(path: Path, split: str, languages: Sequence[str], counts: Counter[str]) -> Iterator[VqaRow]:
    for where, item in read_array(path, _NEEDED):
        language = item["q_lang"]
        if language not in LANGUAGES:
            raise DataError(f"{where}: 'q_lang' must be en or zh.")
        counts[language] += 1
        if language in languages:
            kind = item["content_type"]
            yield VqaRow(
                id=item["qid"],
                split=split,
                image=item["img_name"],
                question=item["question"],
                answer=item["answer"],
                answer_type=answer_type_of(item["answer_type"], where),
                kind=kind if language == "en" else f"{kind} (zh)",
                where=where,
                meta={
                    "language": language,
                    "modality": item.get("modality", ""),
                    "location": item.get("location", ""),
                    "knowledge": item.get("base_type") == "kvqa",
                },
            )
