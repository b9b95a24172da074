"""The miniature of the paper's tables: what is collected from made-up runs that the real evaluator scored."""

import csv
import json
import statistics
from pathlib import Path

import pytest

from medtune.config import load_config
from medtune.errors import DataError
from medtune.sweep.config import data_of
from medtune.sweep.run import SweepConfig
from medtune.training.config import TrainConfig
from tests.benchmark.scripts import script
from tests.datasets.medmnist_files import write_medmnist
from tests.reporting.conftest import make_questions, write_run

table = script("instfree_table")


def sweep(folder: Path, *overrides: str) -> SweepConfig:
    return load_config(table.SWEEP, SweepConfig, [f"output_dir={folder}", "seeds=[0,1]", *overrides])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base, FT with two seeds and InstFree with one of two."""
    root, questions = tmp_path_factory.mktemp("sweep"), make_questions(10)
    write_run(root / "base", questions, "untuned", trained=False)
    for seed in (0, 1):
        write_run(root / f"ft_seed{seed}", questions, "FT", seed)
    write_run(root / "instfree_seed1", questions, "InstFree", 1)
    return root


@pytest.fixture(scope="module")
def collected(folder: Path) -> dict:
    return table.table(sweep(folder), resamples=200)


def accuracy(run: Path, task: str, swapped: str = "0") -> dict[str, list[float]]:
    """Right answers on true or on swapped images by attribute, read from the verdicts by hand."""
    found: dict[str, list[float]] = {}
    with (run / "verdicts.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["task"] == task and row["swapped"] == swapped:
                found.setdefault(row["attribute"], []).append(float(row["correct"]))
    return found


def macro(groups: dict[str, list[float]]) -> float:
    return statistics.fmean(statistics.fmean(group) for group in groups.values())


def test_the_papers_numbers_are_those_of_the_sweeps_models(folder: Path) -> None:
    assert list(table.PAPER) == [variant.name for variant in sweep(folder).variants]
    assert set(table.REFERENCES) < set(table.PAPER) and set(table.COLUMNS) < set(table.MEASURES)


def test_means_and_deviations_are_over_seeds(collected: dict, folder: Path) -> None:
    one, other = (macro(accuracy(folder / f"ft_seed{seed}", "open")) for seed in (0, 1))
    found = collected["models"]["ft"]["measures"]["open/accuracy_macro"]
    assert found["values"] == pytest.approx([one, other]) and found["mean"] == pytest.approx((one + other) / 2)
    assert found["deviation"] == pytest.approx(abs(one - other) / 2**0.5)
    assert collected["models"]["base"]["measures"]["retention"]["deviation"] is None


@pytest.mark.parametrize("task", ["open", "multiple_choice"])
def test_answers_on_swapped_images_are_a_number_of_their_own(task: str, collected: dict, folder: Path) -> None:
    answers = {side: accuracy(folder / "ft_seed0", task, side) for side in ("0", "1")}
    true, exchanged = (statistics.fmean(sum(groups.values(), [])) for groups in answers.values())
    measures = collected["models"]["ft"]["measures"]
    assert true != exchanged and sum(map(len, answers["1"].values())) == 70
    assert measures[f"{task}/swapped_micro"]["values"][0] == pytest.approx(exchanged)
    assert measures[f"{task}/accuracy_micro"]["values"][0] == pytest.approx(true)
    found = collected["models"]["base"]["differences"]["ft"][f"{task}/swapped_micro"]
    base = statistics.fmean(sum(accuracy(folder / "base", task, "1").values(), []))
    assert found["by_seed"]["0"] == pytest.approx(base - exchanged) and found["n"] == 2 * 70


def test_a_difference_pairs_equal_seeds_and_the_base_with_each(collected: dict, folder: Path) -> None:
    base = macro(accuracy(folder / "base", "open"))
    each = [base - macro(accuracy(folder / f"ft_seed{seed}", "open")) for seed in (0, 1)]
    found = collected["models"]["base"]["differences"]["ft"]["open/accuracy_macro"]
    assert found["by_seed"] == pytest.approx({"0": each[0], "1": each[1]})
    assert found["value"] == pytest.approx(statistics.fmean(each)) and found["n"] == 2 * 70
    assert found["interval"][0] < found["value"] < found["interval"][1]
    only = collected["models"]["instfree"]["differences"]["ft"]["open/accuracy_macro"]
    assert list(only["by_seed"]) == ["1"] and only["n"] == 70


@pytest.mark.parametrize("name", list(table.MEASURES))
def test_every_pooled_difference_is_the_mean_of_what_the_runs_say(collected: dict, name: str) -> None:
    ours, theirs = (collected["models"][one]["measures"][name]["mean"] for one in ("base", "ft"))
    assert collected["models"]["base"]["differences"]["ft"][name]["value"] == pytest.approx(ours - theirs)
    assert ours != theirs or name in ("natural_descriptions", "retention")


def test_images_are_drawn_with_the_answers_of_all_seeds(tmp_path: Path) -> None:
    """The same answers under two seeds are no new evidence: the interval stays as wide as that of one."""
    questions = make_questions(10)
    for seed in (0, 1):
        write_run(tmp_path / f"ft_seed{seed}", questions, "FT", 0)
        write_run(tmp_path / f"instfree_seed{seed}", questions, "InstFree", 0)
    twice = table.table(sweep(tmp_path), resamples=200)["models"]["instfree"]["differences"]["ft"]
    for chain in ("ft", "instfree"):
        (tmp_path / f"{chain}_seed1" / "results.json").unlink()
    once = table.table(sweep(tmp_path), resamples=200)["models"]["instfree"]["differences"]["ft"]
    for name in ("open/accuracy_macro", "retention"):
        assert twice[name]["interval"] == pytest.approx(once[name]["interval"])
        assert twice[name]["n"] == 2 * once[name]["n"]


def test_what_is_missing_is_named(collected: dict, folder: Path) -> None:
    missing = collected["missing"]
    assert "instfree_seed0" in missing and "ft_rand_seed1" in missing and len(missing) == 1 + 2 * 7
    assert "Not finished: instfree_seed0" in table.markdown(collected)
    with pytest.raises(DataError, match="no chain of the sweep is finished"):
        table.table(sweep(folder / "nothing"))


def test_a_sweep_that_asks_less_gives_fewer_columns(folder: Path, tmp_path: Path) -> None:
    questions = make_questions(4)
    for name in ("ft_seed0", "instfree_seed0"):
        run = write_run(tmp_path / name, questions, "FT" if name == "ft_seed0" else "InstFree")
        results = json.loads((run / "results.json").read_text())
        results["protocols"] = {task: results["protocols"][task] for task in ("open", "multiple_choice")}
        for one in results["protocols"].values():
            one["swapped"] = None
        kept = {task: results["retention"][task] for task in ("open", "multiple_choice")}
        composite = {**results["retention"]["composite"], "value": sum(one["value"] for one in kept.values()) / 2}
        results["retention"] = {**kept, "composite": composite}
        (run / "results.json").write_text(json.dumps(results))
    result = table.table(sweep(tmp_path), resamples=50)
    measures = result["models"]["instfree"]["measures"]
    assert set(measures) == {f"{t}/accuracy_{k}" for t in ("open", "multiple_choice") for k in ("macro", "micro")} | {
        "retention"
    }
    found = result["models"]["instfree"]["differences"]["ft"]["retention"]
    assert found["value"] == pytest.approx(found["by_seed"]["0"]) and found["n"] == 2 * 28
    assert result["retention_of"] == ["multiple_choice", "open"]
    printed = table.markdown(result)
    assert "Retention: of multiple_choice, open." in printed and "natural" not in printed and "yes/no |" not in printed
    assert "swapped images |" not in printed


def test_other_questions_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "ft_seed0", make_questions(4), "FT")
    write_run(tmp_path / "ft_seed1", make_questions(5), "FT")
    with pytest.raises(DataError, match="ft_seed1 and .*ft_seed0 were asked different questions"):
        table.table(sweep(tmp_path))


def test_the_command_collects_writes_and_prints(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "table.json"
    options = ["--collect-only", "--output-dir", str(folder), "--out", str(out), "seeds=[0,1]"]
    assert table.main(options) == 0
    result = json.loads(out.read_text())
    assert result["n"] == {"questions": 70, "images": 10} and result["versions"]["torchtune"]
    assert result["baselines"]["open"]["chance_macro"] == pytest.approx(sum(1 / k for k in (2, 2, 4, 2, 3, 3, 3)) / 7)
    printed = capsys.readouterr().out.splitlines()
    ft = result["models"]["ft"]["measures"]["open/accuracy_macro"]
    row = next(line for line in printed if line.startswith("| FT |"))
    assert f"| {100 * ft['mean']:.1f} ± {100 * ft['deviation']:.1f} |" in row and row.endswith("| 61.7 ± 3.7 |")
    assert len({line.count("|") for line in printed if line.startswith("|")}) == 2
    assert table.main(["--collect-only", "--output-dir", str(tmp_path)]) == 2
    assert "no chain of the sweep is finished" in capsys.readouterr().err


def test_data_are_prepared_only_where_they_are_not(tmp_path: Path, medtune_data: Path) -> None:
    config = sweep(
        tmp_path, f"prepared_dir={tmp_path / 'data'}", f"image_root={medtune_data / 'wbcatt/wbcatt_128.tar'}"
    )
    table.prepare(config)
    made = tmp_path / "data" / "test.jsonl"
    assert sum(1 for _ in made.open()) == 3099
    made.unlink()
    table.prepare(config)
    assert not made.exists()


MEDMNIST = "sweep/mini_medmnist_tables"


def test_the_sweep_decides_data_images_and_result() -> None:
    options, config = table.parse([])
    assert options.sweep == "sweep/mini_tables" and options.out.name == "instfree_table.json"
    assert not config.evaluate_overrides, "all protocols, as the paper's tables and more"
    assert config.prepared_dir == "prepared/wbcatt_official" and config.train == "instfree/mini_wbcatt"
    options, config = table.parse(["--sweep", MEDMNIST, "--prepared-dir", "elsewhere"])
    assert options.out == table.RESULTS / "instfree_table_medmnist.json"
    assert (config.train, config.seeds, config.center_crop) == ("instfree/mini_medmnist", [0], 1.0)
    assert data_of(config) == ("elsewhere", "elsewhere/images.tar")
    assert [one.name for one in config.variants] == list(table.PAPER)
    assert config.evaluate_overrides == ["protocols=[multiple_choice,open]", "swapped=[]"]
    assert table.parse(["--sweep", MEDMNIST, "--out", "mine.json"])[0].out == Path("mine.json")


def test_a_sweep_of_another_kind_is_refused(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        table.parse(["--sweep", "sweep/vitask_mini"])
    assert "invalid choice: 'sweep/vitask_mini'" in capsys.readouterr().err


@pytest.mark.parametrize("name, key", [("sweep/mini_alpha", "alpha"), ("sweep/mini_vectors", "vectors")])
def test_a_figure_is_compared_with_the_default_of_what_it_varies(name: str, key: str, tmp_path: Path) -> None:
    options, config = table.parse(["--sweep", name, "--output-dir", str(tmp_path), "seeds=[0,1]"])
    (reference,) = table.DOMAINS[name].references
    default = load_config(config.train, TrainConfig).objective[key]
    (variant,) = [one for one in config.variants if one.name == reference]
    assert variant.train == [f"objective.{key}={default}"] and options.out.name == f"instfree_{key}.json"
    questions, other = make_questions(6), config.variants[1]
    for seed in (0, 1):
        write_run(tmp_path / f"{reference}_seed{seed}", questions, "FT", seed)
        write_run(tmp_path / f"{other.name}_seed{seed}", questions, "InstFree", seed)
    found = table.table(config, resamples=50, domain=table.DOMAINS[name])
    assert found["references"] == [reference] and found["models"][reference]["differences"] == {}
    assert set(found["models"][other.name]["differences"]) == {reference}
    assert f"| minus {variant.title} | " in table.markdown(found)


def test_the_papers_numbers_stand_beside_wbcatt_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "table.json"
    options = ["--sweep", MEDMNIST, "--collect-only", "--output-dir", str(folder), "--out", str(out), "seeds=[0,1]"]
    assert table.main(options) == 0
    result, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert result["sweep"] == MEDMNIST and "paper_note" not in result
    assert all("paper" not in row for row in result["models"].values()) and "aper" not in printed
    rows = [line for line in printed.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 2 and rows[2].startswith("| untuned base | 1 |")


def test_medmnist_is_prepared_from_its_files_with_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDTUNE_DATA", str(tmp_path))
    for name in ("breast", "pneumonia", "blood"):
        write_medmnist(tmp_path / "medmnist", name)
    started: list[SweepConfig] = []
    monkeypatch.setattr(table, "run_sweep", started.append)
    places = ["--prepared-dir", str(tmp_path / "out"), "--output-dir", str(tmp_path / "runs")]
    assert table.main(["--sweep", MEDMNIST, *places]) == 2, "no run is finished"
    assert sum(1 for _ in (tmp_path / "out/test.jsonl").open()) == 2 * 2 * 6
    assert started[0].train == "instfree/mini_medmnist" and Path(data_of(started[0])[1]).is_file()
