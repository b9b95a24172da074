"""Drawn replies of a server: every outcome is a reply or an error without a word of what the server wrote."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from medtune.clients.errors import shown_request_id
from medtune.clients.messages import FINISH_REASONS, ChatReply, NoText, read_reply

BOUNDED = settings(derandomize=True, deadline=None, database=None)
PATIENT = "Quindal Vex"
KEY = "sk-key-0123456789"

leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.just(PATIENT)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
)
messages = st.fixed_dictionaries(
    {}, optional={"content": st.text(max_size=20) | st.just(f"{PATIENT} \ud800") | values, "refusal": values}
)
choices = st.fixed_dictionaries(
    {}, optional={"message": messages | values, "finish_reason": st.sampled_from([*FINISH_REASONS, PATIENT]) | values}
)
usages = st.dictionaries(st.sampled_from(["prompt_tokens", "completion_tokens"]), values)
bodies = st.fixed_dictionaries(
    {}, optional={"choices": st.lists(choices | values, max_size=2) | values, "usage": usages | values, "error": values}
)


def read(body: bytes) -> ChatReply | None:
    """The reply, or None for one of the two errors that it may raise."""
    try:
        return read_reply(body, None, "q")
    except (ValueError, NoText) as error:
        assert PATIENT not in str(error) and len(str(error)) < 120
        return None


@settings(BOUNDED, max_examples=450)
@given(body=bodies)
def test_a_drawn_body_is_a_reply_or_an_error(body: Any) -> None:
    reply = read(json.dumps(body).encode())
    if reply is not None:
        assert isinstance(reply.text, str) and reply.text.encode() == reply.text.encode("utf-8", "strict")
        assert reply.finish_reason in ("", *FINISH_REASONS)
        assert reply.prompt_tokens >= 0 and reply.completion_tokens >= 0


@settings(BOUNDED, max_examples=200)
@given(body=st.binary(max_size=60) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_drawn_bytes_are_no_reply(body: bytes) -> None:
    assert read(body) is None


@settings(BOUNDED, max_examples=200)
@given(
    before=st.text(max_size=8), inside=st.sampled_from(["", KEY, PATIENT, "\x1b[31m", "\n"]), after=st.text(max_size=8)
)
def test_a_shown_request_id_is_one_word_without_the_key(before: str, inside: str, after: str) -> None:
    shown = shown_request_id(before + inside + after, KEY)
    if shown is not None:
        assert KEY not in shown and shown.isascii() and shown.isprintable() and " " not in shown
