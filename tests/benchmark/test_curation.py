"""The benchmark of curation with a few requests, rows and people; parts that are there are not measured again."""

import json
import sys
from pathlib import Path

import pytest

from tests.benchmark.scripts import FOLDER, script

sys.path.insert(0, str(FOLDER))
curation = script("curation")
TINY = [
    "--requests=6", "--in-flight=3", "--delay=0.05", "--side=32", "--rounds=1", "--annotators=3", "--questions=2",
    "--think=0.01", "--rows=40", "--groups=4",
]  # fmt: skip


def measure(out: Path, *parts: str, more: tuple[str, ...] = ()) -> dict:
    curation.main([*TINY, *more, "--out", str(out), "--only", *parts])
    found: dict = json.loads(out.read_text())
    return found


def test_the_client_is_measured_beside_a_plain_loop_and_not_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "curation.json"
    found = measure(out, "requests")
    seconds = found["requests"]["all_rounds"]["seconds"]
    assert found["requests"]["throughput_ratio"] == seconds["plain"][0] / seconds["medtune"][0]
    assert min(seconds["plain"][0], seconds["medtune"][0]) >= 2 * 0.05, "six requests, three at once"
    assert found["commit"] and found["versions"] and found["hardware"] and "--only" not in found["command"]
    monkeypatch.setitem(curation.PARTS, "requests", lambda *_: {"throughput_ratio": 7.0})
    assert measure(out, "requests") == found
    out.write_text(json.dumps({**found, "features": "kept"}))
    anew = measure(out, "requests", more=("--fresh",))
    assert anew["requests"]["throughput_ratio"] == 7.0 and anew["features"] == "kept"
    assert measure(out, "requests", more=("--delay=0.06",))["requests"]["throughput_ratio"] == 7.0


def test_a_selection_and_the_page_are_measured_and_nothing_is_lost(tmp_path: Path) -> None:
    found = measure(tmp_path / "curation.json", "selection", "annotation")
    assert found["selection"]["taken"] == 20 and found["selection"]["peak_memory_bytes"] > 1e7
    page = found["annotation"]
    assert page["confirmed"] == 6 and page["lost"] == 0 and page["requests"] >= 12
    assert page["p50_ms"] <= page["p95_ms"] <= page["max_ms"]


def test_options_that_decide_nothing_are_not_recorded() -> None:
    words = ["--rounds", "2", "--only", "requests", "features", "--fresh", "--rows", "9"]
    assert curation.measured_with(words) == ["--rounds", "2", "--rows", "9"]
