"""BioMed-VITAL as one sweep on real data, with a real generator and choices at the page, killed at every step."""

import contextlib
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from medtune.config import load_config
from medtune.curation.figures import MODALITIES
from medtune.curation.preference_pairs import held_out
from medtune.errors import MedtuneError
from medtune.sweep.config import SweepConfig
from medtune.sweep.run import run_sweep
from tests.annotate.browser import CHROMIUM, Browser, Tab, chromium
from tests.annotate.test_page import READY, SETTLED
from tests.curation.real_encoder import packaged_files, write_encoder
from tests.curation.real_figures import write_figures
from tests.judges import llama_server
from tests.judges.passing_on import passing_on
from tests.test_sweep_stllava import begun, end, few_questions, filled_file, killed_when

# What a step of the sweep has written when it is killed; the model is asked by three of them.
ASKED = ("candidates", "conversations", "ratings")
AFTER_PEOPLE = (
    "pairs/manifest.json",
    "selector/metrics.jsonl",
    "selection/manifest.json",
    "all/sft/metrics.jsonl",
    "all/predict/predictions.jsonl",
    "selected_half/results.json",
)


@pytest.fixture(scope="module")
def writer() -> Iterator[str]:
    """A llama.cpp server whose context holds the demonstrations."""
    if llama_server.model_file() is None or packaged_files() is None:
        pytest.skip("needs packages with small models: make install, or see docs/testing.md")
    command = [sys.executable, llama_server.__file__, "0", "12288"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        assert child.stdout is not None and child.stdin is not None
        yield json.loads(child.stdout.readline())["url"]
        child.stdin.close()
        child.kill()


def short_demonstrations(data: Path, folder: Path) -> Path:
    """The shortest of the clinicians' demonstrations of each modality, two questions of each, to read them quickly."""
    rows = json.loads((data / "biomed_vital/clinician_few_shot_58.json").read_text())
    rows = sorted(({**row, "conversations": row["conversations"][:4]} for row in rows), key=lambda row: len(str(row)))
    kept = {row["pair_id"]: row for name in MODALITIES for row in [row for row in rows if row["domain"][name]][:1]}
    path = folder / "demonstrations.json"
    path.write_text(json.dumps(list(kept.values())))
    return path


def tiny(data: Path, folder: Path, url: str) -> SweepConfig:
    """The packaged sweep with eight figures, of which two are asked about twice, and few steps."""
    config = load_config(
        "sweep/biomed_vital_mini", SweepConfig, [f"output_dir={folder}/sweep", f"prepared_dir={folder}/prepared"]
    )
    write_figures(data, folder / "figures", 8)
    write_encoder(folder / "encoders")
    steps = [*config.before, *(step for variant in config.variants for step in variant.steps or [])]
    for step in steps:
        step.overrides = [
            one.replace("prepared/figures", f"{folder}/figures").replace("models/small_encoders", f"{folder}/encoders")
            for one in step.overrides
        ]
        if step.recipe in ("curate", "rate"):
            step.overrides += [f"server.base_url={url}", "server.concurrency=1"]
    prepare, candidates, conversations, _, pairs, selector, selection = config.before
    prepare.overrides += few_questions(data / "vqa_rad", folder)
    candidates.overrides += ["groups.count=2", "groups.size=2", "writing.text_limit=200"]
    candidates.overrides += [f"demonstrations={short_demonstrations(data, folder)}"]
    conversations.overrides += ["per_modality=0", "writing.text_limit=200"]
    pairs.overrides += ["model_pairs=20"]
    selector.overrides += ["max_steps=6"]
    selection.overrides += ["clusters.count=2"]
    for variant in config.variants:
        assert variant.steps is not None
        variant.steps[0].overrides += ["max_steps=4", "batch_size=2"]
    config.predict_overrides += ["max_new_tokens=8"]
    config.samples = 2
    return config


@contextlib.contextmanager
def annotate(folder: Path) -> Iterator[tuple[subprocess.Popen, str]]:
    """`medtune annotate` as the sweep's comment gives it: the process, and the address that it prints once."""
    command = [
        sys.executable, "-m", "medtune.cli.main", "annotate", f"{folder}/sweep/candidates/candidates.jsonl", "--images",
        f"{folder}/figures/images", "--store", f"{folder}/annotations.sqlite", "--annotator", "Reader 1", "--port", "0",
        "--renew", "Reader 1",
    ]  # fmt: skip
    if not (folder / "annotations.sqlite").exists():
        command = command[:-2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        found = (re.search(r"Reader 1: (http\S+)", line) for line in child.stdout)
        yield child, next(match[1] for match in found if match)
        child.kill()


def choose(tab: Tab, address: str, most: int | None = None) -> int:
    """Choose the left answer with the keyboard, until nothing is left or ``most`` are done."""
    tab.open(address)
    done = 0
    finished = "document.querySelector('#done').hidden === false"
    while done != most:
        tab.until(f"({READY}) || {finished}")
        if tab.run(finished):
            break
        tab.until(SETTLED)
        before = tab.text("#name")
        tab.press("1")
        tab.until(f"document.querySelector('#name').textContent !== {json.dumps(before)} || {finished}")
        done += 1
    return done


def share_out(config: SweepConfig) -> None:
    """Choose the seed of the pairs so that of the two figures with choices one is held out."""
    rows = (Path(config.output_dir) / "candidates/candidates.jsonl").open()
    images = sorted({image for row in rows for image in json.loads(row)["images"]})
    assert len(images) == 2
    seed = next(seed for seed in range(99) if sum(held_out(image, 0.5, seed) for image in images) == 1)
    config.before[4].overrides += ["validation_share=0.5", f"seed={seed}"]


def people_choose(browser: Browser, folder: Path) -> int:
    """All choices; the page is killed without warning after the first one."""
    tab = browser.tab()
    with annotate(folder) as (child, address):
        first = choose(tab, address, most=1)
        child.kill()
        child.wait()
    with annotate(folder) as (_, address):
        rest = choose(tab, address)
    exported = [
        sys.executable, "-m", "medtune.cli.main", "annotate", f"{folder}/sweep/candidates/candidates.jsonl", "--store",
        f"{folder}/annotations.sqlite", "--export", f"{folder}/sweep/annotations.jsonl",
    ]  # fmt: skip
    subprocess.run(exported, check=True, stdout=subprocess.DEVNULL)
    return first + rest


def killed_while_asking(config: SweepConfig, step: str, state: dict[str, Any]) -> None:
    """Kill the sweep when a step asks again after its first reply."""
    state["replies"] = Path(config.output_dir) / step / "replies.jsonl"
    state["child"] = begun(config)
    state["child"].join(300)
    assert state["child"].exitcode is not None and state["child"].exitcode < 0
    del state["replies"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium (or $MEDTUNE_CHROMIUM)")
def test_the_sweep_on_real_data_is_killed_at_every_step_and_people_choose_at_the_page(
    writer: str, medtune_data: Path, tmp_path: Path
) -> None:
    """Each request reaches llama.cpp once, except those that were on their way when the sweep was killed."""
    state: dict[str, Any] = {}

    def on_request(number: int) -> None:
        if "replies" in state and filled_file(state["replies"]):
            end(state["child"])

    root = tmp_path / "sweep"
    with passing_on(writer, on_request=on_request) as server:
        config = tiny(medtune_data, tmp_path, server.url)
        for step in ASKED:
            killed_while_asking(config, step, state)
            assert filled_file(root / step / "replies.jsonl") and not (root / step / "manifest.json").exists()
        with pytest.raises(MedtuneError, match="selector_pairs"):
            run_sweep(config, lambda line: None)
        share_out(config)
        with chromium(tmp_path / "chromium") as browser:
            chosen = people_choose(browser, tmp_path)
        for file in AFTER_PEOPLE:
            killed_when(config, partial(filled_file, root / file))
        page = run_sweep(config, lambda line: None).read_text()
    asked = Counter(server.bodies)
    assert sum(asked.values()) == len(asked) + len(ASKED), "only what was on its way is sent again"
    keys = [json.loads(line)["key"] for step in ASKED for line in (root / step / "replies.jsonl").open()]
    assert len(set(keys)) == len(keys) == len(asked)
    candidates = [json.loads(line) for line in (root / "candidates/candidates.jsonl").open()]
    exported = [json.loads(line) for line in (root / "annotations.jsonl").open()]
    assert chosen == len(exported) == len({row["id"] for row in exported}) <= len(candidates)
    made = json.loads((root / "selection/manifest.json").read_text())
    assert sum(1 for _ in (root / "selection/selected.jsonl").open()) > 0 and made
    assert json.loads((root / "selector/selection.json").read_text())
    for run in ("all", "selected_half"):
        scores = json.loads((root / run / "results.json").read_text())["protocols"]["vqa"]["overall"]
        assert scores["open_recall_micro"]["n"] + scores["closed_accuracy_strict_micro"]["n"] == 8
    assert "Selected half" in page and "All conversations" in page
