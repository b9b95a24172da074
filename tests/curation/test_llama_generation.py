"""Generation by a real llama.cpp server with a small model, on loopback: counted, kept, resumed, held to a budget."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from medtune.curation.parsing import REASONS
from tests.judges.llama_server import MODEL
from tests.judges.passing_on import passing_on
from tests.judges.test_llama import llama  # noqa: F401
from tests.recipe_modules import load_recipe


def write_figures(data: Path, folder: Path, count: int) -> None:
    """Captions of the clinicians' demonstrations, as figures."""
    rows = json.loads((data / "biomed_vital/clinician_few_shot_58.json").read_text())[:count]
    keys = ("pair_id", "fig_caption", "in_text_mention", "domain")
    (folder / "figures.json").write_text(json.dumps([{key: row[key] for key in keys} for row in rows]))


def curated(folder: Path, url: str, *more: str, config: str = "curate/llama_cpp", out: str = "out") -> int:
    command = [
        "--config", config, f"figures={folder / 'figures.json'}", "demonstrations=null", f"server.base_url={url}",
        f"server.model={MODEL}", "writing.text_limit=200", "writing.max_tokens=160", f"output_dir={folder / out}",
        "server.concurrency=1", *more,
    ]  # fmt: skip
    return int(load_recipe("curate").main(command))


def manifest(folder: Path, out: str = "out") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / out / "manifest.json").read_text())
    return found


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.open()]


def test_what_a_real_model_writes_freely_is_read_strictly_and_counted(
    llama: str,  # noqa: F811
    medtune_data: Path,
    tmp_path: Path,
) -> None:
    write_figures(medtune_data, tmp_path, 3)
    status = curated(tmp_path, llama, "~server.options.grammar", "writing.max_tokens=40", "stop_after_unparsed=null")
    counts = manifest(tmp_path)["counts"]
    assert counts["replies"] == 3 == counts["parsed"] + sum(counts["kept_aside"].values())
    assert set(counts["kept_aside"]) <= set(REASONS) and (status == 0) == (counts["parsed"] > 0)
    aside = rows(tmp_path / "out/aside.jsonl")
    assert Counter(row["reason"] for row in aside) == Counter(counts["kept_aside"])


def test_a_budget_stops_a_real_run_and_the_next_start_asks_only_for_the_rest(
    llama: str,  # noqa: F811
    medtune_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_figures(medtune_data, tmp_path, 3)
    with passing_on(llama) as server:
        assert curated(tmp_path, server.url, "budget.max_requests=2") != 0
        assert "max_requests" in capsys.readouterr().err and len(server.bodies) == 2
        assert curated(tmp_path, server.url) == 0
        assert len(server.bodies) == 3 == len(set(server.bodies))
        kept = (tmp_path / "out/replies.jsonl").read_bytes()
        again = curated(tmp_path, server.url, f"cache={tmp_path / 'out/replies.jsonl'}", out="again")
        assert again == 0 and len(server.bodies) == 3 and (tmp_path / "out/replies.jsonl").read_bytes() == kept
    found = manifest(tmp_path)
    assert found["spent"]["requests"] == 3 and found["spent"]["prompt_tokens"] > 3 * 50
    assert manifest(tmp_path, "again")["spent"]["requests"] == 0
    conversations = rows(tmp_path / "out/conversations.jsonl")
    assert len(conversations) == 3 - sum(found["counts"]["kept_aside"].values()) > 0
    for row in conversations:
        assert [turn["from"] for turn in row["conversations"]] == ["human", "gpt"] * 2
    assert (tmp_path / "again/conversations.jsonl").read_bytes() == (tmp_path / "out/conversations.jsonl").read_bytes()


def test_a_real_model_writes_two_answers_for_clinicians(
    llama: str,  # noqa: F811
    medtune_data: Path,
    tmp_path: Path,
) -> None:
    write_figures(medtune_data, tmp_path, 2)
    assert curated(tmp_path, llama, "writing.max_tokens=250", config="curate/llama_cpp_candidates") == 0
    candidates = rows(tmp_path / "out/candidates.jsonl")
    assert candidates and all(len(row["answers"]) == 2 and row["meta"]["caption"] for row in candidates)
