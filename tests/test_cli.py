"""The command line: it starts at once, says what it carries, and turns errors into one sentence."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from medtune import __version__
from medtune.cli import catalog, doctor
from medtune.cli.main import main, parser
from medtune.config.composition import compose, resolve_path
from medtune.errors import ConfigError


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "medtune.cli", *arguments], capture_output=True, text=True, cwd=cwd)


def test_help_answers_in_under_a_second() -> None:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        result = run("--help")
        times.append(time.perf_counter() - start)
        assert result.returncode == 0
        assert all(command in result.stdout for command in ("ls", "cp", "show", "plan", "doctor", "export", "report"))
    assert min(times) < 1.0, times


@pytest.mark.parametrize("command", ["ls", "cp", "show", "plan", "doctor", "export", "report"])
def test_no_command_line_needs_torch_to_be_read(command: str) -> None:
    code = (
        "import sys\n"
        "from medtune.cli.main import main\n"
        f"try: main(['{command}', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'torchtune', 'omegaconf', 'pandas', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "usage: medtune" in result.stdout


def test_listing_imports_nothing_heavy() -> None:
    code = "import sys\nfrom medtune.cli.main import main\nmain(['ls'])\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize("recipe", ["sft", "instfree", "vitask", "dpo", "predict"])
def test_a_recipe_starts_without_the_libraries_of_the_metrics(recipe: str) -> None:
    loaded = "{'scipy.stats', 'sklearn'} & set(sys.modules)"
    code = f"import sys\nimport medtune.recipes.{recipe}\nsys.exit(str({loaded}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr.endswith("set()\n"), result.stderr


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert __version__ in capsys.readouterr().out


def test_ls_names_every_recipe_and_config_with_its_launch_line(
    capsys: pytest.CaptureFixture[str], checkout: Path
) -> None:
    assert main(["ls"]) == 0
    listing = capsys.readouterr().out
    for path in (checkout / "recipes").glob("*.py"):
        assert f"\n{path.stem}: " in f"\n{listing}"
    for path in (checkout / "configs").glob("*/*.yaml"):
        name = f"{path.parent.name}/{path.stem}"
        runs = not name.startswith("_") and "/_" not in name
        assert (f"  {name}: " in listing) == runs
        assert (f"--config {name}" in listing or f"medtune {path.parent.name} {name}\n" in listing) == runs


def test_every_recipe_and_config_describes_itself() -> None:
    for entry in catalog.recipes() + catalog.configs():
        assert len(entry.summary) > 10, f"{entry.path} starts without a description"


def test_every_config_belongs_to_a_recipe_and_its_header_launches_itself() -> None:
    names = {recipe.name for recipe in catalog.recipes()}
    for config in catalog.configs():
        recipe = config.name.split("/")[0]
        if recipe in catalog.COMMANDS:
            assert config.launch in config.header
            continue
        assert recipe in names, f"{config.path}: there is no recipe {recipe}"
        assert "tune run" in config.header, f"{config.path}: the header has no launch line"
        assert f"medtune/recipes/{recipe}.py --config {config.name}" in config.launch, config.path


def test_ls_of_a_config_prints_its_header(capsys: pytest.CaptureFixture[str]) -> None:
    config = catalog.configs()[0]
    assert main(["ls", config.name]) == 0
    assert config.header in capsys.readouterr().out


def test_an_unknown_name_is_one_line_that_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "instfre"]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "'instfree'" in captured.err
    assert captured.out == ""


def test_cp_copies_and_refuses_to_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = catalog.find("evaluate/default")
    target = tmp_path / "mine.yaml"
    assert main(["cp", config.name, str(target)]) == 0
    assert target.read_bytes() == config.path.read_bytes()
    assert f"--config {target}" in capsys.readouterr().out

    target.write_text("edited")
    assert main(["cp", config.name, str(target)]) == 2
    assert "-f to overwrite" in capsys.readouterr().err
    assert target.read_text() == "edited"
    assert main(["cp", "-f", config.name, str(target)]) == 0
    assert target.read_bytes() == config.path.read_bytes()


@pytest.mark.parametrize("name", [entry.name for entry in catalog.configs()])
def test_cp_of_a_config_holds_all_its_values_and_needs_no_base(name: str, tmp_path: Path) -> None:
    target = tmp_path / "mine.yaml"
    catalog.copy(name, target)
    assert catalog.find(name).header.rstrip() in catalog._comment(target)
    written = compose(target)
    assert written.files == [target] and "base" not in written.tree
    assert written.tree == compose(resolve_path(name)).tree


def test_overrides_may_follow_options(capsys: pytest.CaptureFixture[str]) -> None:
    found = parser().parse_args(["serve", "serve/mini", "a=1", "--dry-run", "b=2"])
    assert (found.source, found.overrides, found.dry_run) == ("serve/mini", ["a=1", "b=2"], True)
    for wrong in (["serve", "x", "--dry-run", "y"], ["serve", "x", "--colour=red"], ["ls", "x", "a=1"]):
        with pytest.raises(SystemExit, match="2"):
            parser().parse_args(wrong)
        assert "unrecognized arguments" in capsys.readouterr().err


def test_cp_of_a_command_s_config_says_how_it_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cp", "serve/mini", str(tmp_path / "mine.yaml")]) == 0
    assert f"run it: medtune serve {tmp_path / 'mine.yaml'}" in capsys.readouterr().out


def test_show_tells_where_each_block_is_from(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    name = "instfree/llama3_2_vision_11b_cbis_ddsm_lora_single_device"
    assert main(["show", name, "objective.alpha=0.9", "transform.max_num_tiles=4"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(catalog.find(name).path.read_text().split("\nbase:")[0])
    for block in (
        f"\n# from {name}\noutput_dir: runs/instfree_11b_cbis_ddsm_lora\n",
        "\n# from _shared/lora, instfree/_lora\nmodel:\n  _component_: medtune.models.llama3_2_vision.lora_llama3_2",
        "  lora_attn_modules: [q_proj, k_proj, v_proj, output_proj]\n",
        "\n# from instfree/_paper, instfree/_short_reports, override 'objective.alpha=0.9'\nobjective:\n",
        "\n# from _shared/llama3_2_vision_11b, override 'transform.max_num_tiles=4'\ntransform:\n",
        "\n# from instfree/_lora\n# The learning rate of the proxy is the official code's; the paper gives none.\n"
        "learning_rates: {proxy: 2.0e-5}\n",
        "  path: ${checkpoint}\n",
    ):
        assert block in text
    (tmp_path / "shown.yaml").write_text(text)
    tree = compose(tmp_path / "shown.yaml").tree
    assert tree["objective"]["alpha"] == 0.9 and tree["transform"]["max_num_tiles"] == 4


def test_show_of_a_file_without_a_base_is_the_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("# Mine.\na: [1, 2]  # kept\n\nb: ${a}\n")
    assert main(["show", str(path)]) == 0
    assert capsys.readouterr().out == path.read_text()
    assert main(["show", str(path), "a=[3]", "c.d={e: [x y, '1']}", "f=['a: b',c]"]) == 0
    changed = capsys.readouterr().out
    path.write_text(changed)
    assert "# from override 'a=[3]'\na: [3]\n" in changed and f"# from {path}\nb: ${{a}}\n" in changed
    assert compose(path).tree == {"a": [3], "b": "${a}", "c": {"d": {"e": ["x y", "1"]}}, "f": ["a: b", "c"]}


@pytest.mark.parametrize("command", ["show", "plan"])
def test_a_base_is_no_config(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "instfree/_paper"]) == 2
    assert "is a base that other configs build on and cannot be run" in capsys.readouterr().err
    assert main(["cp", "instfree/_paper"]) == 2
    assert "there is no recipe or config named" in capsys.readouterr().err


def test_cp_of_a_recipe_into_a_folder(tmp_path: Path) -> None:
    recipe = catalog.recipes()[0]
    assert main(["cp", f"medtune/recipes/{recipe.name}.py", str(tmp_path)]) == 0
    assert (tmp_path / recipe.path.name).read_bytes() == recipe.path.read_bytes()


def test_cp_into_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        catalog.copy(catalog.recipes()[0].name, tmp_path / "absent" / "x.py")


def test_summary_is_the_first_sentence_cut_at_a_word() -> None:
    short = catalog.Entry("a", Path("a.py"), "One thing. Another.\n\nMore.")
    long = catalog.Entry("b", Path("b.py"), "word " * 50)
    assert short.summary == "One thing"
    assert len(long.summary) <= catalog.SHORT
    assert long.summary.endswith("word...")


def test_doctor_accepts_this_environment(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["doctor"])
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert "this installation is one that was tested" in printed


@pytest.mark.parametrize(
    ("package", "version", "status"),
    [
        ("torchao", "0.16.0", "FAIL"),
        ("torchao", "0.15.0+cu130", "ok"),
        ("torch", "2.8.0", "FAIL"),
        ("torch", "2.12.0.dev20260101", "FAIL"),
        ("torchtune", "0.6.0", "FAIL"),
        ("torch", None, "FAIL"),
        ("transformers", "4.49.0", "warn"),
        ("transformers", None, "ok"),
    ],
)
def test_doctor_holds_versions_against_the_tested_ones(package: str, version: str | None, status: str) -> None:
    finding = doctor.check_package(package, lambda _: version)
    assert finding.status == status
    assert (f'pip install "{package}==' in finding.mend) == (status != "ok")


def test_doctor_sees_a_torchvision_of_another_torch() -> None:
    versions = {"torch": "2.11.0", "torchvision": "0.25.0"}
    finding = doctor.check_pair(versions.get)
    assert finding.status == "FAIL"
    assert finding.mend == 'pip install "torchvision==0.26.*"'


@pytest.mark.parametrize(("version", "status"), [((3, 10, 9), "FAIL"), ((3, 11, 0), "ok"), ((3, 14, 0), "FAIL")])
def test_doctor_checks_python(version: tuple[int, int, int], status: str) -> None:
    assert doctor.check_python(version).status == status


def test_doctor_notices_an_overwritten_recipes_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Overwritten:
        files = doctor.importlib.metadata.distribution("torchtune").files

    assert doctor.check_torchtune_recipes().status == "ok"
    for file in Overwritten.files:
        file.dist = None
    elsewhere = tmp_path / "recipes" / "__init__.py"
    elsewhere.parent.mkdir()
    elsewhere.write_text("")
    monkeypatch.setattr(doctor.importlib.metadata, "distribution", lambda _: Overwritten)
    monkeypatch.setattr(doctor.importlib.metadata.PackagePath, "locate", lambda file: tmp_path / str(file))
    finding = doctor.check_torchtune_recipes()
    assert finding.status == "FAIL"
    assert "recipes/__init__.py was overwritten" in finding.detail
    assert "--force-reinstall" in finding.mend
    elsewhere.unlink()
    assert "was deleted" in doctor.check_torchtune_recipes().detail


def test_doctor_says_which_data_folder_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDTUNE_DATA", str(tmp_path / "absent"))
    assert doctor.check_data().status == "FAIL"
    (tmp_path / "wbcatt").mkdir()
    monkeypatch.setenv("MEDTUNE_DATA", str(tmp_path))
    assert doctor.check_data().status == "ok"
    assert "wbcatt" in doctor.check_data().detail


def test_doctor_counts_what_is_broken() -> None:
    bad = doctor.Finding("FAIL", "torch", "2.8.0", "pip install torch")
    text = doctor.render([bad, doctor.Finding("ok", "numpy", "2.4")])
    assert "fix: pip install torch" in text
    assert text.splitlines()[-1] == "1 to fix"


def test_report_of_a_run_without_results_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "absent"), "--out", str(tmp_path / "page" / "report.html")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert "absent" in captured.err
    assert not (tmp_path / "page" / "report.html").exists()


def test_report_shows_patients_images_only_when_told_where_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path), "--samples", "3"]) == 2
    assert "--images" in capsys.readouterr().err


def test_a_planned_config_of_another_recipe_is_refused_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "prepare/wbcatt"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
