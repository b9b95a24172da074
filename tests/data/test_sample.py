import pytest

from medtune.data.sample import Message, Sample, report_sample
from medtune.errors import DataError
from tests.data.tools import row


def test_round_trip_keeps_everything():
    raw = {
        "id": "a",
        "images": ["x/1.png", "2.png"],
        "messages": [
            {"role": "system", "content": ""},
            {"role": "user", "content": "<image> and <image>: which?"},
            {"role": "assistant", "content": "the second"},
        ],
        "meta": {"attribute": "size"},
    }
    sample = Sample.from_dict(raw, "f.jsonl, line 1")
    assert sample.to_dict() == raw
    assert sample.messages[2] == Message("assistant", "the second")


def test_images_and_meta_may_be_absent():
    sample = Sample.from_dict({"id": 7, "messages": [{"role": "assistant", "content": "x"}]}, "f, line 1")
    assert sample == report_sample("7", (), "x")


TURN = {"role": "assistant", "content": "x"}
WRONG_WEIGHTS = (0, -1, "2", None, True, float("nan"), float("inf"), 10**400)


@pytest.mark.parametrize(
    "report", ["nan", "NaN", "NULL", "N/A", "n/a.", "None", "#N/A", "#REF!", "___", "__ __", "-", "...", "?"]
)
def test_a_report_that_stands_for_no_report_counts_as_empty(report):
    with pytest.raises(DataError, match="the report or answer is empty"):
        Sample.from_dict(row("a", report), "f.jsonl, line 3")


@pytest.mark.parametrize("answer", ["none", "N/A", "-", "+"])
def test_a_short_answer_to_a_question_stays_an_answer(answer):
    turns = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": answer}]
    assert Sample.from_dict({"id": "a", "messages": turns}, "f").messages[1].content == answer


def test_a_deidentified_answer_is_no_answer():
    turns = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "___"}]
    with pytest.raises(DataError, match="the report or answer is empty"):
        Sample.from_dict({"id": "a", "messages": turns}, "f")


def test_a_report_with_gaps_stays_a_report():
    assert Sample.from_dict(row("a", "Dr. ___ was told. No effusion."), "f").messages[0].content.startswith("Dr.")


@pytest.mark.parametrize(
    ("id", "shown"),
    [
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\nerror: b", "a\\nerror: b"),
        ("\x9b1m", "\\x9b1m"),
        ("\u202ea", "\\u202ea"),
        ("ä", "ä"),
    ],
)
def test_terminal_escapes_and_line_breaks_of_an_id_are_escaped(id, shown):
    assert report_sample(id, (), "x").id == shown == Sample.from_dict(row(id), "f").id


def test_a_weight_is_kept_and_one_is_not_written():
    raw = {**row("a"), "weight": 2.5}
    assert Sample.from_dict(raw, "f").weight == 2.5 and Sample.from_dict(raw, "f").to_dict() == raw
    assert "weight" not in Sample.from_dict({**raw, "weight": 1}, "f").to_dict()


def test_an_unknown_role_is_not_quoted():
    with pytest.raises(DataError) as caught:
        Sample.from_dict({"id": "a", "messages": [{"role": "Mr Miller", "content": "x"}]}, "f, line 1")
    assert "Miller" not in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ([1], "must be a JSON object"),
        ({"messages": [TURN]}, "the field 'id' is missing"),
        ({"id": "a"}, "the field 'messages' is missing"),
        ({"id": " ", "messages": [TURN]}, "'id' must be a non-empty string"),
        ({"id": None, "messages": [TURN]}, "'id' must be a non-empty string"),
        ({"id": True, "messages": [TURN]}, "'id' must be a non-empty string"),
        ({"id": "a", "mesages": [TURN], "messages": [TURN]}, "unknown field 'mesages'.*Did you mean 'messages'"),
        ({"id": "a", "messages": []}, "'messages' must be a non-empty list"),
        ({"id": "a", "messages": [{"role": "doctor", "content": "x"}]}, "message 1: unknown role; use one of"),
        ({"id": "a", "messages": [{"role": "user"}]}, "exactly 'role' and 'content'"),
        ({"id": "a", "messages": [{"role": "user", "content": None}]}, "'content' must be a string"),
        ({"id": "a", "messages": [{"role": "assistant", "content": " \n"}]}, "the report or answer is empty"),
        ({"id": "a", "images": "x.png", "messages": [TURN]}, "'images' must be a list"),
        ({"id": "a", "images": [""], "messages": [TURN]}, "'images' must be a list"),
        (
            {"id": "a", "images": [], "messages": [{"role": "user", "content": "<image>"}]},
            "1 <image> tags for 0 images",
        ),
        ({"id": "a", "images": ["x"], "messages": [{"role": "assistant", "content": "<image>"}]}, "outside a user"),
        ({"id": "a", "messages": [TURN], "meta": [1]}, "'meta' must be an object"),
        *(({"id": "a", "messages": [TURN], "weight": w}, "'weight' must be a number above 0") for w in WRONG_WEIGHTS),
    ],
)
def test_a_wrong_row_is_refused_by_name(raw, said):
    with pytest.raises(DataError, match=said) as caught:
        Sample.from_dict(raw, "f.jsonl, line 3")
    assert str(caught.value).startswith("f.jsonl, line 3")


def test_messages_do_not_quote_the_patients_text():
    raw = row("a", "Mr Miller has a big cell", ("x", "y"))
    raw["messages"].insert(0, {"role": "user", "content": "<image> Mr Miller"})
    with pytest.raises(DataError) as caught:
        Sample.from_dict(raw, "f, line 1")
    assert "Miller" not in str(caught.value) and "'a'" in str(caught.value)
