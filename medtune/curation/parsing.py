"""Reads a generated conversation strictly, or says by name why it cannot. Nothing is guessed or mended.

A question begins a line with ``User:``, an answer with ``Assistant:`` (``Assistant 1:`` and ``Assistant 2:`` where two
are asked for); a line without such a beginning continues the turn. Bold marks around the beginning, and one fence
around the whole reply, are accepted.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from medtune.data.sample import IMAGE_TAG

REASONS = {
    "declined": "the model, or a filter of the server, declined to answer",
    "rejected": "the server rejected the request",
    "empty": "the reply is empty",
    "cut_off": "the reply reached its maximum length, so that its last turn is not whole",
    "prose": "the reply has no line that begins with User:",
    "text_before": "there is text before the first question",
    "order": "questions and answers do not alternate as asked",
    "unanswered": "the last question has no answer",
    "empty_turn": "a question or an answer is empty",
    "tag": "a turn contains the tag that marks an image",
    "too_few_turns": "there are fewer questions than min_turns",
}
"""Why a reply is kept aside."""
_THOUGHTS = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_FENCE = re.compile(r"\A```\w*\s*\n(.*)\n```\Z", re.DOTALL)
_LINE = re.compile(r"[*_]{0,2}(User|Assistant)(?: ?([12]))?[*_]{0,2}:[*_]{0,2}[ \t]*(.*)")


@dataclass(frozen=True)
class Turn:
    """A question with its answers.

    Attributes:
        question: The question.
        answers: One or two.
    """

    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class ReadConversation:
    """What a reply holds.

    Attributes:
        turns: Its turns; empty if it cannot be read.
        reason: Key of :data:`REASONS`; empty if it was read.
    """

    turns: tuple[Turn, ...]
    reason: str = ""


def read_conversation(text: str, answers: int = 1, finish_reason: str = "stop", min_turns: int = 1) -> ReadConversation:
    """Read a reply.

    Args:
        text: The reply.
        answers: Answers to each question, 1 or 2.
        finish_reason: Why the reply ended; ``length`` if it reached its maximum length.
        min_turns: Least number of questions.
    """
    plain = _THOUGHTS.sub("", text).replace("\r\n", "\n").strip()
    fenced = _FENCE.fullmatch(plain)
    plain = fenced[1].strip() if fenced else plain
    if finish_reason == "content_filter":
        return ReadConversation((), "declined")
    if not plain:
        return ReadConversation((), "cut_off" if finish_reason == "length" else "empty")
    if finish_reason == "length":
        return ReadConversation((), "cut_off")
    spoken = _spoken(plain)
    if isinstance(spoken, str):
        return ReadConversation((), spoken)
    expected = ["User", "Assistant"] if answers == 1 else ["User", "Assistant 1", "Assistant 2"]
    who = [speaker for speaker, _ in spoken]
    if who != (expected * len(who))[: len(who)]:
        return ReadConversation((), "order")
    if len(who) % len(expected):
        return ReadConversation((), "unanswered")
    said = [words for _, words in spoken]
    if not all(said):
        return ReadConversation((), "empty_turn")
    if any(IMAGE_TAG in words for words in said):
        return ReadConversation((), "tag")
    size = len(expected)
    turns = tuple(Turn(said[at], tuple(said[at + 1 : at + size])) for at in range(0, len(said), size))
    return ReadConversation(turns) if len(turns) >= min_turns else ReadConversation((), "too_few_turns")


def _spoken(plain: str) -> list[tuple[str, str]] | str:
    """Return who says what, or the reason why that cannot be told."""
    found: list[tuple[str, list[str]]] = []
    before = False
    for line in plain.split("\n"):
        match = _LINE.fullmatch(line.strip())
        if match and not (match[1] == "User" and match[2]):
            found.append((f"{match[1]} {match[2]}" if match[2] else match[1], [match[3]]))
        elif found:
            found[-1][1].append(line.rstrip())
        else:
            before = before or bool(line.strip())
    if not any(speaker == "User" for speaker, _ in found):
        return "prose"
    if before:
        return "text_before"
    return [(speaker, "\n".join(lines).strip()) for speaker, lines in found]


def written(turns: Sequence[Turn]) -> str:
    """Return turns as a reply that :func:`read_conversation` reads."""
    lines = []
    for turn in turns:
        lines.append(f"User: {turn.question}")
        marks = [""] if len(turn.answers) == 1 else [" 1", " 2"]
        lines += [f"Assistant{mark}: {answer}" for mark, answer in zip(marks, turn.answers, strict=True)]
    return "\n".join(lines)
