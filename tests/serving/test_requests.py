"""What a request may hold: everything else is refused by the name of the field, and never quoted."""

import base64
import json
from typing import Any

import pytest

from medtune.generation.engine.sampling import Sampling
from medtune.serving.chat import Defaults, read_call
from medtune.serving.errors import ApiError
from medtune.serving.limits import Limits
from medtune.serving.stops import StopTexts
from tests.serving.running import picture, png, uri

LIMITS, DEFAULTS = Limits(images=2, max_tokens=100), Defaults(max_new_tokens=50)
ASKED = [{"role": "user", "content": "secret words"}]
IMAGE = uri(png(picture(1)))


def read(body: Any, defaults: Defaults = DEFAULTS) -> Any:
    return read_call(body if isinstance(body, bytes) else json.dumps(body).encode(), LIMITS, defaults)


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": ASKED, **fields}


def turn(*parts: dict[str, Any], role: str = "user") -> list[dict[str, Any]]:
    return [{"role": role, "content": list(parts)}]


def image(url: str, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


TEXT = {"type": "text", "text": "secret words"}
WRONG: dict[str, tuple[Any, str | None, str]] = {
    "not JSON": (b"{", None, "invalid_json"),
    "not UTF-8": (b'{"model": "\xff"}', None, "invalid_json"),
    "a list": ([1], None, "invalid_json"),
    "nested beyond reason": (b"[" * 200_000, None, "invalid_json"),
    "no model": ({"messages": ASKED}, "model", "missing_required_parameter"),
    "no messages": ({"model": "m"}, "messages", "missing_required_parameter"),
    "no message": (chat(messages=[]), "messages", "invalid_value"),
    "messages as text": (chat(messages="secret words"), "messages", "invalid_value"),
    "a tool's turn": (chat(messages=[{"role": "tool", "content": "secret words"}]), "messages[0].role", ""),
    "a field of a message": (chat(messages=[{**ASKED[0], "name": "x"}]), "messages[0].name", "unsupported_parameter"),
    "answer last": (chat(messages=[*ASKED, {"role": "assistant", "content": "secret words"}]), "messages", ""),
    "empty answer": (chat(messages=[*ASKED, {"role": "assistant", "content": " "}, *ASKED]), "messages", ""),
    "no question": (chat(messages=[{"role": "user", "content": " \n"}]), "messages", ""),
    "an image without question": (chat(messages=turn(image(IMAGE))), "messages", ""),
    "no text at all": (chat(messages=[{"role": "user", "content": None}]), "messages[0].content", "invalid_value"),
    "half a character": (chat(messages=[{"role": "user", "content": "secret \ud800"}]), "messages[0].content", ""),
    "an image tag": (chat(messages=[{"role": "user", "content": "secret <image>"}]), "messages", ""),
    "an image of the system": (chat(messages=[*turn(image(IMAGE), role="system"), *ASKED]), "messages", ""),
    "too many images": (chat(messages=turn(*[image(IMAGE)] * 3, TEXT)), "messages", ""),
    "sound": (chat(messages=turn({"type": "input_audio", "input_audio": {}}, TEXT)), "messages[0].content[0]", ""),
    "no URI": (chat(messages=turn(TEXT, image("secret words"))), "messages[0].content[1].image_url.url", ""),
    "not base64": (chat(messages=turn(image("data:image/png;base64,????"), TEXT)), None, "invalid_image"),
    "an empty image": (chat(messages=turn(image("data:image/png;base64,"), TEXT)), None, "invalid_image"),
    "an image as text": (chat(messages=turn(image("data:image/svg+xml,<svg/>"), TEXT)), None, "invalid_image"),
    "detail": (chat(messages=turn(image(IMAGE, detail="x"), TEXT)), "messages[0].content[0].image_url.detail", ""),
    "cold": (chat(temperature=-1), "temperature", "invalid_value"),
    "hot": (chat(temperature=99), "temperature", "invalid_value"),
    "infinite": (b'{"model": "m", "messages": [], "temperature": NaN}', None, "invalid_value"),
    "a word for a number": (chat(temperature="secret words"), "temperature", "invalid_value"),
    "no probability": (chat(top_p=0), "top_p", "invalid_value"),
    "a whole number": (chat(max_tokens=1.5), "max_tokens", "invalid_value"),
    "no token": (chat(max_tokens=0), "max_tokens", "invalid_value"),
    "too many tokens": (chat(max_tokens=101), "max_tokens", ""),
    "too many tokens by their new name": (chat(max_completion_tokens=101), "max_completion_tokens", ""),
    "empty stop": (chat(stop=["a", ""]), "stop", ""),
    "five stops": (chat(stop=["a"] * 5), "stop", "invalid_value"),
    "a long stop": (chat(stop="a" * 300), "stop", ""),
    "two answers": (chat(n=2), "n", "unsupported_parameter"),
    "log-probabilities": (chat(logprobs=True), "logprobs", "unsupported_parameter"),
    "a penalty": (chat(presence_penalty=0.5), "presence_penalty", "unsupported_parameter"),
    "JSON": (chat(response_format={"type": "json_object"}), "response_format", "unsupported_parameter"),
    "tools": (chat(tools=[{"type": "function"}]), "tools", "unsupported_parameter"),
    "a bias": (chat(logit_bias={"1": 1}), "logit_bias", "unsupported_parameter"),
    "unknown": (chat(colour="secret words"), "colour", "unsupported_parameter"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_field_that_cannot_be_used_is_named(name):
    body, param, code = WRONG[name]
    with pytest.raises(ApiError) as told:
        read(body)
    error = told.value
    assert error.status == 400 and error.kind == "invalid_request_error"
    if param is not None:
        assert error.param == param
        assert param in error.message or param == "messages"
    if code:
        assert error.code == code
    assert "secret" not in json.dumps(error.body()) and len(error.message) < 300


ADDRESSES = ("http://10.0.0.1/a.png", "https://example.org/a.png", "file:///etc/passwd", "FTP://x")


@pytest.mark.parametrize("address", ADDRESSES)
def test_no_address_of_an_image_is_opened(address):
    with pytest.raises(ApiError, match="images are not fetched from addresses") as told:
        read(chat(messages=turn(image(address), TEXT)))
    assert (told.value.code, told.value.status) == ("image_url_not_allowed", 400)
    assert address not in told.value.message


def test_values_that_change_nothing_are_taken():
    call = read(
        chat(n=1, logprobs=False, presence_penalty=0, frequency_penalty=0.0, response_format={"type": "text"},
             tools=[], tool_choice=None, store=False, user="u", stream=None, stop=None, stream_options=None)
    )  # fmt: skip
    assert (call.model, call.question, call.max_new_tokens, call.stops) == ("m", "secret words", 50, ())
    assert (call.sampling, call.stream, call.images, call.seeded) == (None, False, (), False)


def test_what_is_asked_is_read():
    messages = [*turn(TEXT, image(IMAGE, detail="high"), {"type": "text", "text": "more"})]
    call = read(chat(messages=messages, max_completion_tokens=7, stop="x", seed=3, temperature=0.5, stream=True))
    assert call.images == (base64.b64decode(IMAGE.partition(",")[2]),)
    assert [(m.role, m.content) for m in call.messages] == [("user", "secret words\nmore")]
    assert (call.max_new_tokens, call.stops, call.seeded, call.stream) == (7, ("x",), True, True)
    assert call.sampling == Sampling(0.5, seed=3)
    assert read(chat(stream=True, stream_options={"include_usage": True})).include_usage


@pytest.mark.parametrize(
    ("own", "asked", "found"),
    [
        (None, {}, None),
        (None, {"temperature": 0}, None),
        (None, {"top_p": 0.5, "seed": 1}, None),
        (None, {"temperature": 1, "top_k": 1}, None),
        (None, {"temperature": 1, "top_k": -1, "seed": 1}, Sampling(1.0, seed=1)),
        (Sampling(0.7, 0.9, 20), {"seed": 1}, Sampling(0.7, 0.9, 20, 1)),
        (Sampling(0.7, 0.9, 20), {"seed": 1, "temperature": 2, "top_p": 1.0, "top_k": 0}, Sampling(2.0, seed=1)),
        (Sampling(0.7), {"temperature": 0}, None),
    ],
)
def test_how_tokens_are_drawn(own, asked, found):
    assert read(chat(**asked), Defaults(sampling=own)).sampling == found


def test_a_seed_is_drawn_where_none_is_given():
    seeds = {read(chat(temperature=1)).sampling.seed for _ in range(5)}
    assert len(seeds) == 5


@pytest.mark.parametrize("text", ["one END two", "EN", "ENEND", "EEND.", "", "abc", "ENDEND", "a EN b ST"])
@pytest.mark.parametrize("stops", [(), ("END",), ("END", "ST"), ("N",), ("E b", "ENX")])
def test_a_stop_text_is_found_in_whatever_pieces_it_comes(text, stops):
    ends = [text.index(stop) for stop in stops if stop in text]
    expected = text[: min(ends)] if ends else text
    for size in range(1, len(text) + 1):
        watch, said = StopTexts(stops), ""
        for start in range(0, len(text), size):
            said += watch.add(text[start : start + size])
            assert expected.startswith(said), "too much was sent"
        assert watch.found == bool(ends)
        assert said + ("" if watch.found else watch.end()) == expected
