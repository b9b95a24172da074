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
        ({"id": "a", "messages": [{"role": "doctor", "content": "x"}]}, "message 1: unknown role 'doctor'; use one of"),
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
