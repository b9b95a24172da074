"""GREEN: the formula, replies that were read by hand, both readings, the prompt."""

import json
from pathlib import Path

import pytest

from medtune.errors import ConfigError, DataError
from medtune.evaluation.reports.green import EMPTY, GreenCounts, green_score, official_score, read_green, read_prompt

ZERO = "(a) False report: 0.\n(b) Missing: 0.\n(c) Location: 0.\n(d) Severity: 0.\n(e) Comparison: 0.\n(f) Omitted: 0."


def reply(significant: str = ZERO, matched: str = "2. Clear lungs; Normal heart.", insignificant: str = ZERO) -> str:
    return (
        "[Explanation]:\nThe candidate misses one finding.\n\n"
        f"[Clinically Significant Errors]:\n{significant}\n\n"
        f"[Clinically Insignificant Errors]:\n{insignificant}\n\n"
        f"[Matched Findings]:\n{matched}"
    )


def test_the_formula() -> None:
    assert green_score((1, 0, 2, 0, 0, 1), 4) == 4 / (4 + 1 + 2 + 1)
    assert green_score((0,) * 6, 3) == 1.0
    assert green_score((0,) * 6, 0) == green_score((2, 0, 0, 0, 0, 0), 0) == 0.0


@pytest.mark.parametrize(
    ("text", "significant", "matched"),
    [
        (reply(), (0, 0, 0, 0, 0, 0), 2),
        (reply("(a) False report: 1. Effusion.\n(b) Missing: 2. Port; Scar."), (1, 2, 0, 0, 0, 0), 2),
        # Only some categories are listed, and they need not be in order.
        (reply("(f) Omitted: 1. Change.\n(c) Location: 1. Left, not right."), (0, 0, 1, 0, 0, 1), 2),
        (reply("None."), (0,) * 6, 2),
        (reply("No errors.", "No matched findings."), (0,) * 6, 0),
        (reply(matched="0."), (0,) * 6, 0),
        # An error's own text has numbers and colons.
        (reply("(b) Missing: 1. Nodule: 3.5 cm at T9: stable."), (0, 1, 0, 0, 0, 0), 2),
        # The form of GPT-4, for which the package has a second reading.
        (reply("(1) False report: 1. x\n(6) Omitted: 2. y; z"), (1, 0, 0, 0, 0, 2), 2),
        # A category of the insignificant errors does not count.
        (reply(insignificant="(a) False report: 5. a; b; c; d; e"), (0,) * 6, 2),
        (reply(matched="1. No pneumonia.</s>"), (0,) * 6, 1),
    ],
)
def test_replies_are_read_as_by_hand(text: str, significant: tuple[int, ...], matched: int) -> None:
    found = read_green(text)
    assert (found.significant, found.matched, found.reason) == (significant, matched, "")
    assert found.score == found.official == green_score(significant, matched)


@pytest.mark.parametrize(
    ("text", "reason", "official"),
    [
        ("The candidate is fine.", "section_missing", 0.0),
        (reply().replace("[Clinically Significant Errors]", "[Errors]"), "section_missing", 1.0),
        (reply().partition("[Matched Findings]")[0], "section_missing", 0.0),
        (reply(matched="Clear lungs; Normal heart."), "no_count", 0.0),
        (reply(matched="2 findings; 3 others"), None, 0.0),
        (reply("(a) False report: none."), "no_count", 1.0),
        (reply("Some errors."), "no_count", 1.0),
        (reply("(a) False report: 1. x\n(a) False report: 2. y"), "category_twice", 2 / 4),
        (reply("(a) False report: 1. x\n(2) Missing: 2. y"), "category_twice", 2 / 3),
        (reply() + "\n\n[Matched Findings]:\n5. a; b; c; d; e", "section_twice", 1.0),
        (reply(matched="2.5 findings"), "no_count", 1.0),
        (reply(f"(a) False report: {10**250}. x"), "count_too_large", 0.0),
        (reply(matched=f"{10**250}. x"), "count_too_large", 1.0),
        ("", "no_reply", 0.0),
        (None, "no_reply", 0.0),
    ],
)
def test_a_reply_without_clear_counts_has_a_reason_and_no_score(
    text: str | None, reason: str | None, official: float
) -> None:
    found = read_green(text)
    if reason is None:  # "2 findings" is a count to a reader, though not to the package, which wants "2."
        assert found.score == 1.0
    else:
        assert (found.score, found.reason) == (None, reason)
    assert found.official == pytest.approx(official, abs=1e-12)


