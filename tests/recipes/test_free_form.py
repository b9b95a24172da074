"""Free-form prompts: a file of prompts, answers side by side in the report, no score."""

import html
import json

import pytest

from medtune.datasets.free_form import prepare_free_form, read_prompts
from medtune.errors import DataError
from medtune.evaluation.protocols.registry import plan_queries
from medtune.recipes import evaluate, predict, prepare
from medtune.reporting.gallery import image_opener
from medtune.reporting.report import write_report
from tests.recipes.test_predict import arguments, world  # noqa: F401

PROMPTS = "# kinds\nDescribe it.\n\n  Is <b>this</b> typical?  \n"


@pytest.fixture
def questions(tmp_path):
    rows = [
        {"id": f"q{place}", "images": [f"{place // 2}.png"], "messages": [{"role": "user", "content": "What size?"}]}
        for place in range(6)
    ]
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "prompts.txt").write_text(PROMPTS)
    return path


def test_every_prompt_is_asked_about_every_image_once(questions, tmp_path):
    made = prepare_free_form(str(questions), str(tmp_path / "prompts.txt"), images=2).splits["test"]
    assert [(sample.images, sample.messages[-1].content) for sample in made] == [
        ((f"{image}.png",), prompt) for image in range(2) for prompt in ("Describe it.", "Is <b>this</b> typical?")
    ]
    assert [query.prompt for query in plan_queries(made, ["free_form"])] == [
        "Describe it.",
        "Is <b>this</b> typical?",
    ] * 2
    assert len({sample.id for sample in made}) == 4
    everything = prepare_free_form(str(questions), str(tmp_path / "prompts.txt"), images=None)
    assert everything.counts() == {"test": 6} and set(everything.inputs) == {"questions", "prompts"}


@pytest.mark.parametrize(
    ("text", "said"),
    [("# only\n\n", "no line holds"), ("a\nb\na\n", "line 3: the prompt of line 1"), ("<image> a\n", "line 1: leave")],
)
def test_a_file_of_prompts_that_cannot_be_asked_is_refused(tmp_path, text, said):
    (tmp_path / "p.txt").write_text(text)
    with pytest.raises(DataError, match=said):
        read_prompts(tmp_path / "p.txt")
    with pytest.raises(DataError, match="no such file of prompts"):
        read_prompts(tmp_path / "absent.txt")


def test_answers_stand_side_by_side_and_have_no_score(world, tmp_path, capsys):  # noqa: F811
    (tmp_path / "prompts.txt").write_text(PROMPTS)
    told = [f"data.questions={world}/test.jsonl", f"data.prompts={tmp_path}/prompts.txt", "data.images=2"]
    prepared = tmp_path / "prepared"
    assert not prepare.main(["--config", "prepare/free_form", *told, f"output_dir={prepared}", f"image_root={world}"])
    folders = [tmp_path / "one", tmp_path / "two"]
    for seed, out in enumerate(folders):
        more = [f"questions.source={prepared}/test.jsonl", "questions.center_crop=1.0", f"max_new_tokens={4 + seed}"]
        assert not predict.main(arguments(world, out, "protocols=[free_form]", "swapped=[]", *more))
        scored = [f"predictions={out}/predictions.jsonl", f"prepared_dir={prepared}", f"output={out}"]
        assert not evaluate.main(["--config", "evaluate/default", *scored])
        results = json.loads((out / "results.json").read_text())
        assert results["protocols"] == {} and results["retention"] == {} and results["side_by_side"] == ["free_form"]
        assert results["counts"]["questions"] == 4 and (out / "verdicts.csv").read_text() == ""
    assert "Is <b>this</b>" not in capsys.readouterr().out
    report = write_report(folders, tmp_path / "page" / "r.html", samples=1, open_image=image_opener(world))
    page = report.read_text(encoding="utf-8")
    assert "<h2>Free-form prompts</h2>" in page and "Is &lt;b&gt;this&lt;/b&gt; typical?" in page
    assert page.count("<h3>Describe it.</h3>") == 1, "samples=1 shows one image"
    answers = [row for out in folders for row in map(json.loads, (out / "predictions.jsonl").read_text().splitlines())]
    shown = [row for row in answers if row["meta"]["images"] == ["cell0.png"]]
    assert len(answers) == 8 and len(shown) == 4
    for row in shown:
        assert row["prediction"] in html.unescape(page)
    bare = write_report(folders, tmp_path / "bare" / "r.html").read_text(encoding="utf-8")
    assert "Describe it." not in bare and "Free-form" not in bare, "without samples nothing of a patient is shown"
