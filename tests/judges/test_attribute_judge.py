"""The judge of known truth: what counts as named, where the truth is from, and its noise."""

import json
from pathlib import Path

import pytest

from medtune.data.sample import Message
from medtune.errors import ConfigError, DataError
from medtune.judges import AttributeJudge
from medtune.judges.attribute_judge import count_named
from medtune.judges.candidates import Candidate, CandidateSource

TRUE = {"size": "big cell size", "shape": "round cell shape", "type": "Neutrophil"}


def candidate(id: str, first: str, second: str, **meta: object) -> Candidate:
    return Candidate(id, ("a.png",), (Message("user", "What?"),), dict(meta), answers=(first, second))


def judged(judge: AttributeJudge, item: Candidate) -> tuple[float, float] | None:
    return judge.judge(item, lambda: [], None).scores


def test_an_answer_counts_the_attributes_that_it_names() -> None:
    item = candidate("q", "A Big  cell-size; a NEUTROPHIL.", "round cell shape and neutrophils", attributes=TRUE)
    assert judged(AttributeJudge(), item) == (2.0, 1.0)
    assert count_named("bigger cell size, unround cell shape", list(TRUE.values())) == 0
    assert count_named("Neutrophil, neutrophil", ["neutrophil", "neutrophil"]) == 1
    assert judged(AttributeJudge(), candidate("q", "no", "none", attributes=TRUE)) == (0.0, 0.0)


def test_the_truth_of_an_image_is_its_report(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    report = {
        "id": "r",
        "images": ["a.png"],
        "messages": [{"role": "assistant", "content": "big cell size, Neutrophil"}],
    }
    path.write_text(json.dumps(report) + "\n")
    judge = AttributeJudge(truth=str(path))
    assert judge.attributes(candidate("q", "", "")) == ("big cell size", "Neutrophil")
    assert judged(judge, candidate("q", "a neutrophil with a big cell size", "a neutrophil")) == (2.0, 1.0)
    assert judge.attributes(candidate("q", "", "", attributes=["its own"])) == ("its own",)
    other = Candidate("x", ("b.png",), (Message("user", "What?"),), answers=("a", "b"))
    with pytest.raises(DataError, match="candidate 'x'.*has no report of its images"):
        judge.attributes(other)
    with pytest.raises(ConfigError, match="has no meta.attributes"):
        AttributeJudge().attributes(other)
    with pytest.raises(DataError, match="must be a list of phrases"):
        AttributeJudge().attributes(candidate("q", "", "", attributes={"size": 3}))
    before = judge.identity()
    path.write_text(json.dumps(report).replace("big", "small") + "\n")
    assert AttributeJudge(truth=str(path)).identity() != before


def test_an_optional_finding_is_answered_by_yes_or_no() -> None:
    judge = AttributeJudge(optional=["granularity", "cytoplasm vacuole"])
    item = candidate("q", "No granularity.", "yes, granularity", attributes=["big cell size", "granularity"])
    assert judge.attributes(item) == ("big cell size", "yes granularity", "no cytoplasm vacuole")
    assert judged(judge, item) == (0.0, 1.0) and judged(AttributeJudge(), item) == (1.0, 1.0)
    item = candidate("q", "No cytoplasm vacuole.", "yes, cytoplasm vacuole", attributes=["big cell size"])
    assert judged(judge, item) == (1.0, 0.0)
    assert judge.identity() != AttributeJudge().identity() and "optional" not in AttributeJudge().identity()


@pytest.mark.parametrize(
    ("question", "first", "second", "scores"),
    [
        ("What is the cell shape?", "irregular cell shape", "big cell size", (0.0, 0.0)),
        ("What is the cell shape?", "round cell shape", "round cell shape, big cell size", (1.0, 1.0)),
        ("What is the label?", "Neutrophil", "big cell size", (1.0, 0.0)),
        ("What is the granularity?", "yes, granularity", "round cell shape", (1.0, 0.0)),
        ("What is the granule colour?", "Neutrophil", "big cell size", (0.0, 0.0)),
        ("Name cell size and shape, the cell shape.", "big cell size, round cell shape", "Neutrophil", (2.0, 0.0)),
        ("What do you see?", "round cell shape", "big cell size, Neutrophil", (1.0, 2.0)),
    ],
)
def test_only_what_was_asked_counts_where_the_names_of_attributes_are_given(
    question: str, first: str, second: str, scores: tuple[float, float]
) -> None:
    names = ["cell size", "cell shape", "granularity", "granule colour", "label"]
    judge = AttributeJudge(optional=["granularity"], asked=names)
    truth = ["big cell size", "round cell shape", "granularity", "Neutrophil"]
    item = Candidate("q", ("a.png",), (Message("user", question),), {"attributes": truth}, answers=(first, second))
    assert judged(judge, item) == scores
    assert judge.identity() != AttributeJudge(optional=["granularity"]).identity()


def test_noise_turns_a_known_share_round_by_seed_and_id() -> None:
    items = [candidate(f"q{number}", "big cell size", "nothing", attributes=TRUE) for number in range(2000)]
    turned = {
        seed: [judged(AttributeJudge(noise=0.2, seed=seed), item) == (0.0, 1.0) for item in items] for seed in (0, 1)
    }
    for wrong in turned.values():
        assert 0.17 < sum(wrong) / len(wrong) < 0.23
    assert turned[0] != turned[1]
    assert turned[0][::-1] == [judged(AttributeJudge(noise=0.2), item) == (0.0, 1.0) for item in items[::-1]]
    assert not any(judged(AttributeJudge(noise=0.0), item) == (0.0, 1.0) for item in items)
    assert all(judged(AttributeJudge(noise=1.0), item) == (0.0, 1.0) for item in items[:50])
    with pytest.raises(ValueError, match="noise must be between 0 and 1"):
        AttributeJudge(noise=1.5)


def test_candidates_of_a_file_keep_what_a_sample_has(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    turns = [{"role": "user", "content": "What?"}]
    rows = [
        {"messages": turns, "answers": ["a", "b"]},
        {"id": "x", "messages": turns, "answers": ["a", "b"], "weight": 2.0},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = (CandidateSource(path)[place] for place in range(2))
    assert (first.id, first.answers, first.weight) == ("c:1", ("a", "b"), 1.0)
    assert (second.id, second.weight) == ("x", 2.0)