def test_the_official_reading_has_the_quirks_of_the_package() -> None:
    # A section ends at the first empty line, so the second error is not seen.
    assert official_score(reply("(a) False report: 1. x\n\n(b) Missing: 1. y")) == 2 / 3
    assert read_green(reply("(a) False report: 1. x\n\n(b) Missing: 1. y")).score == 2 / 4
    # A section that begins with "No" has no count, whatever follows.
    assert official_score(reply("Notes\n(a) False report: 3. x")) == 1.0
    # A second explanation cuts the reply off.
    assert official_score(reply() + "\n[Explanation]:\n") == 1.0
    assert official_score("[Explanation]:\n" + reply()) == 0.0


def test_counts_survive_the_prediction_file() -> None:
    for counts in (EMPTY, read_green(reply()), read_green("no")):
        assert GreenCounts.from_dict(json.loads(json.dumps(counts.to_dict())), "row") == counts
    assert EMPTY.score == 0.0


@pytest.mark.parametrize(
    "change",
    [
        {"significant": [0] * 5},
        {"matched": -1},
        {"matched": True},
        {"official": 2.0},
        {"reason": None, "official": "x"},
    ],
)
def test_broken_counts_are_refused(change: dict) -> None:
    with pytest.raises(DataError, match="prediction 'q': meta.green holds no counts"):
        GreenCounts.from_dict({**EMPTY.to_dict(), **change}, "prediction 'q'")
    with pytest.raises(DataError):
        GreenCounts.from_dict(None, "prediction 'q'")


def test_the_prompt_has_the_form_that_the_model_was_trained_on() -> None:
    text = read_prompt().filled("candidate text", "reference text")
    parts = [
        "1. Criteria for Judgment:",
        "2. Reference Report:",
        "3. Candidate Report:",
        "4. Reporting Your Assessment:",
    ]
    sections = [
        "[Explanation]:",
        "[Clinically Significant Errors]:",
        "[Clinically Insignificant Errors]:",
        "[Matched Findings]:",
    ]
    places = [text.index(one) for one in [*parts, *sections]]
    assert places == sorted(places)
    assert text.index("2. Reference Report:\nreference text") < text.index("3. Candidate Report:\ncandidate text")
    assert text.count("<Error 1>; <Error 2>; ...; <Error n>") == 4 and all(
        f"\n{letter}) " in text for letter in "abcdef"
    )


def test_a_prompt_fills_both_places_once_and_cuts_long_reports() -> None:
    prompt = read_prompt(words=3)
    text = prompt.filled("one  two\nthree four", "{candidate} is\tshown as it is")
    assert "one two three\n" in text and "four" not in text and "{candidate} is shown\n" in text


def test_a_prompt_of_your_own(tmp_path: Path) -> None:
    own = tmp_path / "published.txt"
    own.write_text("Compare {reference} with {candidate}.", encoding="utf-8")
    prompt = read_prompt(str(own))
    assert prompt.filled("b", "a") == "Compare a with b." and prompt.version.startswith("published@")
    assert prompt.version != read_prompt().version
    own.write_text("Compare {reference}.", encoding="utf-8")
    with pytest.raises(ConfigError, match="must contain {candidate} once"):
        read_prompt(str(own))
    with pytest.raises(ConfigError, match="there is no prompt 'v9'"):
        read_prompt("v9")
