"""`medtune annotate` as it is called: dry run, files in and out, and a server that is killed."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from medtune.annotate.records import Choice
from medtune.annotate.store import Store
from medtune.cli.main import main
from medtune.judges.annotations import read_annotations
from tests.annotate.running import Page, prepared, rows, write_images, write_rows


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "images", 6)
    write_rows(tmp_path / "data.jsonl", rows(6))
    return tmp_path


def annotate(*words: str) -> int:
    return main(["annotate", "data.jsonl", *words])


def filled(folder: Path) -> dict[tuple[str, str], Choice]:
    """A store with choices of two annotators, one with a comment."""
    made = {}
    with prepared(folder, 6) as (desk, _):
        options = ("first", "second", "both", "neither", "first", "second")
        for name, shift in (("Ann", 0), ("Bo", 1)):
            for number in range(6):
                choice = Choice(options[(number + shift * (number > 3)) % 6], "naïve\nline" * (number == 1), None, 1.5)
                desk.store.take([(f"q{number}", name, choice, "x")])
                made[f"q{number}", name] = choice
    return made


def read_back(path: Path) -> dict[tuple[str, str], tuple[str, str]]:
    return {(one.candidate.id, one.annotator): (one.preference, one.comment) for one in read_annotations(path)}


@pytest.mark.parametrize("format", ["jsonl", "label_studio"])
def test_export_is_read_back_by_the_judges_and_imports_into_an_empty_store(
    folder: Path, format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = filled(folder)
    assert annotate("--store", "store.sqlite", "--export", "out.json", "--format", format, "--agreement") == 0
    said = capsys.readouterr().out
    assert "out.json: 12 choices" in said and "Ann and Bo: 6 questions" in said and "Cohen's kappa" in said
    expected = {key: (choice.preference, choice.comment) for key, choice in made.items()}
    assert read_back(folder / "out.json") == expected
    for _ in range(2):  # the second time changes nothing
        assert annotate("--images", "images", "--store", "new.sqlite", "--import", "out.json") == 0
    with Store("new.sqlite") as store:
        assert {(row.id, who): (made.preference, made.comment) for row, who, made in store.choices()} == expected
        assert store.choices()[0][0].meta == {"caption": "Caption 0"}


def test_label_studio_tasks_are_questions_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(folder)
    assert annotate("--store", "store.sqlite", "--export", "tasks.json", "--format", "label_studio") == 0
    tasks = json.loads((folder / "tasks.json").read_text())
    assert tasks[0]["data"]["image"] == "/data/local-files/?d=0.png" and tasks[0]["data"]["answer1"] == "First of 0."
    foreign = [{"id": 7, "data": {"prompt": "?", "answer1": "a", "answer2": "b", "image": "0.png", "caption": "c"}}]
    (folder / "foreign.json").write_text(json.dumps(foreign))
    for name, count in (("tasks.json", 6), ("foreign.json", 1)):
        assert main(["annotate", name, "--images", "images", "--dry-run"]) == 0
        assert f"{count} questions, {count} images" in capsys.readouterr().out


def test_dry_run_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert annotate("--images", "images", "--annotator", "Ann", "--overlap", "0.5", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "6 questions, 6 images\n3 of them go to all annotators, the other 3 to one annotator each (seed 0)\n" in said
    assert "token" not in said
    assert sorted(path.name for path in folder.iterdir()) == ["data.jsonl", "images"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--overlap", "0"], "each question goes to one annotator (seed 0)"),
        (["--overlap", "1"], "each question goes to all annotators (seed 0)"),
        (["--overlap", "1", "--raters", "2"], "each question goes to 2 annotators (seed 0)"),
        (["--overlap", "0.17"], "1 of them goes to all annotators, the other 5 to one annotator each (seed 0)"),
        (["--overlap", "0.83", "--raters", "3"], "5 of them go to 3 annotators, the other one to one annotator each"),
    ],
)
def test_dry_run_says_in_a_sentence_who_gets_the_questions(
    options: list[str], sentence: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert annotate("--images", "images", *options, "--dry-run") == 0
    assert f"6 questions, 6 images\n{sentence}" in capsys.readouterr().out


def test_captions_of_articles_are_found_by_image_and_pair_id(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = [{**row, "meta": {}} for row in rows(6)]
    write_rows(folder / "data.jsonl", bare)
    llava = [
        {"pair_id": "0", "fig_caption": "A cell.", "in_text_mention": [{"tokens": "See Fig . 1 ."}]},
        {"image": "far/1.png", "caption": "Another."},
        {"id": "q2", "caption": "By id."},
    ]
    (folder / "captions.json").write_text(json.dumps(llava))
    assert annotate("--images", "images", "--captions", "captions.json", "--dry-run") == 0
    assert "3 have no caption" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda row: {**row, "id": "q1"}, r"line 3 \(id 'q1'\): data.jsonl, line 2 has this id already"),
        (lambda row: {k: v for k, v in row.items() if k != "id"}, "line 3: the field 'id' is missing"),
        (lambda row: {**row, "images": ["gone.png"]}, "id 'q2': the image gone.png is not in images"),
        (lambda row: {**row, "images": ["../data.jsonl"]}, "leaves the image root"),
        (lambda row: {**row, "answers": ["one"]}, "'answers' must be a list of two texts"),
    ],
)
def test_a_row_that_cannot_be_annotated_is_named_before_anybody_begins(
    folder: Path, capsys: pytest.CaptureFixture[str], change: Any, told: str
) -> None:
    given = rows(6)
    given[2] = change(given[2])
    write_rows(folder / "data.jsonl", given)
    assert annotate("--images", "images", "--annotator", "Ann") == 2
    assert re.search(told, capsys.readouterr().err)
    assert not (folder / "annotations.sqlite").exists()


def test_answers_with_nothing_to_choose_are_left_out_and_counted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = rows(6)
    given[0]["answers"] = ["same", " same "]
    write_rows(folder / "data.jsonl", given)
    assert annotate("--images", "images", "--dry-run") == 0
    assert "5 questions" in (said := capsys.readouterr().out) and "1 left out" in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--host", "0.0.0.0"], "give --cert and --key"),
        (["--cert", "data.jsonl"], "belong together"),
        (["--cert", "none.pem", "--key", "none.pem"], "none.pem does not exist"),
        (["--port", "70000"], "not from 0 to 65535"),
        (["--days", "0"], "valid for some time"),
        (["--annotator", "a\nb"], "give a name"),
        (["--overlap", "2"], "a share from 0 to 1"),
        (["--images", "images"], "nobody annotates yet"),
        (["--images", "images", "--annotator", "Ann", "--renew", "Bo"], "no such annotator; there are Ann"),
        (["--format", "jsonl"], "give --export FILE"),
        (["--export", "x.jsonl"], "annotations.sqlite does not exist"),
        ([], "names an image; give the folder"),
        (["--images", "images", "--import", "none.jsonl"], "none.jsonl does not exist"),
        (["--images", "images", "--field", "colour=x"], "--field colour"),
    ],
)
def test_arguments_that_do_not_fit_are_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert annotate(*words) == 2
    assert told in (said := capsys.readouterr().err) and said.count("\n") == 1 and said.startswith("error: ")


def test_an_import_with_one_wrong_row_takes_none(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = [{**row, "preference": "first", "annotator": "Ann", "comment": ""} for row in rows(7, images=False)]
    write_rows(folder / "made.jsonl", made)
    assert annotate("--images", "images", "--import", "made.jsonl") == 2
    assert "made.jsonl, line 7: the id 'q6' is not among the questions" in capsys.readouterr().err
    with Store("annotations.sqlite") as store:
        assert store.choices() == []
    write_rows(folder / "made.jsonl", made[:2])
    assert annotate("--images", "images", "--import", "made.jsonl") == 0
    write_rows(folder / "made.jsonl", [{**made[0], "preference": "both"}])
    assert annotate("--images", "images", "--import", "made.jsonl") == 2
    assert "another choice of this annotator" in capsys.readouterr().err


def started(folder: Path) -> tuple[subprocess.Popen[str], dict[str, str], str]:
    """The real command on a free port: the process, the tokens that it prints, and its address."""
    command = [sys.executable, "-m", "medtune.cli", "annotate", "data.jsonl", "--images", "images", "--port", "0"]
    people = ["--annotator", "Ann", "--annotator", "Bo", "--overlap", "1"]
    checkout = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [*command, *people],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": checkout},
    )
    assert process.stderr is not None and process.stdout is not None
    line = process.stderr.readline()
    while line and "listening on" not in line:
        line = process.stderr.readline()
    url = re.search(r"http://\S+?/", line)
    assert url is not None, line
    os.set_blocking(process.stdout.fileno(), False)
    tokens = dict(re.findall(r"^(\w+): http\S+#token=(\S+)$", process.stdout.read() or "", flags=re.M))
    return process, tokens, url[0]


@pytest.mark.slow
def test_nothing_that_was_confirmed_is_lost_when_the_server_is_killed(folder: Path) -> None:
    process, tokens, url = started(folder)
    confirmed = {}
    try:
        assert sorted(tokens) == ["Ann", "Bo"]
        page = Page(url, None, tokens, None)  # type: ignore[arg-type]
        for name in tokens:
            state = page.call(name, "api/state")[1]
            for _ in range(4):
                item = state["item"]
                status, state = page.call(name, "api/choose", {"number": item["number"], "choice": "both"})
                assert status == 200
                confirmed[item["id"], name] = "both"
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    again, renewed, url = started(folder)
    try:
        assert renewed == {}, "the tokens go on, and are not printed again"
        page = Page(url, None, tokens, None)  # type: ignore[arg-type]
        assert [page.call(name, "api/state")[1]["done"] for name in tokens] == [4, 4]
        assert urllib.request.urlopen(url).headers["Content-Type"].startswith("text/html")
    finally:
        again.send_signal(signal.SIGTERM)
        again.communicate(timeout=60)
    with Store(folder / "annotations.sqlite") as store:
        assert {(row.id, who): choice.preference for row, who, choice in store.choices()} == confirmed
