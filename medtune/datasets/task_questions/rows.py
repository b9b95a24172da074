"""Question-task pairs: from files, from other data sets, from templates, and texts of no task."""

import glob
import json
import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from medtune.config import PACKAGE
from medtune.data.json_text import decode_json
from medtune.data.opening import open_regular
from medtune.data.randomness import sample_rng
from medtune.data.sample import IMAGE_TAG, last_question
from medtune.data.source import SampleSource, place
from medtune.datasets.flare.task_types import task_type
from medtune.errors import ConfigError, DataError

NO_TASK = "none"
"""The task of a text that asks for none of the tasks."""
KINDS = ("letters", "words", "symbols", "everyday", "medical")
"""Texts of no task: made-up words, common words in random order, digits and signs, and written ones."""
_ASSETS = PACKAGE / "assets" / "task_questions"
_WORDS = (
    "table river green seven walk under often paper music yellow quickly stone garden winter happy bottle seldom "
    "bridge lamp travel orange window slow market early cloud pencil honest kitchen north forest simple train coffee "
    "between mountain silver chair learn quiet letter spring basket"
).split()


class Pair(NamedTuple):
    """A question and its task.

    Attributes:
        id: where it comes from.
        text: the question.
        task: its task, or :data:`NO_TASK`.
        group: texts of one group are never divided between splits.
        origin: ``real``, ``template``, or the kind of a text of no task.
    """

    id: str
    text: str
    task: str
    group: str
    origin: str


def wording(text: str) -> str:
    """A text without what does not change its wording: capitals, kinds of spaces, tags of images."""
    return " ".join(text.replace(IMAGE_TAG, " ").casefold().split())


def task_name(value: object, known: Sequence[str], where: str) -> str:
    """The name of a task as a router has it; the spellings of FLARE's task types are understood.

    Raises:
        DataError: for an unknown task; the message names file, row and the known tasks.
    """
    if isinstance(value, str) and value.strip() in (NO_TASK, *known):
        return value.strip()
    try:
        name = task_type(value, where)
    except DataError:
        name = ""
    if name not in known:
        raise DataError(
            f"{where}: the task is unknown; known are {', '.join(known)} and {NO_TASK!r}. Correct the row, or add the "
            "task to `tasks`"
        )
    return name


def from_files(patterns: Sequence[str], known: Sequence[str]) -> Iterator[Pair]:
    """Read question-task rows of JSON files (a row a line, or one array).

    A row has ``question`` and ``task``, or ``Question`` and ``TaskType`` as FLARE's files; other keys are not read.

    Args:
        patterns: paths; ``*`` stands for any text, as in a shell.
        known: names of the tasks.

    Raises:
        DataError: if no file matches, or a row has no text or an unknown task.
    """
    for pattern in patterns:
        paths = sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))
        if not paths:
            raise DataError(f"The data file {pattern} does not exist; correct the path of the questions.")
        for path in map(Path, paths):
            for where, row in _rows(path):
                text = _value(row, ("question", "Question"), where)
                task = task_name(_value(row, ("task", "TaskType"), where), known, where)
                yield _real(where.replace(", row ", ":"), text, task, where)


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        with open_regular(path) as file:
            data = file.read()
    except DataError as error:
        raise DataError(f"{path} {error}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
        rows: list[Any] = decode_json(data, str(path))
    else:
        lines = [(number, line) for number, line in enumerate(data.splitlines(), start=1) if line.strip()]
        rows = [decode_json(line, f"{path.name}, row {number}") for number, line in lines]
    for number, row in enumerate(rows, start=1):
        where = f"{path.name}, row {number}"
        if not isinstance(row, dict):
            raise DataError(f"{where}: a row must be a JSON object with a question and a task.")
        yield where, row


def _value(row: Mapping[str, Any], names: Sequence[str], where: str) -> Any:
    found = [name for name in names if name in row]
    if len(found) != 1:
        raise DataError(f"{where}: a row needs {' or '.join(map(repr, names))}, one of the two.")
    return row[found[0]]


def _real(id: str, text: Any, task: str, where: str) -> Pair:
    if not isinstance(text, str) or not wording(text):
        raise DataError(f"{where}: the question is empty, so it has no task; remove the row or write the question.")
    return Pair(id, text.strip(), task, f"{task}:{wording(text)}", "real")


def from_source(source: SampleSource, known: Sequence[str]) -> Iterator[Pair]:
    """Read the last user turn of each sample of a data set, and ``meta["task"]``."""
    for index in range(len(source)):
        sample = source[index]
        where = place(source, sample)
        yield _real(sample.id, last_question(sample), task_name(sample.meta.get("task"), known, where), where)


def from_templates(tasks: Sequence[str], fills: int, seed: int) -> Iterator[Pair]:
    """Fill the packaged templates of some tasks; all texts of one template are one group.

    Args:
        tasks: names of FLARE's tasks.
        fills: different texts of each template, at most; a template without gaps gives one.
        seed: decides what fills the gaps.

    Raises:
        ConfigError: for a task without templates.
    """
    content = read_asset("templates.json")
    for task in tasks:
        if task not in content["tasks"]:
            raise ConfigError(
                f"templates: there are none of the task {task!r}; known are {', '.join(content['tasks'])}"
            )
        for number, template in enumerate(content["tasks"][task]):
            names = [name for _, name, _, _ in string.Formatter().parse(template) if name]
            texts: dict[str, None] = {}
            for draw in range(4 * fills):
                rng = sample_rng(seed, draw, number, f"templates {task}")
                texts[template.format(**{name: rng.choice(content["slots"][name]) for name in names})] = None
            for at, text in enumerate(list(texts)[:fills]):
                group = f"{task}:template {number}"
                yield Pair(f"template/{task}/{number}/{at}", text, task, group, "template")


def no_task_texts(kinds: Sequence[str], made_up: int, seed: int) -> Iterator[Pair]:
    """Texts that ask for no task.

    Args:
        kinds: of :data:`KINDS`.
        made_up: texts of each kind that is made up by the seed.
        seed: decides these texts.

    Raises:
        ConfigError: for an unknown kind.
    """
    written = read_asset("no_task.json")
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"no_task: there is no kind {kind!r}; known are {', '.join(KINDS)}")
        for number in range(made_up if kind not in written else len(written[kind])):
            text = written[kind][number] if kind in written else _made_up(kind, number, seed)
            yield Pair(f"no_task/{kind}/{number}", text, NO_TASK, f"{NO_TASK}:{kind} {number}", kind)


def _made_up(kind: str, number: int, seed: int) -> str:
    rng = sample_rng(seed, 0, number, f"no task {kind}")
    length = rng.randint(1, 9)
    if kind == "words":
        return " ".join(rng.choices(_WORDS, k=length))
    signs = string.ascii_lowercase if kind == "letters" else string.digits + "#%&*+=/<>@~^|"
    return " ".join("".join(rng.choices(signs, k=rng.randint(2, 8))) for _ in range(length))


def read_asset(name: str) -> dict[str, Any]:
    """A packaged file of texts."""
    return json.loads((_ASSETS / name).read_text(encoding="utf-8"))
