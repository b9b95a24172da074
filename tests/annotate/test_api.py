"""What the page's API answers, and what it refuses."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from medtune.annotate.app import COMMENT, Desk, create_app
from medtune.annotate.records import Choice
from medtune.annotate.shares import Shares
from medtune.judges.candidates import Candidate
from tests.annotate.running import LOOPBACK, candidates, prepared


class Caller:
    """A client that signs in as one annotator or another."""

    def __init__(self, desk: Desk, tokens: dict[str, str]) -> None:
        self.desk, self.tokens = desk, tokens
        self.client = TestClient(create_app(desk, LOOPBACK), base_url="http://127.0.0.1")

    def get(self, who: str, path: str, **headers: str) -> Any:
        return self.client.get(path, headers={"Authorization": f"Bearer {self.tokens.get(who, who)}", **headers})

    def post(self, who: str, path: str, body: Any, **headers: str) -> Any:
        sent = {"Authorization": f"Bearer {self.tokens.get(who, who)}", "Content-Type": "application/json", **headers}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.client.post(path, content=data, headers=sent)

    def choose(self, who: str, number: int, choice: str, **more: Any) -> Any:
        return self.post(who, "/api/choose", {"number": number, "choice": choice, **more})


@pytest.fixture
def caller(tmp_path: Path) -> Iterator[Caller]:
    with prepared(tmp_path, 6) as (desk, tokens):
        yield Caller(desk, tokens)


def code(reply: Any) -> tuple[int, str]:
    return reply.status_code, reply.json()["error"]["code"]


def test_left_and_right_are_stored_in_the_order_of_the_file(caller: Caller) -> None:
    asked = {}
    state = caller.get("one", "/api/state").json()
    while (item := state["item"]) is not None:
        swapped = caller.desk.shares.swapped("one", item["id"])
        number = item["id"][1:]
        both = [f"First of {number}.", f"Second of {number}."]
        assert item["answers"] == (both[::-1] if swapped else both)
        asked[item["id"]] = "second" if swapped else "first"
        assert (item["question"], item["caption"], item["images"]) == (f"Question {number}?", f"Caption {number}", 1)
        state = caller.choose("one", item["number"], "left", comment=" why ", seconds=2.5).json()
    assert set(asked.values()) == {"first", "second"}, "both sides must occur for this test to mean something"
    assert (state["done"], state["total"]) == (6, 6)
    made = {row.id: choice for row, _, choice in caller.desk.store.choices()}
    assert {id: choice.preference for id, choice in made.items()} == asked
    assert {(choice.comment, choice.seconds) for choice in made.values()} == {("why", 2.5)}


def test_both_neither_and_undo_tell_what_was_pressed(caller: Caller) -> None:
    for pressed in ("right", "both", "neither"):
        item = caller.get("one", "/api/state").json()["item"]
        state = caller.choose("one", item["number"], pressed, comment="c").json()
        assert state["done"] == 1
        back = caller.post("one", "/api/undo", {}).json()
        assert back["undone"] == {"choice": pressed, "comment": "c"} and back["item"] == item and back["done"] == 0
    assert code(caller.post("one", "/api/undo", {})) == (409, "nothing_to_undo")


def test_two_annotators_at_once_have_choices_of_their_own(caller: Caller) -> None:
    for who, pressed in (("one", "both"), ("two", "neither")):
        assert caller.choose(who, 3, pressed).status_code == 200
    made = [(row.id, who, choice.preference) for row, who, choice in caller.desk.store.choices()]
    assert made == [("q2", "one", "both"), ("q2", "two", "neither")]
    assert caller.get("two", "/api/state").json()["annotator"] == "two"


def test_a_choice_sent_twice_is_one_and_another_one_from_a_second_window_is_refused(caller: Caller) -> None:
    assert caller.choose("one", 2, "both").json() == caller.choose("one", 2, "both").json()
    assert code(caller.choose("one", 2, "neither")) == (409, "chosen_already")
    assert [choice.preference for _, _, choice in caller.desk.store.choices()] == ["both"]


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ({"number": 1, "choice": "first"}, 400, "choice must be"),
        ({"number": 1, "choice": ["left"]}, 400, "choice must be"),
        ({"number": 1}, 400, "choice must be"),
        ({"number": 99, "choice": "left"}, 404, "not one of yours"),
        ({"number": True, "choice": "left"}, 404, "not one of yours"),
        ({"number": "1", "choice": "left"}, 404, "not one of yours"),
        ({"number": 10**30, "choice": "left"}, 404, "not one of yours"),
        ({"choice": "left"}, 404, "not one of yours"),
        ({"number": 1, "choice": "left", "comment": "x" * (COMMENT + 1)}, 400, "shorten it"),
        ({"number": 1, "choice": "left", "comment": None}, 400, "comment must be"),
        ([1], 400, "JSON object"),
        (b"{", 400, "not valid JSON"),
        (b'{"number": ' + b"[" * 5000, 400, "not valid JSON"),
        (b" " * 200_000, 413, "larger than"),
    ],
)
def test_what_is_no_choice_is_refused_and_nothing_is_stored(caller: Caller, body: Any, status: int, told: str) -> None:
    reply = caller.post("one", "/api/choose", body)
    assert reply.status_code == status and told in reply.json()["error"]["message"]
    assert caller.desk.store.choices() == []


def test_tokens_that_are_missing_wrong_or_ended_open_nothing(caller: Caller) -> None:
    caller.desk.store.set_token("two", "ended", 1.0)
    calls = [
        lambda who: caller.get(who, "/api/state"),
        lambda who: caller.get(who, "/api/items/1/images/0"),
        lambda who: caller.choose(who, 1, "left"),
        lambda who: caller.post(who, "/api/undo", {}),
        lambda who: caller.post(who, "/api/later", {"number": 1}),
    ]
    for call in calls:
        for token in ("", "wrong", "token-of-two"):
            assert code(call(token)) == (401, "unknown_token")
        reply = call("ended")
        assert code(reply) == (401, "token_ended") and "Your choices are stored" in reply.json()["error"]["message"]
    assert caller.client.get("/api/state").status_code == 401
    assert caller.client.get("/api/state", params={"token": "token-of-one"}).status_code == 401
    assert caller.desk.store.choices() == []


def test_no_other_page_can_make_a_browser_choose(caller: Caller) -> None:
    body = {"number": 1, "choice": "left"}
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
        assert code(caller.post("one", "/api/choose", body, Origin=origin)) == (403, "wrong_origin")
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert code(caller.post("one", "/api/choose", body, **form)) == (415, "unsupported_media_type")
    cookie = caller.client.post("/api/choose", json=body, cookies={"token": "token-of-one"})
    assert cookie.status_code == 401, "a cookie would be sent by any page"
    assert code(caller.get("one", "/api/state", Host="evil.example")) == (403, "wrong_host")
    assert "access-control-allow-origin" not in caller.get("one", "/api/state", Origin="http://evil.example").headers
    assert caller.desk.store.choices() == []
    assert caller.post("one", "/api/choose", body, Origin="http://127.0.0.1").status_code == 200


def test_every_reply_forbids_foreign_content_frames_and_caches(caller: Caller) -> None:
    replies = [
        caller.client.get("/"),
        caller.client.get("/page.js"),
        caller.get("one", "/api/state"),
        caller.get("wrong", "/api/state"),
        caller.get("one", "/nothing"),
        caller.get("one", "/", Host="evil.example"),
    ]
    for reply in replies:
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert reply.headers["x-frame-options"] == "DENY" and reply.headers["cache-control"] == "no-store"
        assert reply.headers["referrer-policy"] == "no-referrer"
    assert code(replies[4]) == (404, "not_found")
    assert caller.client.get("/docs").status_code == 404 and caller.client.get("/openapi.json").status_code == 404


def test_images_come_from_the_root_only_without_metadata_and_only_to_their_annotators(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    with prepared(tmp_path, 3, shares=Shares(overlap=0.0)) as (desk, tokens):
        caller = Caller(desk, tokens)
        mine = caller.get("one", "/api/state").json()["item"]["number"]
        reply = caller.get("one", f"/api/items/{mine}/images/0")
        assert reply.headers["content-type"] == "image/png"
        image = Image.open(io.BytesIO(reply.content))
        assert image.size == (64, 48) and image.info.keys() <= {"dpi"}
        assert code(caller.get("two", f"/api/items/{mine}/images/0")) == (404, "unknown_item")
        assert code(caller.get("one", f"/api/items/{mine}/images/1")) == (404, "unknown_image")
        assert code(caller.get("one", f"/api/items/{mine}/images/-1")) == (404, "unknown_image")
        for path in ("/images/0.png", "/../secret.png", "/api/items/../../secret.png", "/page.css/../../secret.png"):
            assert caller.get("one", path).status_code == 404
        # A row that names a file outside of the root; the command refuses it, and so does the page.
        outside = Candidate.from_dict({**_row(), "images": ["../secret.png"]}, "test")
        desk.store.prepare([*candidates(3, images=True), outside], [], Shares(overlap=1.0))
        assert code(caller.get("one", "/api/items/4/images/0")) == (410, "image_gone")


def _row() -> dict[str, Any]:
    return {"id": "x", "messages": [{"role": "user", "content": "?"}], "answers": ["a", "b"]}


def test_an_image_that_is_gone_is_said_and_the_question_can_wait(caller: Caller, tmp_path: Path) -> None:
    item = caller.get("one", "/api/state").json()["item"]
    (tmp_path / "images" / f"{item['id'][1:]}.png").unlink()
    reply = caller.get("one", f"/api/items/{item['number']}/images/0")
    assert code(reply) == (410, "image_gone") and item["id"] in reply.json()["error"]["message"]
    state = caller.post("one", "/api/later", {"number": item["number"]}).json()
    assert state["item"]["id"] != item["id"] and state["total"] == 6


def test_a_store_that_fails_says_that_nothing_was_stored(caller: Caller) -> None:
    caller.desk.store._db.execute("DROP TABLE events")
    reply = caller.choose("one", 1, "left")
    assert code(reply) == (503, "store_failed") and "Nothing was stored" in reply.json()["error"]["message"]
    assert caller.desk.store.choices() == []


def test_undo_takes_back_what_was_chosen_in_the_page_and_not_what_was_imported(caller: Caller) -> None:
    caller.desk.store.take([("q0", "one", Choice("both"), "file")])
    assert code(caller.post("one", "/api/undo", {})) == (409, "nothing_to_undo")
