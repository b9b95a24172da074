"""The judge's recipe under faults, kills, full disks and beside another run: nothing lost, nothing asked twice."""

import multiprocessing
import os
import resource
import signal
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from medtune.judges import judging
from tests.judges.candidate_files import judge, manifest_of, rows_of, served, write_candidates
from tests.judges.judge_server import FAULTS, serve
from tests.recipes.processes import ended, forked


def test_a_fifth_of_all_calls_fails_and_every_candidate_is_asked_once(tmp_path: Path) -> None:
    write_candidates(tmp_path, 40)
    with serve(faults=0.2, foreign=0.1, hang=4) as server:
        assert judge(*served(tmp_path, server.url, "server.timeout=2", "server.concurrency=8")) == 0
    assert set(server.asked.values()) == {1} and len(server.asked) == 80
    assert set(server.failed) == set(FAULTS)
    manifest = manifest_of(tmp_path)
    counts = manifest["counts"]
    assert counts["unread"]["other_language"] > 0 and set(counts["unread"]) == {"other_language"}
    assert counts["pairs"] + counts["unread"]["other_language"] == counts["judged"] == 40
    assert sum(manifest["replies"]["failed_attempts"].values()) == server.failed.total()
    assert manifest["replies"]["asked"] == 80


def test_three_kills_lose_nothing_and_repeat_no_call_that_was_answered(tmp_path: Path) -> None:
    write_candidates(tmp_path, 30, images=False)
    repeated: list[str] = []
    state = {"child": None, "kill_at": 0}

    def on_request(number: int) -> None:
        if number == state["kill_at"]:
            state["child"].kill()

    with serve(faults=0.2, hang=4, on_request=on_request) as server:
        words = served(tmp_path, server.url, "judge.prompt=pair_text-v1", "server.timeout=2", "image_root=null")
        for more in (9, 14, 11, None):
            known = len(rows_of_whole(tmp_path / "out/replies.jsonl"))
            before = Counter(server.asked)
            state["kill_at"] = len(server.bodies) + more if more else -1
            state["child"] = child = judging_process(words)
            assert ended(child) == (0 if more is None else -signal.SIGKILL)
            again = Counter({key: n for key, n in server.asked.items() if before[key] and n > before[key]})
            # What was answered and had not reached the disk when the process died, at most one call per thread.
            assert sum(before.values()) - known <= 4 * 3 and len(again) <= 4
            repeated += [question for question, _ in again]
    replies = rows_of(tmp_path / "out/replies.jsonl")
    assert len({row["key"] for row in replies}) == len(replies) == 60 == len(server.asked)
    assert max(server.asked.values()) <= 2
    manifest = manifest_of(tmp_path)
    assert manifest["complete"] and manifest["counts"]["pairs"] == 30
    assert manifest["replies"]["asked"] == 60 and manifest["replies"]["prompt_tokens"] == 6000
    ids = [row["id"] for row in rows_of(tmp_path / "out/judgements.jsonl")]
    assert sorted(ids) == sorted(f"q{number}" for number in range(30))


def rows_of_whole(path: Path) -> list[bytes]:
    """The whole lines of a file that a kill may have torn."""
    return [line for line in path.read_bytes().splitlines(True) if line.endswith(b"\n")] if path.is_file() else []


def test_a_reply_on_the_disk_is_never_asked_again(tmp_path: Path) -> None:
    """The process dies between the cache and the log of judgements, at every reply in turn."""
    write_candidates(tmp_path, 4)
    with serve() as server:
        words = served(tmp_path, server.url, "server.concurrency=1")
        for _ in range(3):
            assert ended(judging_process(words, dying=True)) == -signal.SIGKILL
            # The reading ahead of in_order asks for the other candidates too; all of it is kept.
        assert judge(*words) == 0
        # what is on its way when the process dies has no reply on the disk: at most one request for each death
        repeated = sum(server.asked.values()) - 8
        assert len(server.asked) == 8 and set(server.asked.values()) <= {1, 2} and repeated <= 3
        assert manifest_of(tmp_path)["replies"]["asked"] == 8 and manifest_of(tmp_path)["replies"]["from_cache"] == 0
        assert judge(*words) == 0 and len(server.bodies) == 8 + repeated


