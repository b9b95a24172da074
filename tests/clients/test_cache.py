"""The cache of replies: whole lines, torn ends, several threads, several processes, and nothing asked twice."""

import json
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from medtune.clients import cache as cache_module
from medtune.clients.cache import CacheError, ReplyCache, content_key

KEYS = [content_key(number) for number in range(40)]


def reply(text: str = "fine") -> dict[str, str]:
    return {"text": text}


def refuse() -> dict[str, str]:
    raise AssertionError("this was answered before")


def test_a_reply_is_asked_for_once_and_found_by_another_process(tmp_path: Path) -> None:
    path = tmp_path / "new" / "replies.jsonl"
    with ReplyCache(path) as cache:
        assert cache.find(KEYS[0]) is None
        assert cache.find_or_ask(KEYS[0], lambda: reply("ü\u2028x")) == ({"key": KEYS[0], "text": "ü\u2028x"}, True)
        assert cache.find_or_ask(KEYS[0], refuse)[1] is False and len(cache) == 1
    with ReplyCache(path) as cache:
        assert cache.find_or_ask(KEYS[0], refuse)[0]["text"] == "ü\u2028x"
        assert [row["key"] for row in cache.rows()] == [KEYS[0]]
    assert path.read_bytes().count(b"\n") == 1


def test_a_key_is_of_the_content_and_not_of_the_order() -> None:
    assert content_key({"a": 1, "b": [2, "ü"]}) == content_key({"b": [2, "ü"], "a": 1})
    assert content_key({"a": 1}) != content_key({"a": "1"}) and content_key([1, 2]) != content_key([2, 1])


def test_an_error_writes_nothing_and_the_next_may_ask(tmp_path: Path) -> None:
    with ReplyCache(tmp_path / "r.jsonl") as cache:
        with pytest.raises(ValueError, match="no"):
            cache.find_or_ask(KEYS[0], lambda: (_ for _ in ()).throw(ValueError("no")))
        assert (tmp_path / "r.jsonl").read_bytes() == b""
        assert cache.find_or_ask(KEYS[0], reply)[1] is True


@pytest.mark.parametrize("torn", [b"{", b'{"key": "00", "text": "a', "{ü".encode()[:-1], b'{"key": "' + b"0" * 70_000])
def test_a_torn_last_line_is_mended_and_the_lines_before_stay(torn: bytes, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with ReplyCache(path) as cache:
        cache.find_or_ask(KEYS[0], reply)
    with path.open("ab") as file:
        file.write(torn)
    with ReplyCache(path) as cache:
        assert cache.cut == len(torn)
        cache.find_or_ask(KEYS[1], reply)
        with path.open("ab") as file:  # another process dies while this one runs
            file.write(torn)
        cache.find_or_ask(KEYS[2], reply)
    assert [json.loads(line)["key"] for line in path.read_bytes().splitlines()] == KEYS[:3]


@pytest.mark.parametrize(
    "line", [b"[1]\n", b"nothing\n", b'{"key": "zz", "text": ""}\n', b'{"text": ""}\n', b'{"key": "00"}\n']
)
def test_a_line_that_is_no_reply_is_an_error_with_its_place(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with ReplyCache(path) as cache:
        cache.find_or_ask(KEYS[0], reply)
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(line)
    with pytest.raises(CacheError, match=f"the line at byte {size} is no reply"):
        ReplyCache(path)
    with pytest.raises(CacheError, match="is no reply"):  # and the file is free again
        ReplyCache(path)


def test_a_place_that_cannot_be_written_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match="Cannot write .*choose another cache"):
        ReplyCache(tmp_path / "file" / "r.jsonl")


def test_one_process_opens_a_cache_once(tmp_path: Path) -> None:
    with ReplyCache(tmp_path / "r.jsonl"):
        with pytest.raises(CacheError, match="open already in this process"):
            ReplyCache(tmp_path / "r.jsonl")
    ReplyCache(tmp_path / "r.jsonl").close()


def test_threads_that_want_the_same_reply_wait_for_it(tmp_path: Path) -> None:
    asked: Counter[str] = Counter()

    def ask(key: str) -> dict[str, str]:
        asked[key] += 1
        time.sleep(0.01)
        return reply(key)

    with ReplyCache(tmp_path / "r.jsonl") as cache, ThreadPoolExecutor(8) as pool:
        wanted = KEYS[:10] * 4
        found = list(pool.map(lambda key: cache.find_or_ask(key, lambda: ask(key)), wanted))
    assert [row["text"] for row, _ in found] == wanted
    assert set(asked.values()) == {1} and sum(own for _, own in found) == 10


def test_processes_that_want_the_same_replies_share_the_work(tmp_path: Path) -> None:
    path, asked = tmp_path / "r.jsonl", tmp_path / "asked"
    asked.touch()

    def ask(key: str) -> dict[str, str]:
        with asked.open("a") as file:
            file.write(f"{key}\n")
        time.sleep(0.005)
        return reply(key)

    def work() -> None:
        with ReplyCache(path) as cache, ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda key: cache.find_or_ask(key, lambda: ask(key)), KEYS))
        os._exit(0 if [row["text"] for row, _ in found] == KEYS else 1)

    children = [multiprocessing.get_context("fork").Process(target=work) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert Counter(asked.read_text().split()) == Counter(KEYS)
    assert sorted(json.loads(line)["key"] for line in path.read_bytes().splitlines()) == sorted(KEYS)


def test_what_a_killed_process_was_asking_can_be_asked_by_another(tmp_path: Path) -> None:
    path, begun = tmp_path / "r.jsonl", tmp_path / "begun"

    def ask() -> dict[str, str]:
        begun.touch()
        time.sleep(60)
        return reply()

    def work() -> None:
        ReplyCache(path).find_or_ask(KEYS[0], ask)

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    while not begun.exists():
        time.sleep(0.01)
    with ReplyCache(path) as cache:
        threading.Timer(0.2, lambda: os.kill(child.pid or 0, signal.SIGKILL)).start()
        assert cache.find_or_ask(KEYS[0], reply)[1] is True
    assert not child.join(10) and child.exitcode == -signal.SIGKILL


def test_a_reply_is_on_the_disk_before_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(cache_module.os, "fsync", lambda descriptor: flushed.append(os.fstat(descriptor).st_size))
    with ReplyCache(tmp_path / "r.jsonl") as cache:
        for number in range(3):
            cache.find_or_ask(KEYS[number], reply)
            assert flushed[-1] == (tmp_path / "r.jsonl").stat().st_size and len(flushed) == number + 1


def test_a_full_disk_is_an_error_in_words_and_leaves_whole_lines(tmp_path: Path) -> None:
    import resource

    path = tmp_path / "r.jsonl"

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (250, 250))
        try:
            with ReplyCache(path) as cache:
                for key in KEYS[:4]:
                    cache.find_or_ask(key, reply)
        except CacheError as error:
            os._exit(7 if "Make room and give the same command again" in str(error) else 8)
        os._exit(9)

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(30)
    assert child.exitcode == 7
    with ReplyCache(path) as cache:
        assert [row["key"] for row in cache.rows()] == KEYS[:2] and cache.cut > 0
