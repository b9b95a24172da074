"""Answers for images without a label: whose question is asked, the table for a spreadsheet, nothing to score."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from medtune.config import load_config
from medtune.recipes import evaluate, predict
from tests.recipes.test_predict import arguments, rows, world

__all__ = ["world"]  # a fixture


def asked(world: Path, output: Path, source: Path, *more: str) -> list[str]:
    own = [one for one in arguments(world, output) if not one.startswith("questions.")]
    own[1] = "predict/new_images_mini"
    return [*own, f"questions.source={source}", "questions.center_crop=1.0", *more]


def table(output: Path, delimiter: str = ",") -> list[dict[str, str]]:
    content = (output / "predictions.csv").read_bytes()
    assert content.startswith(b"\xef\xbb\xbf"), "Excel needs the mark"
    return list(csv.DictReader(content.decode("utf-8-sig").splitlines(), delimiter=delimiter))


@pytest.fixture
def new_images(world: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "new"
    for place in ("a/1.png", "a/2.png", "b/1.png", ".hidden.png", "notes.txt"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(world / "cell0.png", folder / place)
    return folder


def test_one_question_for_all_images_of_a_folder(world, tmp_path, new_images):
    output = tmp_path / "out"
    assert predict.main(asked(world, output, new_images, "question=What is the nucleus?")) == 0
    found = rows(output)
    assert [row["id"] for row in found] == ["a/1.png/prompt", "a/2.png/prompt", "b/1.png/prompt"]
    assert {row["prompt"] for row in found} == {"What is the nucleus?"}
    written = table(output)
    assert [row["id"] for row in written] == ["a/1.png", "a/2.png", "b/1.png"]
    assert [row["answer"] for row in written] == [row["prediction"] for row in found]
    assert list(written[0]) == ["id", "images", "question", "answer", "finished", "query", "control"]
    assert {row["finished"] for row in written} == {"no"}  # five tokens are too few for this model


def test_all_images_of_a_folder_are_one_study(world, tmp_path, new_images):
    assert predict.main(asked(world, tmp_path / "out", new_images, "questions.by_folder=true")) == 0
    assert [(row["id"], row["images"]) for row in table(tmp_path / "out")] == [
        ("a", "a/1.png+a/2.png"),
        ("b", "b/1.png"),
    ]


def test_another_image_of_the_same_name_is_not_answered_with_the_old_answer(world, tmp_path, new_images, capsys):
    output = tmp_path / "out"
    assert predict.main(asked(world, output, new_images)) == 0
    shutil.copy(world / "cell1.png", new_images / "b" / "1.png")
    assert predict.main(asked(world, output, new_images)) == 2
    assert "was made with other settings" in capsys.readouterr().err


def test_rows_ask_their_own_question_and_the_fixed_one_only_without_words(world, tmp_path):
    user = [{"role": "user", "content": "Which size?"}, {"role": "assistant", "content": "big"}]
    lines = [
        {"id": "own", "images": ["cell0.png"], "messages": [*user, {"role": "user", "content": "And the nucleus?"}]},
        {"id": "none", "images": ["cell1.png"], "messages": [{"role": "user", "content": "<image>\n"}]},
        {"id": "report", "images": ["cell2.png"], "messages": [{"role": "assistant", "content": "a small cell"}]},
    ]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    how = [
        f"questions.source={source}",
        "protocols=[prompt]",
        "swapped=[]",
        "question=What is it?",
        "csv_delimiter=';'",
    ]
    assert predict.main(arguments(world, tmp_path / "out", *how)) == 0
    prompts = {row["id"]: row["prompt"] for row in rows(tmp_path / "out")}
    fixed = {"none/prompt": "<image>\nWhat is it?", "report/prompt": "What is it?"}
    assert prompts == {"own/prompt": "And the nucleus?", **fixed}
    assert [row["question"] for row in table(tmp_path / "out", ";")] == [
        "And the nucleus?",
        "What is it?",
        "What is it?",
    ]


def test_a_row_without_a_question_says_which_key_gives_one(world, tmp_path, new_images, capsys):
    assert predict.main(asked(world, tmp_path / "out", new_images, "question=null")) == 2
    assert "row 'a/1.png' has no question; give one for all such rows: question=" in capsys.readouterr().err


def test_a_table_of_images_without_reports(world, tmp_path):
    listed = tmp_path / "new.csv"
    listed.write_text("patient,image\np1,cell0.png\np2,cell1.png\n")
    node = ["questions._component_=medtune.datasets.report_csv_dataset", "questions.text_column=null"]
    node += [f"questions.image_root={world}", "questions.id_column=patient", "~questions.center_crop"]
    assert predict.main(asked(world, tmp_path / "out", listed, *node)) == 0
    assert [(row["id"], row["images"]) for row in table(tmp_path / "out")] == [("p1", "cell0.png"), ("p2", "cell1.png")]


@pytest.mark.parametrize("wrong", ["protocols=[open]", "protocols=[prompt,open]", "question=' '"])
def test_a_fixed_question_is_for_the_protocol_prompt_alone(wrong, world, tmp_path, capsys):
    assert predict.main(asked(world, tmp_path / "out", world, wrong)) == 2
    assert "is asked by the protocol prompt alone" in capsys.readouterr().err


def test_an_empty_folder_is_refused(world, tmp_path, capsys):
    assert predict.main(asked(world, tmp_path / "out", tmp_path)) == 2
    assert "holds no image" in capsys.readouterr().err


def test_evaluate_says_that_there_is_nothing_to_score(world, tmp_path, new_images, capsys):
    output = tmp_path / "out"
    assert predict.main(asked(world, output, new_images)) == 0
    scored = [f"predictions={output}/predictions.jsonl", "prepared_dir=absent", f"output={output}"]
    assert evaluate.main(["--config", "evaluate/default", *scored]) == 2
    assert "there is nothing to score" in capsys.readouterr().err and not (output / "results.json").exists()


def test_own_questions_beside_scored_ones_change_no_score(world, tmp_path):
    (world / "training_majority.json").write_text(json.dumps({"cell shape": "oval", "nucleus shape": "oval"}))
    scores = {}
    for name, protocols in (("alone", "[open]"), ("beside", "[open,prompt]")):
        output = tmp_path / name
        assert predict.main(arguments(world, output, f"protocols={protocols}", "swapped=[]")) == 0
        scored = [f"predictions={output}/predictions.jsonl", f"prepared_dir={world}", f"output={output}"]
        assert evaluate.main(["--config", "evaluate/default", "bootstrap_draws=20", *scored]) == 0
        scores[name] = json.loads((output / "results.json").read_text())["protocols"]
    assert scores["alone"] == scores["beside"] and scores["alone"].keys() == {"open"}


def test_swapped_images_need_a_right_answer(world, tmp_path, capsys):
    assert predict.main(arguments(world, tmp_path / "out", "protocols=[prompt]", "swapped=[prompt]")) == 2
    assert "leave it out of 'swapped'" in capsys.readouterr().err


def test_no_table_is_written_where_none_is_wanted(world, tmp_path):
    assert predict.main(arguments(world, tmp_path / "out", "protocols=[open]", "swapped=[]", "csv_delimiter=null")) == 0
    assert not (tmp_path / "out" / "predictions.csv").exists()


def test_a_record_from_before_these_keys_can_be_continued(world, tmp_path):
    output = tmp_path / "out"
    how = arguments(world, output, "protocols=[open]", "swapped=[]")
    assert predict.main(how) == 0
    record = json.loads((output / "predictions.meta.json").read_text())
    del record["config"]["question"]
    (output / "predictions.meta.json").write_text(json.dumps(record))
    assert predict.main(how) == 0


def test_the_base_for_new_images_goes_with_a_packaged_model(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("base: [predict/llama3_2_vision_11b, predict/_new_images]\noutput_dir: runs/new\n")
    config = load_config(str(own), predict.PredictConfig)
    assert config.protocols == ["prompt"] and config.questions["_component_"].endswith("images_dataset")
