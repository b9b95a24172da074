"""The shell commands of the documents: read out by a shell, made short, and run as a user would on a CPU."""

import contextlib
import csv
import dataclasses
import importlib
import io
import json
import multiprocessing
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from PIL import Image

from medtune.cli import catalog
from medtune.cli import main as cli
from medtune.config import load_config, to_plain
from medtune.datasets.medmnist import FACTS
from medtune.datasets.wbcatt import ATTRIBUTES
from tests.datasets.flare.files import write_flare
from tests.datasets.medmnist_files import write_medmnist
from tests.datasets.owners import Mimic, skincon_rows, write_picture, write_skincon, write_vqa
from tests.judges.chat_files import write_llava_med

BASH = shutil.which("bash")
DATA = "/data"  # where the documents' examples keep data sets
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", flags=re.M | re.S)
# In running text `medtune plan` is a name; with an argument it is a command.
OWN = r"tune run medtune/|medtune [a-z]+ |medtune (?:ls|doctor|--help)(?=`)"
STARTS = rf"{OWN}|make |pip |(?:\.venv/bin/)?python |hf download \S+ "
INLINE = re.compile(rf"`((?:[A-Z_]+=\S+ )*(?:{STARTS})[^`]*)`")
# Every word that is no builtin comes here, with variables, loops and quotes resolved; nothing is found on the PATH.
RECORDER = r"""
command_not_found_handle() { printf '%s\0' "$@" >> "$RECORD"; printf '\n\0' >> "$RECORD"; }
cd() { :; }
source() { :; }
"""


def blocks(text: str) -> tuple[str, dict[str, str]]:
    """The shell lines of a document, inline ones last, and the files that it shows under their names."""
    shell, files = [], {}
    for language, content in BLOCK.findall(text):
        named = re.match(r"# ([\w./-]+\.(?:py|yaml|json|csv))\n", content)
        if language in ("sh", "bash", "shell", "console"):
            shell.append(content)
        elif named:
            files[named[1]] = content
    prose = BLOCK.sub("", text)
    inline = INLINE.findall(re.sub(r"(?<=\S)\n(?=\S)", " ", prose))
    shell += [f"{line}\n" for line in inline if not line.startswith("medtune ") or _whole(line.split()[1:])]
    return "".join(shell), files


def _whole(words: list[str]) -> bool:
    """Whether the medtune command takes these words; in running text parts of a call are named too."""
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            cli.parser().parse_args(words)
    except SystemExit as end:
        return end.code == 0
    return True


def recorded(script: str, folder: Path) -> list[list[str]]:
    """What a shell would run, in order, as lists of words.

    Raises:
        AssertionError: If the shell does not understand the script, or it starts a program by its path.
    """
    plain = re.sub(r"<([a-z ]+)>", "PLACEHOLDER", script).replace(".venv/bin/", "")
    record = folder / "record"
    record.touch()
    environment = {"PATH": "/nonexistent", "RECORD": str(record), "MEDTUNE_DATA": DATA}
    assert BASH is not None
    result = subprocess.run([BASH, "-c", RECORDER + plain], cwd=folder, env=environment, capture_output=True, text=True)
    assert not result.stderr, f"the shell refuses a command of this document: {result.stderr}"
    lines = record.read_text().split("\0\n\0")
    return [line.split("\0") for line in lines if line]


@dataclasses.dataclass
class Tune:
    """``tune run [options] medtune/recipes/RECIPE.py --config CONFIG overrides``."""

    options: list[str]
    recipe: str
    config: str
    overrides: list[str]

    @staticmethod
    def of(words: list[str]) -> "Tune":
        place = next(at for at, word in enumerate(words) if word.endswith(".py"))
        assert words[:2] == ["tune", "run"] and words[place + 1] == "--config", words
        return Tune(words[2:place], Path(words[place]).stem, words[place + 2], words[place + 3 :])

    @property
    def gpus(self) -> int:
        """Processes on all nodes together."""
        sizes = [
            int(self.options[at + 1])
            for at, word in enumerate(self.options)
            if word in ("--nnodes", "--nproc_per_node")
        ]
        return sizes[0] * sizes[-1] if len(sizes) == 2 else (sizes or [1])[0]

    @property
    def config_class(self) -> type:
        """The class of the recipe's config."""
        main = importlib.import_module(f"medtune.recipes.{self.recipe}").main
        return next(iter(typing.get_type_hints(main.__wrapped__).values()))

    def load(self) -> Any:
        """The config as the recipe would read it."""
        return load_config(self.config, self.config_class, self.overrides)


def leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a plain config with its dotted key."""
    if isinstance(node, dict | list):
        for name, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from leaves(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, node


def needs_real_weights(config: Any) -> bool:
    """Whether a config names weights that are downloaded, or a server."""
    values = [value for _, value in leaves(to_plain(config)) if isinstance(value, str)]
    return any(value.startswith(("models/", "weights/", "http://", "https://")) for value in values)


def is_training(config: Any) -> bool:
    """Whether ``medtune plan`` understands it."""
    return hasattr(config, "objective")


SHORT = {"max_steps": 2, "limit": 13, "max_new_tokens": 4, "bootstrap_draws": 20, "processes": 1, "samples": 2}
"""Keys of any recipe's config, and a value with which it is over in seconds."""


def shortened(config: Any) -> list[str]:
    """Overrides after which the same command is over in seconds."""
    if hasattr(config, "variants"):
        return _short_sweep(config)
    found = [f"{key}={value}" for key, value in SHORT.items() if hasattr(config, key)]
    for key, value in leaves(to_plain(config)):
        leaf = key.rpartition(".")[2]
        if leaf == "size" and isinstance(value, int) and value > 48:
            found.append(f"{key}=48")
        if key in ("data.train", "data.val", "data.test") and isinstance(value, int) and value > 12:
            found.append(f"{key}=12")
        if leaf.endswith(("warmup_steps", "align_steps")) and key != leaf and isinstance(value, int) and value > 1:
            found.append(f"{key}=1")
        if leaf.endswith("warmup_epochs"):
            found += [f"~{key}", f"{key.removesuffix('epochs')}steps=1"]
    if hasattr(config, "on_extra"):  # answers that stand in for a document's may be more than it asked for
        found += ["on_extra=ignore", "on_missing=wrong"]
    return found


def _short_sweep(config: Any) -> list[str]:
    tuned = [variant for variant in config.variants if variant.train is not None]
    chosen = [variant for variant in tuned if not config.axis or variant.x is not None][:1]
    chosen = [variant for variant in config.variants if variant.train is None][:1] + chosen
    for variant in chosen:
        variant.train = variant.train and [one for one in variant.train if not one.startswith("max_steps=")]
    own = config.asks or any(one.startswith("protocols=") for one in config.predict_overrides)
    asks = [] if own else ["protocols=[open]", "swapped=[]"]
    ask, score = [*asks, f"limit={SHORT['limit']}"], [f"bootstrap_draws={SHORT['bootstrap_draws']}"]
    for step in (step for variant in chosen for step in variant.steps or []):
        if step.recipe == "predict" and step.config:  # the sweep's own overrides do not reach it
            step.overrides += [*ask, "max_new_tokens=4"]
    variants = ", ".join(
        "{" + ", ".join(f"{key}: {_flow(value)}" for key, value in to_plain(one).items() if value is not None) + "}"
        for one in chosen
    )
    before = ", ".join(
        f"{{recipe: {step.recipe}, config: {step.config}, overrides: {_flow([*step.overrides, *_short_step(step)])}}}"
        for step in config.before
    )
    recipe = Tune([], config.recipe, config.train, [])
    train = [*config.train_overrides, *shortened(recipe.load()), "batch_size=4"]
    return [
        f"variants=[{variants}]",
        f"before=[{before}]",
        f"train_overrides={_flow(train)}",
        f"predict_overrides={_flow([*config.predict_overrides, *ask, 'max_new_tokens=4'])}",
        f"evaluate_overrides={_flow([*config.evaluate_overrides, *ask, *score])}",
        "seeds=[0]",
        "processes=1",
        "samples=1",
    ]


def _short_step(step: Any) -> list[str]:
    """A length that the sweep gives a step itself is replaced too, since the last override counts."""
    return shortened(Tune([], step.recipe, step.config, []).load())


def _flow(value: Any) -> str:
    """A value as YAML on one line, strings quoted."""
    if isinstance(value, list):
        return f"[{', '.join(map(_flow, value))}]"
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else str(value)


def import_all() -> None:
    """Import what commands import, before forking, so that each starts at once."""
    for recipe in catalog.recipes():
        importlib.import_module(f"medtune.recipes.{recipe.name}")
    for name in (
        "torchtune._cli.tune",
        "torch._dynamo",
        "matplotlib.pyplot",
        "medtune.reporting.report",
        "medtune.export",
        "medtune.serving.run",
    ):
        importlib.import_module(name)


