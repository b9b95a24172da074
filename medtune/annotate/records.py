"""What the store of an annotation holds: its tables, and the records that it takes and gives."""

import hashlib
import json
from dataclasses import dataclass

from medtune.judges.candidates import Candidate

VERSION = 1
SCHEMA = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE items (
  number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, row TEXT NOT NULL, asked INTEGER NOT NULL DEFAULT 1);
CREATE TABLE annotators (
  name TEXT PRIMARY KEY, token TEXT UNIQUE, expires REAL, active INTEGER NOT NULL DEFAULT 1);
CREATE TABLE shares (
  annotator TEXT NOT NULL REFERENCES annotators(name), item INTEGER NOT NULL REFERENCES items(number),
  place INTEGER NOT NULL, later INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (annotator, item)) WITHOUT ROWID;
CREATE INDEX shares_in_order ON shares (annotator, later, place);
CREATE TABLE choices (
  annotator TEXT NOT NULL REFERENCES annotators(name), item INTEGER NOT NULL REFERENCES items(number),
  preference TEXT NOT NULL CHECK (preference IN ('first', 'second', 'both', 'neither')),
  comment TEXT NOT NULL, swapped INTEGER, seconds REAL, event INTEGER NOT NULL REFERENCES events(number),
  PRIMARY KEY (annotator, item)) WITHOUT ROWID;
CREATE TABLE events (
  number INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, annotator TEXT NOT NULL, item INTEGER NOT NULL,
  action TEXT NOT NULL, preference TEXT, comment TEXT);
"""


class ChosenAlready(Exception):
    """This annotator has chosen otherwise for this question, for example in another window."""


@dataclass(frozen=True)
class Choice:
    """One annotator's choice.

    Attributes:
        preference: ``first``, ``second``, ``both`` or ``neither``, in the order of the file.
        comment: Free text.
        swapped: Whether the second answer stood on the left; None if the choice was imported.
        seconds: Time that the question was shown.
    """

    preference: str
    comment: str = ""
    swapped: bool | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Item:
    """A question in the store.

    Attributes:
        number: Its number, for addresses.
        row: The question with its answers.
    """

    number: int
    row: Candidate


def row_json(row: Candidate) -> str:
    """Return a question as it is stored."""
    return json.dumps({**row.to_dict(), "answers": list(row.answers)}, ensure_ascii=False, sort_keys=True)


def hashed(token: str) -> str:
    """Return what is stored of a token; the tokens themselves have 256 random bits, so that no salt is needed."""
    return hashlib.sha256(token.encode()).hexdigest()
