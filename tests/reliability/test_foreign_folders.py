"""Every recipe that writes refuses a folder that holds somebody else's files under the names that it would write."""

from pathlib import Path

import pytest

from medtune.config import load_config
from medtune.data.folders import RECORD
from medtune.errors import ConfigError
from medtune.reporting.report import write_report
from medtune.sweep.config import SweepConfig
from medtune.sweep.run import run_sweep
from tests.datasets.owners import skincon_rows, write_picture, write_skincon
from tests.reliability.test_stale import questions, run


def test_answers_scores_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused, gone on with once the file is away, and again where an older version wrote no record."""
    file, out = questions(tmp_path), tmp_path / "out"
    ask = ["predict/mini", f"output_dir={out}", f"questions.source={file}", f"questions.image_root={tmp_path}"]
    ask += ["protocols=[open]", "swapped=[]", "max_new_tokens=3", "device=cpu"]
    score = ["evaluate/default", f"predictions={out / 'predictions.jsonl'}", f"prepared_dir={tmp_path}"]
    score += [f"output={out}", "protocols=[open]", "swapped=[]", "bootstrap_draws=10"]
    out.mkdir()
    for recipe, arguments, name in (
        ("predict", ask, "predictions.meta.json"),
        ("predict", ask, "predictions.summary.json"),
        ("evaluate", score, "results.json"),
        ("evaluate", score, "numbers.csv"),
    ):
        (out / name).write_text('{"mine": 1}')
        capsys.readouterr()
        assert run(recipe, *arguments) == 2
        assert f"{out} holds {name}, which {recipe} would replace" in capsys.readouterr().err
        assert (out / name).read_text() == '{"mine": 1}'
        (out / name).unlink()
        assert run(recipe, *arguments) == 0
        if name == "predictions.meta.json":
            for path in out.iterdir():
                path.unlink()
        if name == "results.json":
            for written in (RECORD, "results.json", "numbers.csv", "verdicts.csv"):
                (out / written).unlink()
    (out / RECORD).unlink()
    assert run("predict", *ask) == 0 and run("evaluate", *score) == 0

    page = tmp_path / "page" / "report.html"
    page.parent.mkdir()
    (page.parent / "confusion.csv").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds confusion\.csv, which report would replace"):
        write_report([out], page)
    (page.parent / "confusion.csv").unlink()
    write_report([out], page)
    (page.parent / RECORD).unlink()
    write_report([out], page)


def test_a_manifest_of_somebody_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = skincon_rows(80)
    for number, row in enumerate(rows):
        write_picture(tmp_path / "images" / row["ImageID"], number)
    make = ["prepare/skincon", f"data.annotations={write_skincon(tmp_path, rows)}", f"data.images={tmp_path}/images"]
    make += [f"image_root={tmp_path}/images", f"output_dir={tmp_path / 'out'}"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text('{"name": "a web page"}')
    assert run("prepare", *make) == 2 and run("prepare", *make, "overwrite=true") == 2
    assert "holds manifest.json, which prepare would replace" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["manifest.json"]
    (tmp_path / "out" / "manifest.json").unlink()
    assert run("prepare", *make) == 0
    (tmp_path / "out" / RECORD).unlink()
    assert run("prepare", *make) == 0


def test_a_sweep(tmp_path: Path) -> None:
    (tmp_path / "commands.txt").write_text("make -j")
    config = load_config("sweep/mini_wbcatt", SweepConfig, [f"output_dir={tmp_path}", f"prepared_dir={tmp_path}"])
    with pytest.raises(ConfigError, match=r"holds commands\.txt, which sweep would replace"):
        run_sweep(config)
    assert (tmp_path / "commands.txt").read_text() == "make -j"