def in_a_process(folder: Path, data: Path, work: Callable[[], Any]) -> tuple[int, str]:
    """Run something in a forked process that lives in ``folder``: its exit status, and what it said."""
    log = folder / ".log"
    child = multiprocessing.get_context("fork").Process(target=_live, args=(folder, data, log, work))
    child.start()
    child.join(600)
    if child.is_alive():
        child.kill()
        child.join()
    return child.exitcode or 0, log.read_text(errors="replace")


def _live(folder: Path, data: Path, log: Path, work: Callable[[], Any]) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.chdir(folder)
    os.environ["MEDTUNE_DATA"] = str(data)
    status: Any = 1
    try:
        status = work()
    except SystemExit as end:
        status = end.code
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


def start_tune(words: list[str]) -> None:
    """What the ``tune`` program does with these words."""
    from torchtune._cli.tune import main

    sys.argv = words
    main()


def write_data(folder: Path) -> Path:
    """Small data sets with made-up contents in their owners' layouts, where the documents' examples look for them."""
    _write_wbcatt(folder / "wbcatt")
    rows = skincon_rows(80)
    for number, row in enumerate(rows):
        write_picture(folder / "skincon" / "images" / row["ImageID"], number)
    write_skincon(folder / "skincon", rows)
    for name in FACTS:
        write_medmnist(folder / "medmnist", name)
    write_vqa(folder)
    write_flare(folder / "flare")
    write_llava_med(folder / "llava_med")
    Mimic(60).write(folder / "mimic-cxr-jpg", images=True)
    for name, file in (
        ("chexmask/OriginalResolution", "MIMIC-CXR-JPG.csv"),
        ("medical-cxr-vqa", "medical-cxr-vqa-questions.csv"),
        ("llava-rad", "chat_*.json"),
    ):
        (folder / name).mkdir(parents=True)
        for path in (folder / "mimic-cxr-jpg").glob(file):
            path.rename(folder / name / path.name)
    _write_volumes(folder / "ct")
    _write_task_questions(folder / "flare_task5" / "training" / "Any" / "any")
    return folder


def _write_task_questions(folder: Path) -> None:
    """Ten questions of each of four tasks, without images."""
    rows = [
        {"Question": f"{text} {number}?", "TaskType": task}
        for task, text in (
            ("Classification", "Which option, A or B, fits picture"),
            ("Counting", "How many cells are in picture"),
            ("Detection", "Which box has the lesion of picture"),
            ("Regression", "What percentage is it in picture"),
        )
        for number in range(10)
    ]
    folder.mkdir(parents=True)
    (folder / "any_questions_train.json").write_text(json.dumps(rows))


def _write_volumes(folder: Path) -> None:
    """A volume of ten slices, and the report about it."""
    folder.mkdir()
    nibabel.save(nibabel.Nifti1Image(np.arange(640, dtype=np.int16).reshape(8, 8, 10), np.eye(4)), folder / "a.nii.gz")
    (folder / "reports.csv").write_text("volume,text\na.nii.gz,no finding\n")


LABELS = ("Monocyte", "Basophil", "Lymphocyte", "Eosinophil", "Neutrophil")


def _write_wbcatt(folder: Path) -> None:
    values = {name: ("small", "big") for name in ATTRIBUTES}
    values |= {
        "granularity": ("no", "yes"),
        "granule_type": ("nil", "round", "coarse"),
        "label": LABELS,
    }
    (folder / "annotations").mkdir(parents=True)
    rng = random.Random(0)
    for split, count in (("train", 40), ("val", 12), ("test", 12)):
        rows = []
        for number in range(count):
            name = f"{split}_{number}.jpg"
            picture = folder / "images" / "PBC" / name
            picture.parent.mkdir(parents=True, exist_ok=True)
            Image.effect_noise((360, 363), 20 + number).convert("RGB").save(picture)
            row = {key: rng.choice(options) for key, options in values.items()}
            row["label"] = LABELS[number % len(LABELS)]  # every split has each type
            rows.append({**row, "path": f"PBC/{name}", "img_name": name})
        with (folder / "annotations" / f"pbc_attr_v1_{split}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    with tarfile.open(folder / "wbcatt_128.tar", "w") as archive:
        archive.add(folder / "images" / "PBC", "PBC")
