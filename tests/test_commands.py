"""Every command of README, CONTRIBUTING and docs is run, or a rule says why not and what is checked instead."""

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from medtune.cli import main as cli
from medtune.cli.plan_questions import asks_questions
from medtune.config import CONFIGS, to_plain
from medtune.config.text import show
from medtune.training.plan import Plan, plan
from tests import commands
from tests.annotate.running import provide_annotation
from tests.commands import DATA, SHORT, Tune, in_a_process, is_training, leaves, needs_real_weights, shortened
from tests.data.test_dicom import packaged
from tests.judges.chat_files import provide_graded
from tests.models.folders import FOLDERS
from tests.routing.validation_files import write_routed, write_verdicts

CHECKOUT = Path(__file__).resolve().parent.parent
DOCUMENTS = [CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md", *sorted((CHECKOUT / "docs").rglob("*.md"))]
SCRIPTS = {path: commands.blocks(path.read_text(encoding="utf-8")) for path in DOCUMENTS}
WITH_COMMANDS = [path for path, (script, _) in SCRIPTS.items() if script]
NO_WEIGHTS = ("the base weights are not here: checkpoint=models/", "the pretrained weights are not here: ")
# What else a plan may miss on a machine without weights and data; a wrong command has other problems.
LACKS = (
    *NO_WEIGHTS,
    "the task-specific model is not here: ",
    "no tokenizer at models/",
    "The data file ",
    "The image root ",
)
OUTPUTS = ("output_dir", "output", "objective.reference_cache")
# Runs of another kind than the stand-in: made by their own recipe where a document names them and does not make them.
MADE = {"runs/tsm_mini": ("tsm", "tsm/mini"), "runs/vitask_mini": ("vitask", "vitask/mini")}


@dataclass
class Workspace:
    """The folder that a document's commands are typed in.

    Attributes:
        folder: Empty at first.
        data: Stands in for ``/data`` and ``$MEDTUNE_DATA``.
        stand_ins: A prepared data set, a finished run and a finished LoRA run, for inputs that no command here makes.
    """

    folder: Path
    data: Path
    stand_ins: Path

    def run(self, words: list[str], work: Callable[[], Any], allowed: tuple[int, ...] = (0,)) -> str:
        started = time.monotonic()
        status, said = in_a_process(self.folder, self.data, work)
        assert status in allowed, f"{' '.join(words)}\nended with status {status}:\n{said[-3000:]}"
        print(f"{time.monotonic() - started:5.1f} s  {' '.join(words)[:150]}")
        return said

    def provide(self, values: list[str], lora: bool = False) -> None:
        """Put stand-ins where inputs are named that are not there: ``runs/NAME...`` and ``prepared/NAME``."""
        for kind, name, rest in re.findall(r"(?<![\w/.])(runs|prepared)/([\w.-]+)([\w./-]*)", "\n".join(values)):
            place, adapted = self.folder / kind / name, lora or "lora" in name
            if not place.exists() and f"{kind}/{name}" in MADE:
                recipe, config = MADE[f"{kind}/{name}"]
                tune(["tune", "run", f"medtune/recipes/{recipe}.py", "--config", config], self)
            elif not place.exists() and not (kind == "prepared" and self.prepare(name)):
                source = "prepared" if kind == "prepared" else "lora" if adapted else "run"
                shutil.copytree(self.stand_ins / source, place)
                _call_it(name, place / "results.json")
            step = re.match(r"/checkpoints/step_\d+", rest)
            if step and not (place / step[0][1:]).exists():
                shutil.copytree(next((place / "checkpoints").glob("step_*")), place / step[0][1:])

    def prepare(self, name: str) -> bool:
        """Prepare a data set from its owners' files, where made-up ones are here."""
        words = ["tune", "run", "medtune/recipes/prepare.py", "--config", f"prepare/{name}"]
        if (CONFIGS / "prepare" / f"{name}.yaml").is_file() and owners_files(Tune.of(words).load(), self):
            self.run(words, lambda: commands.start_tune(words))
            return True
        return False


def _call_it(name: str, results: Path) -> None:
    """A report tells runs apart by the name that they were evaluated under."""
    if results.is_file():
        results.write_text(json.dumps({**json.loads(results.read_text()), "name": name}))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    commands.import_all()
    return commands.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def stand_ins(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by the recipes themselves, on the same made-up cells."""
    folder = tmp_path_factory.mktemp("stand_ins")
    shop = Workspace(folder, data, folder)
    small = ["max_steps=2", "dataset.size=16", "objective.warmup_steps=1", "batch_size=4"]
    lora = ["model._component_=medtune.models.mini.lora_mini_vlm", "model.lora_attn_modules=[q_proj,v_proj]"]
    few, scored = [f"limit={SHORT['limit']}"], ["predictions=run/predictions.jsonl", "prepared_dir=prepared"]
    ask = ["questions.source=prepared/test.jsonl", f"questions.image_root={data}/wbcatt/images"]
    for recipe, *arguments in (
        ["prepare", "prepare/wbcatt", "output_dir=prepared"],
        ["instfree", "instfree/mini", "output_dir=run", *small],
        ["instfree", "instfree/mini", "output_dir=lora", *small, *lora, "trainable=[adapter]"],
        ["predict", "predict/mini", "output_dir=run", *ask, *few, "max_new_tokens=4", "checkpoint=run/weights"],
        ["evaluate", "evaluate/default", *few, *scored, "output=run"],
    ):
        words = ["tune", "run", f"medtune/recipes/{recipe}.py", "--config", *arguments]
        shop.run(words, lambda words=words: commands.start_tune(words))
    return folder


@pytest.fixture
def workspace(data: Path, stand_ins: Path, tmp_path: Path) -> Workspace:
    (tmp_path / "work").mkdir()
    return Workspace(tmp_path / "work", data, stand_ins)


# -- rules, one for each program: it runs the command, or checks what can be checked without running it ----------------


def make(words: list[str], at: Workspace) -> None:
    """Excluded by name: they install, test or take minutes; the targets exist, and the demo has a test of its own."""
    targets = [word for word in words[1:] if "=" not in word]
    known = re.findall(r"^([a-z-]+):", (CHECKOUT / "Makefile").read_text(), flags=re.M)
    assert targets and set(targets) <= {"install", "demo", "test", "checks", "mutants", "docs", "bench-check"} & set(
        known
    ), words


def pip(words: list[str], at: Workspace) -> None:
    """Not run, it needs the index: the files and extras that it names exist."""
    assert words[1] in ("install", "download"), words
    text = (CHECKOUT / "pyproject.toml").read_text()
    for before, word in zip(words[1:], words[2:], strict=False):
        if before == "-c":
            assert (CHECKOUT / word).is_file(), words
        for extra in re.findall(r"\[([a-z,]+)\]", word):
            assert all(re.search(f"^{name} = \\[", text, flags=re.M) for name in extra.split(",")), words


def hf(words: list[str], at: Workspace) -> None:
    """Not run, it downloads: the folder is the one that a packaged config reads."""
    assert words[1] == "download" and words[3] == "--local-dir", words
    assert any(words[4] in path.read_text(encoding="utf-8") for path in CONFIGS.glob("*/*.yaml")), words


def git(words: list[str], at: Workspace) -> None:
    """Not run, it downloads."""
    assert words[1] == "clone", words


def pre_commit(words: list[str], at: Workspace) -> None:
    """Not run, it changes the checkout's hooks: its config is there."""
    assert words[1:] == ["install"] and (CHECKOUT / ".pre-commit-config.yaml").is_file()


def python(words: list[str], at: Workspace) -> None:
    """A script that the document shows is run; the checkout's own benchmarks and tests are found and compiled."""
    script = next((word for word in words[1:] if word.endswith(".py")), None)
    assert script, words
    if (at.folder / script).is_file():
        at.run(words, lambda: _run_script(at.folder / script))
    else:
        compile((CHECKOUT / script).read_text(encoding="utf-8"), script, "exec")
        assert script.split("/")[0] in ("benchmark", "tests"), words


def _run_script(path: Path) -> None:
    import runpy

    runpy.run_path(str(path), run_name="__main__")


def vllm(words: list[str], at: Workspace) -> None:
    """Not run, a server with a model on a GPU; tests/generation asks one of its own."""
    assert words[1] == "serve", words


def llama_server(words: list[str], at: Workspace) -> None:
    """Not run, a server with a model; tests/judges and tests/test_sweep_stllava.py ask one of their own."""
    assert "--model" in words and "--port" in words, words


def medtune(words: list[str], at: Workspace) -> None:
    """Run. A plan for weights that are not here must print everything and then say just that."""
    if "--help" not in words:
        arguments = cli.parser().parse_args(words[1:])
        if arguments.command == "plan" and asks_questions(arguments.config):
            asked = Tune.of(["tune", "run", "predict.py", "--config", arguments.config, *arguments.overrides]).load()
            at.provide([str(asked.questions["source"])])
        elif arguments.command == "plan":
            folder = provide_folder(arguments.overrides, at)
            found = planned(arguments.config, tuple(arguments.overrides), arguments.gpus, at)
            if folder:
                return expect_folder(found)
            large = re.search(": (?:models|weights)/", show(arguments.config))
            return expect_no_weights(found) if large else expect_plan(found)
        if arguments.command == "export" and str(arguments.source).startswith("models/"):
            return None  # weights that are not here; tests/test_conversion.py converts some
        if arguments.command in ("export", "report"):
            at.provide([word for word in words[2:] if word != str(arguments.out)], lora="peft" in words)
        if arguments.command == "ask":
            at.provide([arguments.model])
            for name in arguments.rest[:-1]:
                if name.endswith(".dcm"):
                    shutil.copy(packaged("CT_small.dcm"), at.folder / name)
                else:
                    Image.new("RGB", (64, 64)).save(at.folder / name)
        if arguments.command == "serve":  # tests/serving start servers
            at.provide([arguments.source])
            words = [*words, *([] if arguments.dry_run else ["--dry-run"])]
        if arguments.command == "annotate":  # tests/annotate start servers
            provide_annotation(at.folder)
            ends = arguments.dry_run or arguments.export or arguments.take
            words = [*words, *([] if ends else ["--dry-run"])]
        if arguments.command == "cp":  # what a page shows as a file may be a copy made before
            (at.folder / arguments.destination).unlink(missing_ok=True) if arguments.destination.suffix else None
    said = at.run(words, lambda: cli.main(words[1:]), (0, 1) if words[1] == "doctor" else (0,))
    assert "Traceback" not in said and len(said) > 20, said


def tune(words: list[str], at: Workspace) -> None:
    """Run with overrides that make it short; with real weights or a server, planned or read with its own overrides."""
    call = Tune.of(words)
    config = call.load()
    if any("my_package" in word for word in words):
        return  # a package of the reader's own; tests/reporting/test_own_protocol.py goes that way with one
    if needs_real_weights(config) and not getattr(config, "dry_run", False):  # a dry run asks no server
        if is_training(config):
            if provide_folder(call.overrides, at):
                return expect_folder(planned(call.config, tuple(call.overrides), call.gpus, at))
            expect_no_weights(planned(call.config, tuple(call.overrides), call.gpus, at))
        return
    if hasattr(config, "variants") and needs_real_weights(Tune([], config.recipe, config.train, []).load()):
        return  # a sweep over such a model has been read and checked
    # what a sweep writes itself, such as its prepared data; `predict` may read its own folder's weights
    own = f"{config.output_dir}/" if hasattr(config, "variants") else "\n"
    values = [str(value) for key, value in leaves(to_plain(config)) if key not in OUTPUTS]
    inputs = [value for value in values if not value.startswith(own)]
    if call.recipe == "router_threshold":  # of a routed model and several adapters, which take minutes to train
        write_routed(at.folder / config.routed)
        write_verdicts({name: at.folder / folder for name, folder in config.adapters.items()})
    else:
        at.provide(inputs)
        provide_graded(config, at.folder)
    questions = getattr(config, "questions", None)
    if not isinstance(questions, str | None) and questions["_component_"].endswith("images_dataset"):
        (at.folder / questions["source"]).mkdir(exist_ok=True)
        Image.new("RGB", (64, 64)).save(at.folder / questions["source"] / "1.png")
    if call.recipe == "prepare" and not owners_files(config, at):
        return
    longer = [*words, *shortened(config)]
    at.run(longer, lambda: commands.start_tune(longer))


def owners_files(config: Any, at: Workspace) -> bool:
    """Whether stand-ins for a data set's own files are here; its config has been read and checked in any case."""
    named = [
        str(value)
        for key, value in leaves(to_plain(config))
        if value and key != "output_dir" and (str(value).startswith("/") or key in ("data.table", "image_root"))
    ]
    return bool(named) and all((at.folder / value).exists() for value in named)


RULES: dict[str, Callable[[list[str], Workspace], None]] = {
    "make": make,
    "pip": pip,
    "hf": hf,
    "git": git,
    "pre-commit": pre_commit,
    "python": python,
    "vllm": vllm,
    "llama-server": llama_server,
    "medtune": medtune,
    "tune": tune,
}
PLANS: dict[tuple[Any, ...], Plan] = {}


def provide_folder(overrides: list[str], at: Workspace) -> bool:
    """Put a tiny downloaded model where a config is to read its model from a folder; whether there is such a folder."""
    named = next((word.partition("=")[2] for word in overrides if word.startswith("checkpoint=models/")), None)
    if named is not None and not (at.folder / named).exists():
        (at.folder / named).mkdir(parents=True)
        FOLDERS["InternVL, Qwen2"](at.folder / named)
    return named is not None


def planned(config: str, overrides: tuple[str, ...], gpus: int | None, at: Workspace) -> Plan:
    """``medtune plan``, once for each config with its overrides."""
    key = (config, overrides, gpus) if (CONFIGS / f"{config}.yaml").is_file() else (at.folder, config, overrides, gpus)
    if key not in PLANS:
        PLANS[key] = plan(config, overrides, gpus)
    return PLANS[key]


def expect_no_weights(found: Plan) -> None:
    assert any(problem.startswith(NO_WEIGHTS) for problem in found.problems), found.problems
    assert all(problem.startswith(LACKS) for problem in found.problems), found.problems
    assert "Parts in stage" in found.text() and sum(found.memory.values()) > 1e9


def expect_folder(found: Plan) -> None:
    assert all(problem.startswith(LACKS) for problem in found.problems), found.problems
    assert "Model\nInternVL: decoder Qwen2" in found.text() and "Parts in stage" in found.text()


def expect_plan(found: Plan) -> None:
    assert not found.problems and "Parts in stage" in found.text() and "training rows" in found.text()


def here(word: str, data: Path) -> str:
    """A word with the documents' data folder replaced by the stand-in."""
    return re.sub(rf"(^|=){DATA}(?=/|$)", rf"\g<1>{data}", word)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("document", WITH_COMMANDS, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_every_command_of_a_document(document: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    script, files = SCRIPTS[document]
    recording = workspace.folder.parent / "recording"
    recording.mkdir()
    called = commands.recorded(script, recording)
    for name, content in files.items():
        (workspace.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (workspace.folder / name).write_text(content, encoding="utf-8")
    assert len(called) >= len(re.findall(r"^ *(?:tune run|medtune|hf|pip|make|python) ", script, flags=re.M))
    monkeypatch.chdir(workspace.folder)
    monkeypatch.setenv("MEDTUNE_DATA", str(workspace.data))
    done: set[tuple[str, ...]] = set()
    for words in called:
        words = [here(word, workspace.data) for word in words]
        if tuple(words) in done:
            continue
        assert words[0] in RULES, f"{document.name}: no rule for {' '.join(words)}; add one to tests/test_commands.py"
        RULES[words[0]](words, workspace)
        done.add(tuple(words))


def test_a_shell_reads_loops_variables_continued_lines_and_quotes(tmp_path: Path) -> None:
    text = """Text with `medtune ls prepare/x` and `medtune plan`, and a wrapped `make
demo`.
```sh
export MEDTUNE_DATA=/data   # a remark
A=x.y=$MEDTUNE_DATA/z
for run in a b; do
  tune run r.py --config c $A \\
    'k=[1, 2]' out=runs/$run
done && cd somewhere && git clone <this repository> x
```
```python
# shown.py
print("medtune")
```
"""
    script, files = commands.blocks(text)
    found = commands.recorded(script, tmp_path)
    one = ["tune", "run", "r.py", "--config", "c", "x.y=/data/z", "k=[1, 2]"]
    more = [["git", "clone", "PLACEHOLDER", "x"], ["medtune", "ls", "prepare/x"], ["make", "demo"]]
    assert found == [[*one, "out=runs/a"], [*one, "out=runs/b"], *more]
    assert files == {"shown.py": '# shown.py\nprint("medtune")\n'}


@pytest.mark.parametrize("wrong", ["for x in a; do\n", "/usr/bin/true\n", "if tune; fi\n"])
def test_what_a_shell_cannot_read_is_an_error(wrong: str, tmp_path: Path) -> None:
    if wrong.startswith("/"):
        wrong = f"/nowhere{os.sep}tune run\n"
    with pytest.raises(AssertionError, match="the shell refuses"):
        commands.recorded(wrong, tmp_path)


def test_wrong_commands_are_found(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace.folder)
    large = ["tune", "run", "medtune/recipes/instfree.py", "--config", "instfree/llama3_2_vision_11b_single_device"]
    with pytest.raises(Exception, match="did you mean 'batch_size'"):
        tune([*large, "batch_sise=2"], workspace)
    with pytest.raises(AssertionError, match="learning_rates.decoder: this run trains"):
        tune([*large, "learning_rates.decoder=1"], workspace)
    with pytest.raises(AssertionError, match="ended with status 2"):
        medtune(["medtune", "cp", "instfree/none", "a.yaml"], workspace)
    with pytest.raises(AssertionError):
        make(["make", "coffee"], workspace)
