"""Rows and tables of any form: each is a sample, or refused by a MedtuneError that does not quote it."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medtune.data.rows import NOTES, sample_of
from medtune.data.sample import IMAGE_TAG, ROLES, Sample
from medtune.data.source import SampleSource
from medtune.datasets import jsonl_dataset, llava_json_dataset, report_csv_dataset
from medtune.datasets.labelled import prepare_labelled_csv
from medtune.errors import MedtuneError
from tests.datasets.owners import write_picture

pytestmark = pytest.mark.timeout(120)


def bounded(examples: int) -> settings:
    """The same inputs each time, and no files kept."""
    health = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.large_base_example]
    return settings(max_examples=examples, derandomize=True, database=None, deadline=None, suppress_health_check=health)


TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["", " ", "<image>", "a.png", "x <image> y", "___", "nan", "\x1b[2J", "a\nb", "\u2028", "A cell."]),
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
)
PARTS = st.one_of(
    VALUES,
    st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "image", "image_url", "input_image", "video"])},
        optional={"text": TEXTS, "image": VALUES, "image_url": VALUES, "url": TEXTS, "path": TEXTS, "index": SCALARS},
    ),
)
CONTENT = st.one_of(TEXTS, VALUES, st.lists(PARTS, max_size=4))


def turns(who: str, what: str, names: list[str]) -> st.SearchStrategy[Any]:
    turn = st.fixed_dictionaries({who: st.sampled_from(names) | VALUES, what: CONTENT}, optional={"weight": SCALARS})
    return st.lists(turn | VALUES, max_size=4) | VALUES


MESSAGES = turns("role", "content", [*ROLES, "developer"])
SPOKEN = turns("from", "value", ["human", "gpt", "system", "user", "assistant"])
PATHS = st.one_of(VALUES, st.lists(TEXTS, max_size=3), st.just(["0.png"]))
KEYS = {
    "id": VALUES,
    "messages": MESSAGES,
    "conversations": SPOKEN,
    "image": PATHS,
    "images": PATHS,
    "meta": VALUES,
    "weight": SCALARS,
    "system": VALUES,
    "system_prompt": VALUES,
    "caption": VALUES,
    sorted(NOTES)[0]: VALUES,
}
ASK, ANSWER = {"role": "user", "content": "Is it big?"}, {"role": "assistant", "content": "It is."}
SAID = [{"from": "human", "value": "<image> Is it big?"}, {"from": "gpt", "value": "It is."}]
GOOD = [
    {"id": "a", "messages": [ANSWER], "images": ["0.png"], "meta": {"x": 1}, "weight": 2},
    {"messages": [ASK, ANSWER, ASK, ANSWER], "images": ["0.png", "0.png"], "system": "Be brief."},
    {"id": 7, "messages": [{**ASK, "content": [{"type": "image"}, "Big?"]}, ANSWER], "image": "0.png"},
    {"messages": [{**ASK, "content": [{"type": "image_url", "image_url": {"url": "0.png"}}]}, ANSWER]},
    {"id": "b", "image": "0.png", "conversations": SAID, "source": "x"},
    {"id": "b", "image": "0.png", "conversations": SAID[::-1] + SAID[1:], "system_prompt": "Be brief."},
]  # fmt: skip
ALTERED = st.tuples(st.sampled_from(GOOD), st.fixed_dictionaries({}, optional=KEYS)).map(
    lambda both: {**both[0], **both[1]}
)
ONE_ALTERED = st.tuples(
    st.sampled_from(GOOD), st.sampled_from(sorted(KEYS)).flatmap(lambda key: st.fixed_dictionaries({key: KEYS[key]}))
).map(lambda both: {**both[0], **both[1]})
ROWS = st.one_of(st.sampled_from(GOOD), ONE_ALTERED, ONE_ALTERED, ALTERED, VALUES)


def check(sample: Sample) -> None:
    """What every sample promises to the code that reads it."""
    assert sample.id.strip() and sample.id.isprintable() and 0 < sample.weight < float("inf")
    assert sample.messages and all(isinstance(m.content, str) and m.role in ROLES for m in sample.messages)
    assert all(m.content.strip() for m in sample.messages if m.role == "assistant")
    tags = [m.content.count(IMAGE_TAG) for m in sample.messages if m.role == "user"]
    assert sum(tags) in (0, len(sample.images)) and all(isinstance(path, str) and path for path in sample.images)
    assert Sample.from_dict(sample.to_dict(), "again").to_dict() == sample.to_dict() or "NaN" in json.dumps(sample.meta)


def outcomes(source: SampleSource) -> list[str | None]:
    """Read every row and its images; return the error of each, or None."""
    found: list[str | None] = []
    for index in range(len(source)):
        try:
            sample = source[index]
            check(sample)
            source.image_sizes(sample)
            found.append(None)
        except MedtuneError as error:
            found.append(str(error))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    write_picture(folder / "images/0.png", 1)
    return folder


@bounded(1600)
@given(ROWS)
def test_any_row_is_a_sample_or_refused_by_its_place(row: Any) -> None:
    try:
        sample = sample_of(row, "f.jsonl, line 3", "f:3")
    except MedtuneError as error:
        assert str(error).startswith("f.jsonl, line 3")
        return
    check(sample)


def damaged(data: bytes, cuts: list[tuple[int, bytes]]) -> bytes:
    """Write bytes over a file at relative places."""
    for at, new in cuts:
        place = at % (len(data) + 1)
        data = data[:place] + new + data[place + max(len(new) - 1, 0) :]
    return data


DAMAGE = st.lists(
    st.tuples(
        st.integers(0, 5000),
        st.sampled_from(
            [b"", b'"', b"{", b"]", b"\\", b"\xff", b"\n", b"9" * 5000, b"\\ud800", b"null", b",", b"\x00"]
        ),
    ),
    max_size=4,
)


@bounded(900)
@given(st.lists(ROWS, min_size=1, max_size=4), st.just([]) | DAMAGE, st.booleans(), st.booleans())
def test_any_json_file_is_read_row_by_row_or_refused(
    folder: Path, rows: list[Any], damage: list[tuple[int, bytes]], as_array: bool, llava: bool
) -> None:
    lines = [json.dumps(row) for row in rows]
    text = f"[{','.join(lines)}]" if as_array else "\n".join(lines)
    path = folder / "rows.json"
    path.write_bytes(damaged(text.encode(), damage))
    build = llava_json_dataset if llava else jsonl_dataset
    try:
        source = build(str(path), str(folder / "images"))
    except MedtuneError as error:
        assert "rows.json" in str(error)
        return
    for error in outcomes(source):
        assert error is None or error.startswith("rows.json, ")


CELLS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    st.sampled_from(["0.png", "0", "train", "Test", "1", "-1", "0,0", "1.0", "", "nan", "No Finding", "a|b", "A", "a"]),
)


def written(cells: list[list[str]], delimiter: str, quoted: bool) -> str:
    if not quoted:
        return "\n".join(delimiter.join(row) for row in cells)
    return "\n".join(delimiter.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in cells)


def numbered(rows: list[list[str]]) -> list[list[str]]:
    """Rows with an image of their own each, as most tables have."""
    return [["0.png" if number == 0 else f"{number}.png", *row] for number, row in enumerate(rows)]


LABELS = st.sampled_from(["a", "b", "A", "a|b", "1", "0", "-1", "No Finding", "train", "test", ""])
USUAL = st.lists(st.lists(st.sampled_from("ab") | LABELS, min_size=2, max_size=2), min_size=2, max_size=8).map(numbered)
ODD = st.lists(st.lists(CELLS, min_size=3, max_size=3) | st.lists(CELLS, max_size=4), max_size=5)
TABLES = st.tuples(
    USUAL | USUAL | ODD,
    st.sampled_from([",", ";", "\t", "|"]),
    st.booleans(),
    st.sampled_from(["utf-8", "utf-8", "cp1252", "latin-1", "utf-16", "gbk"]),
    st.just([]) | DAMAGE,
)
HEADER = ["image", "text", "more"]


def write_table(path: Path, table: tuple[Any, ...]) -> dict[str, str]:
    """Write a table; return its delimiter and encoding."""
    cells, delimiter, quoted, encoding, damage = table
    text = written([HEADER, *cells], delimiter, quoted)
    path.write_bytes(damaged(text.encode(encoding, "replace"), damage))
    return {"delimiter": delimiter, "encoding": encoding}


@bounded(800)
@given(TABLES, st.sampled_from([None, "more"]), st.sampled_from([None, "|"]), st.sampled_from([None, "", ".png"]))
def test_any_table_of_reports_is_read_row_by_row_or_refused(
    folder: Path, table: tuple[Any, ...], id_column: str | None, separator: str | None, suffix: str | None
) -> None:
    options = write_table(folder / "reports.csv", table)
    more = {"id_column": id_column, "image_separator": separator, "image_suffix": suffix}
    try:
        source = report_csv_dataset(str(folder / "reports.csv"), str(folder / "images"), **options, **more)  # type: ignore[arg-type]
    except MedtuneError:
        return
    for error in outcomes(source):
        assert error is None or error.startswith("reports.csv, line ")


@bounded(800)
@given(
    TABLES,
    st.just({})
    | st.sampled_from([{"task": "multi_label"}, {"task": "multi_label", "label_column": ["text", "more"]}])
    | st.fixed_dictionaries(
        {},
        optional={
            "task": st.sampled_from(["multi_label", "multi_class", "ordinal"]),
            "label_column": st.sampled_from(["more", ["text", "more"]]),
            "class_columns": st.just(["text", "more"]),
            "split_column": st.just("more"),
            "group_column": st.just("more"),
            "uncertain": st.sampled_from(["absent", "present", "leave_out"]),
            "blank": st.sampled_from(["absent", "leave_out"]),
            "fold_case": st.just(True),
            "no_finding": st.just(["a"]),
            "image_suffix": st.sampled_from(["", ".png"]),
            "classes": st.sampled_from([["a", "b"], {"a": "x", "b": "y"}]),
            "class_weights": st.sampled_from(["balanced", {"a": 2.0}]),
        },
    ),
)
def test_any_table_of_labels_is_prepared_or_refused(
    folder: Path, table: tuple[Any, ...], options: dict[str, Any]
) -> None:
    format = write_table(folder / "labels.csv", table)
    try:
        prepared = prepare_labelled_csv(
            str(folder / "labels.csv"), "s", "CT", image_column="image", **{"label_column": "text", **format, **options}
        )
    except MedtuneError:
        return
    for samples in prepared.splits.values():
        for sample in samples:
            check(sample)