def judging_process(words: list[str], dying: bool = False) -> BaseProcess:
    """Start the recipe in a process of its own; a dying one kills itself before the first judgement is written."""

    def run() -> int:
        if dying:
            judging.JudgementLog.append = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        return judge(*words)

    return forked(run)


def test_two_runs_at_once_share_a_cache_and_ask_everything_once(tmp_path: Path) -> None:
    write_candidates(tmp_path, 16)
    shared = f"cache={tmp_path / 'shared.jsonl'}"
    with serve(delay=0.02) as server:
        runs = [judging_process(served(tmp_path, server.url, shared, out=out)) for out in ("a", "b")]
        assert [ended(run) for run in runs] == [0, 0]
    assert set(server.asked.values()) == {1} and len(server.asked) == 32
    a, b = manifest_of(tmp_path, "a")["replies"], manifest_of(tmp_path, "b")["replies"]
    assert a["asked"] + b["asked"] == 32 and a["asked"] + a["from_cache"] == 32 == b["asked"] + b["from_cache"]
    assert rows_of(tmp_path / "a/pairs.jsonl") == rows_of(tmp_path / "b/pairs.jsonl")


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_candidates(tmp_path, 1)
    (tmp_path / "out").mkdir()
    with serve() as server, judging.JudgementLog(tmp_path / "out/judgements.jsonl"):
        assert judge(*served(tmp_path, server.url)) == 2
    assert "is being written by another run" in capsys.readouterr().err and not server.bodies


def test_a_full_disk_stops_the_run_even_where_candidates_may_be_skipped(tmp_path: Path) -> None:
    write_candidates(tmp_path, 8)

    def run(words: list[str]) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1200, 1200))
        os._exit(judge(*words))

    with serve() as server:
        words = served(tmp_path, server.url, "on_error=skip", "server.concurrency=1")
        child = multiprocessing.get_context("fork").Process(target=run, args=(words,))
        child.start()
        assert ended(child) == 2
        assert (
            not (tmp_path / "out/pairs.jsonl").exists() and 0 < len(rows_of_whole(tmp_path / "out/replies.jsonl")) < 16
        )
        assert judge(*words) == 0
    assert manifest_of(tmp_path)["counts"] == {
        "judged": 8, "pairs": 8, "ties": 0, "unread": {}, "dropped": {}, "skipped": 0,
    }  # fmt: skip


def test_a_finished_run_is_left_as_it_is_and_a_torn_judgement_is_made_again(tmp_path: Path) -> None:
    write_candidates(tmp_path, 4)
    log = tmp_path / "out/judgements.jsonl"
    with serve() as server:
        words = served(tmp_path, server.url)
        assert judge(*words) == 0
        before = log.read_bytes()
        assert judge(*words) == 0 and log.read_bytes() == before
        log.write_bytes(before[:-20])
        assert judge(*words) == 0 and log.read_bytes() == before
        log.write_bytes(before + b'{"id": "q0"}\n')
        assert judge(*words) == 2
    assert len(server.bodies) == 8


def test_an_interrupted_run_says_so_and_goes_on(tmp_path: Path) -> None:
    write_candidates(tmp_path, 12)
    state: dict[str, int] = {}

    def on_request(number: int) -> None:
        if number == 6:
            os.kill(state["pid"], signal.SIGINT)
        if number > 6:
            time.sleep(0.3)  # so that a busy machine sees the signal before the run is over

    with serve(on_request=on_request, delay=0.05) as server:
        words = served(tmp_path, server.url)
        child = judging_process(words)
        state["pid"] = child.pid or 0
        assert ended(child) == 130
        assert not manifest_of(tmp_path)["complete"]
        assert judge(*words) == 0
    assert set(server.asked.values()) == {1} and len(server.asked) == 24
    assert manifest_of(tmp_path)["complete"] and manifest_of(tmp_path)["replies"]["asked"] == 24
