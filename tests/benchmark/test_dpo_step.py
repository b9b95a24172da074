"""The benchmark of a DPO step, without TRL: what TRL would be given is what medtune runs, and the figures are named."""

import io
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from medtune.losses.cross_entropy import IGNORE_INDEX
from medtune.objectives.base import image_features
from tests.benchmark.scripts import script

bench = script("dpo_step")
worker = script("dpo_step_worker")
TINY = ["--image-size", "28", "--embed-dim", "32", "--vision-layers", "4", "--decoder-layers", "4", "--words", "2", "6"]
CASES = ["llava_336", "llama3_2_vision_224"]


def settings(case: str) -> dict[str, Any]:
    return bench.settings_of(bench.parse([*TINY, "--batch-size", "2", "--batches", "2"]), case)


@pytest.mark.parametrize("case", CASES)
def test_the_files_for_trl_give_the_log_probabilities_that_medtune_computes(case: str, tmp_path: Path) -> None:
    chosen = settings(case)
    bench.write_for_trl(chosen, tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "hf")
    if chosen["model"] == "llama":
        states = config.vision_config.intermediate_layers_indices
        config.vision_config.intermediate_layers_indices = [index - 1 for index in states]
    theirs = transformers.AutoModelForImageTextToText.from_pretrained(
        tmp_path / "hf", config=config, dtype=torch.float32
    ).eval()
    rows = {k.partition(".")[2]: v for k, v in load_file(tmp_path / "batches.safetensors").items() if k[0] == "1"}
    answers = rows.pop("completion_mask")[:, 1:]
    with torch.no_grad():
        scores = theirs(**rows).logits[:, :-1].log_softmax(-1)
    targets = rows["input_ids"][:, 1:].masked_fill(answers == 0, 0)  # the image's id has no logit
    found = (scores.gather(2, targets[:, :, None]).squeeze(2) * answers).sum(1).view(2, -1).T
    side = bench.OurSide(chosen, "adapters_off")
    batch = side.batches[1]
    with torch.no_grad():
        ours = side.objective.form.log_probs(side.model, batch, image_features(side.model, batch), 512)
    assert torch.allclose(ours.float(), found, atol=1e-3), (ours, found)
    assert ours.abs().min() > 1 and int(answers.sum()) == int(batch["lengths"].sum())


@pytest.mark.parametrize("case", CASES)
def test_both_references_begin_at_ln_2_and_take_the_same_steps(case: str) -> None:
    live, given = (bench.OurSide(settings(case), reference) for reference in ("adapters_off", "precomputed"))
    losses = [(live.step(number), given.step(number)) for number in range(4)]
    assert losses[0][0] == pytest.approx(math.log(2), abs=1e-6)
    assert all(one == pytest.approx(other, abs=1e-6) for one, other in losses)
    assert abs(losses[2][0] - math.log(2)) > 1e-5


def test_both_forms_give_the_same_gradients() -> None:
    found = bench.form_differences(settings("llava_336"))
    assert found["max_gradient_difference"] < 1e-6 < 1e-3 < found["largest_gradient"]


def test_trl_reads_each_image_with_each_answer() -> None:
    chosen = settings("llava_336")
    _, transform = bench.build(chosen)
    rows = bench.trl_rows(bench.batches(chosen, transform, "plain")[0], transform.pad_id, "llava")
    assert torch.equal(rows["pixel_values"][:2], rows["pixel_values"][2:]) and len(rows["input_ids"]) == 4
    assert not torch.equal(rows["pixel_values"][0], rows["pixel_values"][1])
    pad = rows["attention_mask"] == 0
    assert pad.any() and not rows["completion_mask"][pad].any() and IGNORE_INDEX not in rows["input_ids"]


@pytest.mark.parametrize(("shape", "images"), [((6, 3, 4, 4), 6), ((2, 3, 1, 3, 4, 4), 6)])
def test_a_worker_counts_images_and_tokens_and_measures_memory(
    shape: tuple[int, ...], images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    monkeypatch.setattr("sys.stdin", io.StringIO("step\ncount\nmemory\nend\n"))
    monkeypatch.setattr("sys.stdout", out)
    tower, words = torch.nn.Identity(), torch.nn.Embedding(10, 4)
    told = worker.Worker(tower, words)
    for _ in range(2):
        told.wait()
        tower(torch.zeros(shape))
        words(torch.zeros(2, 5, dtype=torch.long)).sum().backward()
        told.done(0.5)
    with pytest.raises(SystemExit):
        told.wait()
    ready, step, count, memory = map(json.loads, out.getvalue().splitlines())
    assert ready["ready"] and step["loss"] == 0.5 and step["seconds"] > 0 and "encodes" not in step
    assert (count["encodes"], count["lm_tokens"]) == (images, 10) and count["tensor_bytes"] >= 10 * 4 * 4
    assert memory["process_bytes"] > memory["growth_bytes"] >= 0


def test_ratios_are_medians_of_rounds_and_to_compact_trl() -> None:
    times = {"medtune": [1.0, 2.0, 30.0], "precomputed": [1.0, 1.0, 10.0], "trl": [4.0, 4.0, 40.0]}
    memory = {side: {"growth_bytes": size, "process_bytes": 10 * size} for side, size in
              (("medtune", 3), ("precomputed", 2), ("trl", 6), ("trl_shipped", 12))}  # fmt: skip
    counts = {side: {"encodes": size, "lm_tokens": 10 * size, "tensor_bytes": size} for side, size in
              (("medtune", 2), ("precomputed", 1), ("trl", 8), ("trl_shipped", 8))}  # fmt: skip
    losses = {side: [0.5, value] for side, value in
              (("medtune", 0.1), ("precomputed", 0.4), ("trl", 0.2), ("trl_shipped", 0.9))}  # fmt: skip
    found = bench.summary({"batch_size": 2}, losses, {**times, "trl_shipped": [8.0, 8.0, 8.0]}, memory, counts)
    assert (found["time_ratio"], found["precomputed_time_ratio"]) == (0.5, 0.25)
    assert (found["memory_ratio"], found["encodes_per_pair"], found["lm_tokens_ratio"]) == (0.5, 1.0, 0.25)
    assert found["max_loss_difference"] == pytest.approx(0.2)
    assert found["as_shipped"]["time_ratio"] == 0.25 and found["as_shipped"]["memory_ratio"] == 0.25


def test_the_environment_is_made_once_from_the_pinned_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(bench.subprocess, "run", lambda command, check: ran.append(command))
    options = SimpleNamespace(trl=None, environment=tmp_path / "made")
    python = bench.environment(options)
    assert python == str(tmp_path / "made" / "bin" / "python")
    assert [command[1:3] for command in ran] == [["-m", "venv"], ["-m", "pip"]] and str(bench.REQUIREMENTS) in ran[1]
    (tmp_path / "made" / "bin").mkdir(parents=True)
    Path(python).touch()
    assert bench.environment(options) == python and len(ran) == 2
    assert bench.environment(SimpleNamespace(trl=Path("/elsewhere/python"))) == "/elsewhere/python"
    pins = [line for line in bench.REQUIREMENTS.read_text().splitlines() if not line.startswith("#")]
    assert all("==" in line for line in pins) and "trl==1.16.0" in pins
