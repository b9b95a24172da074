"""Shares, orders and choices in the SQLite file."""

import sqlite3
import stat
import threading
from pathlib import Path

import pytest

from medtune.annotate.records import Choice, ChosenAlready
from medtune.annotate.shares import Shares
from medtune.annotate.store import Store
from medtune.errors import ConfigError, DataError
from tests.annotate.running import candidates


def opened(folder: Path, count: int = 20, names: tuple[str, ...] = ("a", "b", "c"), **shares: float) -> Store:
    store = Store(folder / "s.sqlite", create=True)
    store.prepare(candidates(count), names, Shares(**shares))  # type: ignore[arg-type]
    return store


def work(store: Store, name: str) -> list[str]:
    """Answer everything, and return the ids in their order."""
    done = []
    while (item := store.next(name)) is not None:
        store.choose(name, item.number, Choice("first", swapped=False))
        done.append(item.row.id)
    return done


def test_exactly_the_share_goes_to_all_and_the_rest_to_one_each_in_equal_parts(tmp_path: Path) -> None:
    with opened(tmp_path, 40, overlap=0.25) as store:
        seen = {name: work(store, name) for name in "abc"}
    counts = {id: sum(id in ids for ids in seen.values()) for id in (f"q{n}" for n in range(40))}
    assert sorted(counts.values()) == [1] * 30 + [3] * 10
    assert [len(ids) for ids in seen.values()] == [20, 20, 20]
    assert seen["a"] != sorted(seen["a"], key=lambda id: int(id[1:]))


def test_raters_limits_who_shares_a_question(tmp_path: Path) -> None:
    with opened(tmp_path, 30, overlap=1.0, raters=2) as store:
        assert sorted(store.progress(name)[1] for name in "abc") == [20, 20, 20]


def test_orders_and_sides_differ_between_annotators_and_follow_the_seed() -> None:
    ids = [f"q{n}" for n in range(400)]
    sides = {name: [Shares().swapped(name, id) for id in ids] for name in "ab"}
    assert all(160 < sum(drawn) < 240 for drawn in sides.values())
    assert 160 < sum(one != other for one, other in zip(*sides.values(), strict=True)) < 240
    assert sides["a"] == [Shares().swapped("a", id) for id in ids]
    assert sides["a"] != [Shares(seed=1).swapped("a", id) for id in ids]


def test_the_same_command_again_changes_nothing_and_a_new_annotator_takes_open_questions(tmp_path: Path) -> None:
    with opened(tmp_path, 30, ("a", "b"), overlap=0.0) as store:
        first = store.next("a")
        assert first is not None
        store.choose("a", first.number, Choice("both", swapped=True))
        before = [store.progress(name) for name in "ab"]
        store.prepare(candidates(30), ["b"], Shares(overlap=0.0))
        assert [store.progress(name) for name in "ab"] == before == [(1, 15), (0, 15)]
        store.prepare(candidates(31), ["c"], Shares(overlap=0.0))
        assert sum(store.progress(name)[1] for name in "abc") == 31
        assert store.progress("a") == (1, 11) and store.progress("c") == (0, 10)
        assert [choice.preference for _, _, choice in store.choices()] == ["both"]


def test_undo_brings_the_question_back_step_by_step_with_its_comment(tmp_path: Path) -> None:
    with opened(tmp_path, 5, ("a",)) as store:
        ids = []
        for number, preference in enumerate(("first", "second", "neither")):
            item = store.next("a")
            assert item is not None
            ids.append(item.row.id)
            store.choose("a", item.number, Choice(preference, f"comment {number}", swapped=False))
        for id, preference, number in ((ids[2], "neither", 2), (ids[1], "second", 1)):
            undone = store.undo("a")
            assert undone is not None
            assert (undone[0].row.id, undone[1].preference, undone[1].comment) == (id, preference, f"comment {number}")
            now = store.next("a")
            assert now is not None and now.row.id == id
        assert store.progress("a") == (1, 5)
        assert store.undo("a") is not None and store.undo("a") is None


def test_later_puts_a_question_behind_all_others(tmp_path: Path) -> None:
    with opened(tmp_path, 4, ("a",)) as store:
        first = store.next("a")
        assert first is not None
        store.postpone("a", first.number)
        assert work(store, "a")[-1] == first.row.id


def test_a_choice_twice_is_one_and_another_one_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path, 2, ("a",)) as store:
        store.choose("a", 1, Choice("first", "x", swapped=False))
        store.choose("a", 1, Choice("first", "x", swapped=False))
        with pytest.raises(ChosenAlready):
            store.choose("a", 1, Choice("second", swapped=False))
        assert len(store.choices()) == 1
        events = sqlite3.connect(store.path).execute("SELECT action, preference FROM events").fetchall()
        assert events == [("choose", "first")]


def test_twenty_threads_that_choose_at_once_lose_nothing_and_one_question_has_one_choice_per_person(
    tmp_path: Path,
) -> None:
    names = tuple("abcde")
    refused: list[str] = []
    with opened(tmp_path, 12, names, overlap=1.0) as store:

        def press(name: str, preference: str) -> None:
            for number in range(1, 13):
                try:
                    store.choose(name, number, Choice(preference, swapped=False))
                except ChosenAlready:
                    refused.append(name)

        options = ("first", "second", "both", "neither")
        threads = [threading.Thread(target=press, args=(name, one)) for name in names for one in options]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(store.choices()) == 60 and len(refused) == 180


def test_a_question_that_changed_after_a_choice_is_refused_and_one_without_is_replaced(tmp_path: Path) -> None:
    with opened(tmp_path, 3, ("a",)) as store:
        changed = [*candidates(2), *candidates(3, images=True)[2:]]
        store.prepare(changed, [], Shares())
        store.choose("a", 3, Choice("first", swapped=False))
        with pytest.raises(DataError, match=r"id 'q2': question, answers, image or caption differ .* new ids"):
            store.prepare(candidates(3), [], Shares())
        store.prepare(candidates(2), [], Shares())  # q2 is no longer asked; its choice stays
        assert [row.id for row, _, _ in store.choices()] == ["q2"] and store.progress("a") == (1, 3)


def test_a_token_is_stored_as_its_hash_and_ends(tmp_path: Path) -> None:
    with opened(tmp_path, 2, ("a", "b")) as store:
        store.set_token("a", "secret-a", None)
        store.set_token("b", "secret-b", 1.0)
        assert store.who("secret-a") == ("a", False) and store.who("secret-b") == ("b", True)
        assert store.who("other") is None
        store.set_token("a", "newer", None)
        assert store.who("secret-a") is None
        assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    assert b"secret" not in store.path.read_bytes()


def test_files_that_are_no_store_are_named(tmp_path: Path) -> None:
    other = tmp_path / "other.sqlite"
    other.write_text("no database, but a text that is long enough to be looked at " * 20)
    with pytest.raises(DataError, match="cannot be used"):
        Store(other)
    with sqlite3.connect(tmp_path / "foreign.sqlite") as db:
        db.execute("CREATE TABLE x (y)")
    db.close()
    with pytest.raises(DataError, match="no file of medtune annotate"):
        Store(tmp_path / "foreign.sqlite")
    with pytest.raises(DataError, match="does not exist"):
        Store(tmp_path / "none.sqlite")


@pytest.mark.parametrize("wrong", [{"overlap": 1.5}, {"overlap": float("nan")}, {"raters": 1}, {"raters": -1}])
def test_shares_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Shares(**wrong)  # type: ignore[arg-type]
