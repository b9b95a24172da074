import base64
import csv
import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from medtune.errors import DataError
from medtune.evaluation.prediction import read_predictions, write_predictions
from medtune.reporting.report import write_report

NAMES = ["untuned", "FT", "InstFree", "InstFree w/ RS"]
VOID = {"meta", "img", "br", "link", "hr"}


class Page(HTMLParser):
    """Tags with their attributes, the text, and a check that every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def images(self, alt: str) -> list[bytes]:
        sources = [one["src"] for tag, one in self.tags if tag == "img" and alt in one["alt"]]
        return [base64.b64decode(source.split(",", 1)[1]) for source in sources]


@pytest.fixture
def page(runs, tmp_path, open_image):
    out = write_report(runs, tmp_path / "out" / "report.html", title="Four models", samples=3, open_image=open_image)
    return Page(out.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page_text(runs, tmp_path_factory):
    return Page(write_report(runs, tmp_path_factory.mktemp("page") / "report.html", samples=1).read_text()).text


def test_one_page_holds_everything_and_asks_for_nothing(page):
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "base", "form"}
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "action"):
            assert attributes.get(name, "data:").startswith("data:")
    styles = "".join(str(one.get("style", "")) for _, one in page.tags) + page.text
    assert "url(" not in styles and "@import" not in styles
    assert any(one.get("content", "").startswith("default-src 'none'") for tag, one in page.tags if tag == "meta")


@pytest.mark.parametrize(
    "text",
    [
        *NAMES,
        "Open question",
        "Multiple choice",
        "Letter likelihood",
        "Yes / no",
        "Retention, composite",
        "Swapped images",
        "majority of the training split",
        "Balanced accuracy",
        "n=84",
        "How each number is computed",
        "not in a checkout",
        "cytoplasm colour",
        "Training",
        "Samples",
    ],
)
def test_every_model_protocol_and_section_is_there(page_text, text):
    assert text in page_text


def test_plots_are_pictures(page):
    assert len(page.images("Radar chart")) == 2
    for alt in ("Radar chart", "Accuracy of each model", "Training loss"):
        for content in page.images(alt):
            assert content.lstrip().startswith(b"<?xml") and b"<svg" in content
    assert all(content.startswith(b"\x89PNG") for content in page.images("sample image"))
    assert len(page.images("sample image")) == 3


def test_json_and_csv_stand_beside(runs, tmp_path):
    write_report(runs, tmp_path / "report.html")
    results = json.loads((tmp_path / "results.json").read_text())
    assert [run["name"] for run in results["runs"]] == NAMES
    assert results["base"] == "untuned"
    assert set(results["differences"]) == set(NAMES[1:])
    gain = results["differences"]["FT"]["retention"]
    assert gain["value"] < -0.4 and gain["interval"][1] < 0
    for run in results["runs"]:
        assert set(run["protocols"]) == {"open", "multiple_choice", "letter_likelihood", "yes_no"}
        for protocol in run["protocols"].values():
            for metric in ("accuracy_macro", "chance_macro", "majority_macro", "balanced_accuracy_macro"):
                assert {"value", "n", "interval", "unit", "definition"} <= set(protocol["overall"][metric])
    with (tmp_path / "results.csv").open() as file:
        assert {row["run"] for row in csv.DictReader(file)} == set(NAMES)


def test_the_difference_is_the_difference_of_the_accuracies(runs, tmp_path):
    write_report(runs, tmp_path / "report.html")
    results = json.loads((tmp_path / "results.json").read_text())
    first, third = (
        results["runs"][place]["protocols"]["open"]["overall"]["accuracy_macro"]["value"] for place in (0, 2)
    )
    assert results["differences"]["InstFree"]["open"]["value"] == pytest.approx(third - first)


def test_the_same_runs_give_the_same_bytes(runs, tmp_path):
    pages = [write_report(runs, tmp_path / name / "report.html").read_bytes() for name in ("a", "b")]
    assert pages[0] == pages[1]


def test_answers_stand_on_the_page_only_when_asked_for(runs, tmp_path):
    text = write_report(runs, tmp_path / "report.html").read_text()
    assert "This image shows a white blood cell" not in text
    assert "sample image" not in text
    for name in ("results.json", "results.csv"):
        assert "This image shows a white" not in (tmp_path / name).read_text()


def test_what_comes_from_data_is_escaped(runs, tmp_path, open_image):
    folder = shutil.copytree(runs[0], tmp_path / "evil")
    attack = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'"
    path = folder / "predictions.jsonl"
    rows = [type(row)(**{**vars(row), "prediction": attack}) for row in read_predictions(path)]
    write_predictions(path, rows)
    results = json.loads((folder / "results.json").read_text())
    results["name"] = attack
    results["provenance"]["commit"] = attack
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "config.yaml").write_text(attack)
    text = write_report(
        [folder], tmp_path / "r.html", title=attack, note=attack, samples=2, open_image=open_image
    ).read_text()
    assert "<script" not in text and "<img src=x" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert attack in Page(text).text


def test_one_run_without_training_answers_or_pictures(runs, tmp_path):
    folder = tmp_path / "bare"
    folder.mkdir()
    shutil.copy(runs[0] / "results.json", folder)
    page = Page(write_report([folder], tmp_path / "r.html", samples=3).read_text())
    assert "1 model," in page.text
    assert not page.images("Training loss") and "Samples" not in page.text
    with_answers = Page(write_report([runs[0]], tmp_path / "r.html", samples=2).read_text())
    assert "no image root was given" in with_answers.text


def test_a_picture_that_cannot_be_opened_is_said(runs, tmp_path):
    def broken(path):
        raise DataError("no such image")

    text = write_report(runs, tmp_path / "r.html", samples=2, open_image=broken).read_text()
    assert "the image could not be opened" in text and "no such image" not in text


def test_names_can_be_given(runs, tmp_path):
    text = write_report(runs, tmp_path / "r.html", names={"run1": "ordinary tuning"}).read_text()
    assert "ordinary tuning" in text and ">FT<" not in re.sub(r"\s+", "", text)


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "there are no results"), ("{", "not JSON"), ('{"schema": "other"}', "not a results file of schema")],
)
def test_unreadable_results_are_named(tmp_path, content, says):
    folder = tmp_path / "run"
    folder.mkdir()
    if content is not None:
        (folder / "results.json").write_text(content)
    with pytest.raises(DataError, match=says) as caught:
        write_report([folder], tmp_path / "r.html")
    assert str(folder) in str(caught.value)


def test_a_report_never_replaces_a_runs_own_results(runs):
    before = (runs[0] / "results.json").read_bytes()
    with pytest.raises(DataError, match="own folder"):
        write_report(runs, runs[0] / "report.html")
    assert (runs[0] / "results.json").read_bytes() == before


def test_no_runs_and_two_runs_of_one_name(runs, tmp_path):
    with pytest.raises(DataError, match="at least one run"):
        write_report([], tmp_path / "r.html")
    with pytest.raises(DataError, match="both named 'untuned'"):
        write_report([runs[0], runs[0]], tmp_path / "r.html")
