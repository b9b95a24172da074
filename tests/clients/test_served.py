"""A served model of a config: the key of a request, what is shown of it, and the client that keeps replies."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medtune.clients.budget import Budget, BudgetSpentError, Prices, Spent
from medtune.clients.errors import ServerSetupError
from medtune.clients.messages import ChatRequest, SamplingAt, content, pixels_sha256
from medtune.clients.served import KeptReply, RecordedClient, ServedModel
from tests.clients.faulty_server import GOOD, Reply, serve

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
SERVER = ServedModel("http://127.0.0.1:9/v1", "m", options={"seed": 1, "extra_headers": {"X-Account": "a"}})


def request(text: str = "Compare.", pixels: np.ndarray = PIXELS, **changes: object) -> ChatRequest:
    turns = [{"role": "user", "content": content([Image.fromarray(pixels), text])}]
    return dataclasses.replace(ChatRequest("q1", turns, None, 20), **changes)  # type: ignore[arg-type]


def test_a_key_changes_with_everything_that_decides_the_reply() -> None:
    other = PIXELS.copy()
    other[0, 0, 0] ^= 1
    keys = [
        SERVER.request_key(request(), "v1"),
        SERVER.request_key(request(), "v2"),
        SERVER.request_key(request("Compare!"), "v1"),
        SERVER.request_key(request(pixels=other), "v1"),
        SERVER.request_key(request(pixels=PIXELS.reshape(4, 5, 3)), "v1"),
        SERVER.request_key(request(max_tokens=21), "v1"),
        SERVER.request_key(request(extra={"min_p": 0.1}), "v1"),
        SERVER.request_key(request(sampling=SamplingAt(0.5)), "v1"),
        SERVER.request_key(request(sampling=SamplingAt(0.6)), "v1"),
        SERVER.request_key(request(sampling=SamplingAt(0.5, top_p=0.9)), "v1"),
        SERVER.request_key(request(sampling=SamplingAt(0.5, seed=1)), "v1"),
        dataclasses.replace(SERVER, model="n").request_key(request(), "v1"),
        dataclasses.replace(SERVER, options={"seed": 2}).request_key(request(), "v1"),
    ]
    assert len(set(keys)) == len(keys)
    same_body = dataclasses.replace(SERVER, options={"seed": 2}).request_key(request(), "v1")
    assert SERVER.request_key(request(extra={"seed": 2}), "v1") == same_body


def test_a_key_does_not_change_with_address_headers_id_or_the_compression_of_a_file() -> None:
    key = SERVER.request_key(request(), "v1")
    moved = dataclasses.replace(SERVER, base_url="http://other/v1", options={"seed": 1}, timeout=5.0)
    assert moved.request_key(request(id="q2"), "v1") == key
    files = []
    for level in (0, 9):
        buffer = io.BytesIO()
        Image.fromarray(PIXELS).save(buffer, format="PNG", compress_level=level)
        files.append(buffer.getvalue())
    assert files[0] != files[1]
    for file in files:
        assert SERVER.request_key(request(pixels=np.asarray(Image.open(io.BytesIO(file)))), "v1") == key
    assert pixels_sha256(Image.fromarray(PIXELS)) != pixels_sha256(Image.fromarray(PIXELS).convert("RGBA"))


def test_a_shown_request_is_the_one_that_is_sent_without_keys_and_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    options = {"top_k": 7, "extra_headers": {"X-Account": "hidden"}}
    model = dataclasses.replace(SERVER, api_key_env="MY_KEY", options=options)
    shown = model.shown_request(request(sampling=SamplingAt(0.2, seed=4)))
    assert "POST http://127.0.0.1:9/v1/chat/completions" in shown and "Authorization: Bearer *** (from" in shown
    assert "X-Account: ***" in shown and "hidden" not in shown and "very-secret" not in shown
    assert '"url": "data:image/png;base64,<4 x 5 RGB, sha256 of the pixels' in shown and "iVBOR" not in shown
    assert (
        '"temperature": 0.2' in shown and '"seed": 4' in shown and '"top_k": 7' in shown and '"max_tokens": 20' in shown
    )


def client(url: str, path: Path, run: str = "r", budget: Budget | None = None, **changes: object) -> RecordedClient:
    said: list[str] = []
    model = ServedModel(url, "m", max_retries=0, **changes)  # type: ignore[arg-type]
    made = RecordedClient(model, path, run, budget or Budget(), said.append)
    made.said = said  # type: ignore[attr-defined]
    return made


def test_a_kept_reply_is_asked_for_once_and_known_by_its_run(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with serve() as server:
        with client(server.url, path) as asked:
            assert asked.ask(request(), "v1") == KeptReply("fine", "stop", True)
            assert asked.ask(request(), "v1") == KeptReply("fine", "stop", True)
        with client(server.url, path) as again:
            assert again.ledger.spent == Spent(1, 7, 2) and again.ask(request(), "v1").asked
        with client(server.url, path, run="other") as other:
            assert other.ledger.spent == Spent() and other.ask(request(), "v1") == KeptReply("fine", "stop", False)
            assert other.ask(request(), "v2").asked
        assert len(server.bodies) == 2
    with client("http://127.0.0.1:9/v1", path) as away:  # no server is needed for what is kept
        assert away.ask(request(), "v1").text == "fine"
        with pytest.raises(ServerSetupError, match="cannot be reached"):
            away.ask(request("Anew."), "v1")


def test_a_model_that_declines_is_not_asked_again_and_is_paid_for(tmp_path: Path) -> None:
    declined = {**GOOD, "choices": [{"finish_reason": "content_filter", "message": {"content": None}}]}
    with serve(Reply(body=declined)) as server, client(server.url, tmp_path / "r.jsonl") as asked:
        for _ in range(2):
            assert asked.ask(request(), "v1") == KeptReply(None, "content_filter", True)
        assert asked.ledger.spent == Spent(1, 7, 2) and len(server.bodies) == 1


def test_what_is_over_the_budget_is_not_sent(tmp_path: Path) -> None:
    with serve() as server:
        with client(server.url, tmp_path / "r.jsonl", budget=Budget(max_cost=0.01), prices=Prices(1.0, 1.0)) as asked:
            assert asked.ask(request(), "v1").text == "fine"
        with client(server.url, tmp_path / "r.jsonl", budget=Budget(max_requests=1)) as asked:
            assert asked.ask(request(), "v1").text == "fine"  # it is kept
            with pytest.raises(BudgetSpentError, match="budget.max_requests: 1"):
                asked.ask(request("Another."), "v1")
    assert len(server.bodies) == 1


def test_other_versions_in_a_cache_are_told_unless_ours_is_there_too(tmp_path: Path) -> None:
    with serve() as server:
        with client(server.url, tmp_path / "r.jsonl") as asked:
            asked.tell_versions(["v2"])
            assert asked.said == []  # type: ignore[attr-defined]
            asked.ask(request(), "v1")
            asked.tell_versions(["v2"])
            assert "holds 1 replies to v1; this run uses v2 and asks anew" in asked.said[0]  # type: ignore[attr-defined]
            asked.ask(request(), "v2")
            asked.tell_versions(["v2"])
            assert len(asked.said) == 1  # type: ignore[attr-defined]


def test_the_text_of_a_request_is_not_in_the_cache(tmp_path: Path) -> None:
    with serve() as server, client(server.url, tmp_path / "r.jsonl") as asked:
        asked.ask(request("Mrs Smith"), "v1")
    assert b"Smith" not in (tmp_path / "r.jsonl").read_bytes()


def test_a_served_model_has_sensible_numbers() -> None:
    with pytest.raises(ValueError, match="concurrency must be positive"):
        ServedModel("http://localhost/v1", "m", concurrency=0)
    with pytest.raises(ValueError, match="extra_headers must be names and texts"):
        ServedModel("http://localhost/v1", "m", options={"extra_headers": [1]})
