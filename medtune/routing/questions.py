"""Checks of what a router is asked: its labels and the questions."""

from collections.abc import Iterable, Sequence

from medtune.errors import ConfigError, DataError


def check_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Return the labels of a router.

    Raises:
        ConfigError: if there are fewer than two, one is empty, or one occurs twice.
    """
    names = tuple(labels)
    blank = any(not isinstance(name, str) or not name.strip() for name in names)
    if len(names) < 2 or blank or len(set(names)) < len(names):
        raise ConfigError(f"a router needs two or more different names of tasks as labels, not {list(names)}")
    return names


def check_questions(questions: Sequence[str]) -> list[str]:
    """Return the questions as a list.

    Raises:
        DataError: if one is empty or no text; the message has its number, not its text.
    """
    if isinstance(questions, str):
        raise DataError("a router takes a list of questions, not one text; put it into a list")
    for number, question in enumerate(questions, start=1):
        if not isinstance(question, str) or not question.strip():
            raise DataError(
                f"question {number} of {len(questions)} is empty, so it has no task; leave it out or give it a text"
            )
    return list(questions)


def require_tasks(labels: Sequence[str], tasks: Iterable[str], where: str = "router") -> None:
    """Refuse a router that cannot tell a task that it is asked for.

    Args:
        labels: the router's labels.
        tasks: the tasks that are needed, for example those with an adapter.
        where: config key or file, for the message.

    Raises:
        ConfigError: naming the tasks that it lacks and those that it knows.
    """
    missing = sorted(set(tasks) - set(labels))
    if missing:
        raise ConfigError(
            f"{where}: the router does not know the task {', '.join(map(repr, missing))}; it was trained on "
            f"{', '.join(labels)}. Train it with questions of every task, or leave the task out"
        )
