"""Verdicts in replies: what is read, and everything else by its name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medtune.judges.parsing import REASONS
from medtune.judges.verdicts import POINTS, read_verdict

A, B, TIE = (1.0, 0.0), (0.0, 1.0), (0.5, 0.5)


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("[[A]]", A),
        ("[[B]]\nThe second one names the lesion.", B),
        ("  **[[C]]**\n\nBoth are right.", TIE),
        ("[[A]] because it is right.", A),
        ('"[[A]]"', A),
        ("The first is wrong.\n[[B]]", B),
        ("Long reasons.\n\nMy final verdict is: [[A]].", A),
        ("Reasons.\n**Verdict: [[C]]**", TIE),
        ("Therefore, [[B]]", B),
        ("<think>[[A]] or [[B]]?</think>\n[[B]]", B),
        ("［［A］］", A),
        ('{"verdict": "A"}', A),
        ('```json\n{"verdict": "[[C]]"}\n```', TIE),
        ("[[A]]\n[[A]]", A),
    ],
)
def test_a_verdict_is_read(text: str, points: tuple[float, float]) -> None:
    assert read_verdict(text).scores == points


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "refusal"),
        ("", "empty"),
        ("I'm sorry, but I cannot judge medical images.", "refusal"),
        ("A", "no_verdict"),
        ("[A]", "no_verdict"),
        ("[[a]]", "no_verdict"),
        ("Assistant A is better.", "no_verdict"),
        ("8 7", "no_verdict"),
        ("[[A]] or [[B]]? I cannot say.", "ambiguous"),
        ("[[A]]\nOn second thoughts:\n[[B]]", "ambiguous"),
        ("I would say that [[A]] is what one expects, but no.", "no_verdict"),
        ("It is not [[A]]", "no_verdict"),
        ("[[D]]", "out_of_range"),
        ("第一个回答更好。", "other_language"),
        ('{"verdict": "A', "broken_json"),
        ('{"verdict": "D"}', "broken_json"),
        ('{"winner": "A"}', "broken_json"),
        ("{}", "broken_json"),
    ],
)
def test_what_is_no_verdict_has_its_reason(text: str | None, reason: str) -> None:
    assert read_verdict(text).scores is None and read_verdict(text).reason == reason and reason in REASONS


def test_a_reply_that_was_cut_before_its_verdict_says_so_and_one_after_it_counts() -> None:
    assert read_verdict("The first answer", "length").reason == "cut_off"
    assert read_verdict('{"verdict"', "length").reason == "cut_off"
    assert read_verdict("", "length").reason == "cut_off"
    assert read_verdict("[[B]] since the", "length").scores == B
    assert read_verdict("[[A]]", "content_filter").reason == "refusal"


@given(
    st.one_of(st.text(), st.lists(st.sampled_from(["[[A]]", "[[B]]", "[[", "]]", "\n", "{", '"', " x"])).map("".join))
)
def test_any_text_has_points_or_a_reason(text: str) -> None:
    found = read_verdict(text)
    assert (found.scores is None) == bool(found.reason)
    assert found.scores in (None, *POINTS.values()) and found.reason in ("", *REASONS)
