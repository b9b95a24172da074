"""The SQLite file of an annotation: annotators, who has which question, and each choice in its own transaction."""

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medtune.annotate.records import SCHEMA, VERSION, Choice, ChosenAlready, Item, hashed, row_json
from medtune.annotate.shares import Shares
from medtune.errors import DataError
from medtune.judges.candidates import Candidate

_WAIT_SECONDS = 20


class Store:
    """An open file; its methods can be called from any thread.

    A choice is on the disk when its method returns (write-ahead log, ``synchronous=FULL``). A new file can be read by
    its owner only.

    Args:
        path: The file.
        create: Whether to make it if it does not exist.

    Raises:
        DataError: If it does not exist, is no such file, or is of another version.
    """

    def __init__(self, path: str | Path, create: bool = False) -> None:
        self.path = Path(path).expanduser()
        self._lock = threading.Lock()
        if not self.path.exists():
            if not create:
                raise DataError(f"{self.path} does not exist; annotate first, or correct --store.")
            try:
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            except OSError as error:
                raise DataError(f"Cannot create {self.path}: {error.strerror}; choose another --store.") from None
        with self._explained():
            self._db = sqlite3.connect(self.path, timeout=_WAIT_SECONDS, isolation_level=None, check_same_thread=False)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("PRAGMA foreign_keys=ON")
        with self._writing() as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0 and not db.execute("SELECT 1 FROM sqlite_master").fetchone():
                for statement in filter(str.strip, SCHEMA.split(";")):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version={VERSION}")
            elif version != VERSION:
                raise DataError(f"{self.path} is no file of medtune annotate of this version; choose another --store.")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What is annotated, and by whom.

    def prepare(self, rows: Sequence[Candidate], annotators: Iterable[str], shares: Shares) -> None:
        """Bring questions and annotators into the store, and divide the questions.

        The same call again changes nothing. New questions and annotators are added; questions that nobody has chosen
        for are divided anew if annotators or shares have changed. Choices always stay.

        Args:
            rows: The questions; those that the store has in addition are no longer asked.
            annotators: Names, in addition to those that the store has.
            shares: How questions are divided.

        Raises:
            DataError: If a question has changed under its id.
        """
        with self._writing() as db:
            self._add_items(db, rows)
            for name in annotators:
                db.execute("INSERT OR IGNORE INTO annotators (name) VALUES (?)", (name,))
            names = [name for (name,) in db.execute("SELECT name FROM annotators WHERE active ORDER BY name")]
            settings = json.dumps({"annotators": names, **asdict(shares)}, sort_keys=True)
            same = db.execute("SELECT 1 FROM settings WHERE name='shares' AND value=?", (settings,)).fetchone()
            self._divide(db, names, shares, anew=not same)
            db.execute("INSERT OR REPLACE INTO settings VALUES ('shares', ?)", (settings,))

    def _add_items(self, db: sqlite3.Connection, rows: Sequence[Candidate]) -> None:
        db.execute("UPDATE items SET asked=0")
        for row in rows:
            text = row_json(row)
            known = db.execute("SELECT number, row FROM items WHERE id=?", (row.id,)).fetchone()
            if known is None:
                db.execute("INSERT INTO items (id, row) VALUES (?, ?)", (row.id, text))
            elif known["row"] == text:
                db.execute("UPDATE items SET asked=1 WHERE number=?", (known["number"],))
            elif db.execute("SELECT 1 FROM choices WHERE item=?", (known["number"],)).fetchone():
                raise DataError(
                    f"id {row.id!r}: question, answers, image or caption differ from those in {self.path}, for which "
                    "somebody has chosen; give changed questions new ids, or choose another --store."
                )
            else:
                db.execute("UPDATE items SET asked=1, row=? WHERE number=?", (text, known["number"]))

    def _divide(self, db: sqlite3.Connection, names: Sequence[str], shares: Shares, anew: bool) -> None:
        chosen = "SELECT annotator, item FROM choices"
        if anew:
            db.execute(f"DELETE FROM shares WHERE (annotator, item) NOT IN ({chosen})")
        elif not db.execute("SELECT 1 FROM items WHERE asked AND number NOT IN (SELECT item FROM shares)").fetchone():
            return
        numbers = {row["id"]: row["number"] for row in db.execute("SELECT id, number FROM items WHERE asked")}
        kept: dict[str, list[str]] = {}
        for row in db.execute("SELECT id, annotator FROM shares JOIN items ON number=item ORDER BY annotator"):
            kept.setdefault(row["id"], []).append(row["annotator"])
        for item, given in shares.divide(list(numbers), names, kept).items():
            for name in given:
                db.execute(
                    "INSERT OR IGNORE INTO shares (annotator, item, place) VALUES (?, ?, ?)",
                    (name, numbers[item], shares.place(name, item)),
                )

    def set_token(self, annotator: str, token: str, expires: float | None) -> None:
        """Give an annotator a token; an earlier one ends.

        Args:
            annotator: The name.
            token: Only its hash is stored.
            expires: When it ends, in seconds since 1970; None for never.
        """
        with self._writing() as db:
            db.execute("INSERT OR IGNORE INTO annotators (name) VALUES (?)", (annotator,))
            db.execute(
                "UPDATE annotators SET token=?, expires=?, active=1 WHERE name=?", (hashed(token), expires, annotator)
            )

    def annotators(self) -> dict[str, bool]:
        """Return every annotator's name, and whether there is a token."""
        with self._reading() as db:
            found = db.execute("SELECT name, token IS NOT NULL AS known FROM annotators WHERE active ORDER BY name")
            return {row["name"]: bool(row["known"]) for row in found}

    def who(self, token: str) -> tuple[str, bool] | None:
        """Return the annotator of a token, and whether the token has ended; None for an unknown token."""
        with self._reading() as db:
            row = db.execute("SELECT name, expires FROM annotators WHERE token=?", (hashed(token),)).fetchone()
        if row is None:
            return None
        return row["name"], row["expires"] is not None and row["expires"] <= time.time()

    # One annotator's work.

    def next(self, annotator: str) -> Item | None:
        """Return the question that an annotator has now; None if all are done."""
        with self._reading() as db:
            return self._next(db, annotator)

    def item(self, annotator: str, number: int) -> Item | None:
        """Return a question of an annotator; None if it is not one of this annotator's."""
        with self._reading() as db:
            row = db.execute(
                "SELECT number, row FROM items JOIN shares ON item=number WHERE annotator=? AND number=?",
                (annotator, number),
            ).fetchone()
            return None if row is None else _item(row)

    def progress(self, annotator: str) -> tuple[int, int]:
        """Return how many questions are done, and how many there are."""
        with self._reading() as db:
            done, total = db.execute(
                "SELECT COUNT(preference), COUNT(*) FROM shares JOIN items ON number=shares.item LEFT JOIN choices "
                "ON choices.item=shares.item AND choices.annotator=shares.annotator "
                "WHERE shares.annotator=? AND (asked OR preference IS NOT NULL)",
                (annotator,),
            ).fetchone()
            return done, total

    def choose(self, annotator: str, number: int, choice: Choice) -> None:
        """Store a choice. The same choice again, as after a lost reply, changes nothing.

        Raises:
            ChosenAlready: If this annotator has chosen otherwise and has not undone it.
        """
        with self._writing() as db:
            self._choose(db, annotator, number, choice)

    def _choose(self, db: sqlite3.Connection, annotator: str, number: int, choice: Choice) -> None:
        known = db.execute(
            "SELECT preference, comment FROM choices WHERE annotator=? AND item=?", (annotator, number)
        ).fetchone()
        if known is not None:
            if (known["preference"], known["comment"]) == (choice.preference, choice.comment):
                return
            raise ChosenAlready
        event = _event(db, annotator, number, "choose", choice.preference, choice.comment)
        db.execute(
            "INSERT INTO choices VALUES (?, ?, ?, ?, ?, ?, ?)",
            (annotator, number, choice.preference, choice.comment, choice.swapped, choice.seconds, event),
        )

    def undo(self, annotator: str) -> tuple[Item, Choice] | None:
        """Take an annotator's latest choice back; its question is the next one again.

        Returns:
            The question and what was chosen; None if there is nothing to undo.
        """
        with self._writing() as db:
            row = db.execute(
                "SELECT number, row, preference, comment, swapped, seconds FROM choices JOIN items ON number=item "
                "WHERE annotator=? AND asked AND swapped IS NOT NULL ORDER BY event DESC LIMIT 1",
                (annotator,),
            ).fetchone()
            if row is None:
                return None
            db.execute("DELETE FROM choices WHERE annotator=? AND item=?", (annotator, row["number"]))
            first = db.execute("SELECT MIN(later) - 1 FROM shares WHERE annotator=?", (annotator,)).fetchone()[0]
            db.execute(
                "UPDATE shares SET later=? WHERE annotator=? AND item=?", (min(first, -1), annotator, row["number"])
            )
            _event(db, annotator, row["number"], "undo", row["preference"], row["comment"])
            return _item(row), Choice(row["preference"], row["comment"], bool(row["swapped"]), row["seconds"])

    def postpone(self, annotator: str, number: int) -> None:
        """Put a question at the end of an annotator's."""
        with self._writing() as db:
            last = db.execute("SELECT MAX(later) + 1 FROM shares WHERE annotator=?", (annotator,)).fetchone()[0]
            db.execute("UPDATE shares SET later=? WHERE annotator=? AND item=?", (max(last or 1, 1), annotator, number))
            _event(db, annotator, number, "later", None, None)

    # All choices.

    def choices(self) -> list[tuple[Candidate, str, Choice]]:
        """Return every choice with its question and annotator, in the order of the questions."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT row, annotator, preference, comment, swapped, seconds FROM choices JOIN items ON number=item "
                "ORDER BY number, annotator"
            ).fetchall()
        return [
            (
                Candidate.from_dict(json.loads(row["row"]), "store"),
                row["annotator"],
                Choice(row["preference"], row["comment"], row["swapped"], row["seconds"]),
            )
            for row in rows
        ]

    def items(self) -> list[Item]:
        """Return every question that is asked."""
        with self._reading() as db:
            return [_item(row) for row in db.execute("SELECT number, row FROM items WHERE asked ORDER BY number")]

    def take(self, choices: Iterable[tuple[str, str, Choice, str]]) -> int:
        """Store choices that were made elsewhere, all or none.

        Args:
            choices: Item, annotator, choice, and file and row for errors.

        Returns:
            How many there were.

        Raises:
            DataError: Naming the row: its question is unknown, or the annotator has chosen otherwise.
        """
        count = 0
        with self._writing() as db:
            for item, annotator, choice, where in choices:
                row = db.execute("SELECT number FROM items WHERE id=?", (item,)).fetchone()
                if row is None:
                    raise DataError(f"{where}: the id {item!r} is not among the questions; import into their store.")
                db.execute("INSERT OR IGNORE INTO annotators (name) VALUES (?)", (annotator,))
                db.execute(
                    "INSERT OR IGNORE INTO shares (annotator, item, place) VALUES (?, ?, 0)", (annotator, row["number"])
                )
                try:
                    self._choose(db, annotator, row["number"], choice)
                except ChosenAlready:
                    raise DataError(
                        f"{where} (id {item!r}): another choice of this annotator is in the store; remove one."
                    ) from None
                count += 1
        return count

    @staticmethod
    def _next(db: sqlite3.Connection, annotator: str) -> Item | None:
        row = db.execute(
            "SELECT number, row FROM shares JOIN items ON number=item WHERE annotator=? AND asked AND NOT EXISTS "
            "(SELECT 1 FROM choices WHERE choices.annotator=shares.annotator AND choices.item=shares.item) "
            "ORDER BY later, place LIMIT 1",
            (annotator,),
        ).fetchone()
        return None if row is None else _item(row)

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._explained():
            yield self._db

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise DataError(
                f"The store {self.path} cannot be used ({error}); free the disk or the file, or choose another --store."
            ) from error


def _event(
    db: sqlite3.Connection, annotator: str, number: int, action: str, preference: str | None, comment: str | None
) -> int:
    added = db.execute(
        "INSERT INTO events (at, annotator, item, action, preference, comment) VALUES (?, ?, ?, ?, ?, ?)",
        (time.time(), annotator, number, action, preference, comment),
    )
    return int(added.lastrowid or 0)


def _item(row: Mapping[str, Any] | sqlite3.Row) -> Item:
    return Item(row["number"], Candidate.from_dict(json.loads(row["row"]), "store"))
