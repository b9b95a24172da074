"""``predict`` with several adapters: which one answers, the same answers in every mode, and what is refused."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from medtune.config import Component
from medtune.data.sample import Message, Sample
from medtune.errors import ConfigError, DataError, MedtuneError, ModelError
from medtune.generation.backends.base import AnswerSettings
from medtune.generation.engine.generator import Generator
from medtune.generation.requests import Generation, Request
from medtune.models import mini
from medtune.models.lora.peft import read_peft, save_peft
from medtune.models.weights import save_hf
from medtune.routing.backend import RoutedModel
from tests.generation.conftest import PictureSource, randomised
from tests.models.banked import alone

TASKS = ("classification", "counting", "detection")
SIZES = {"image_size": 16, "patch_size": 4, "embed_dim": 128, "heads": 4, "vision_layers": 1, "decoder_layers": 1}
LORA = {"lora_attn_modules": ["q_proj", "v_proj"], "apply_lora_to_mlp": True}
SETTINGS = AnswerSettings(6, torch.device("cpu"), torch.float32)
QUESTIONS = {"classification": "what is the color?", "counting": "how big a nucleus", "detection": "the cell size"}


class Words:
    """A router that knows the first word of each task's question."""

    labels = TASKS

    def __init__(self, labels: Sequence[str] = TASKS) -> None:
        self.labels = tuple(labels)
        self.asked: list[list[str]] = []

    def probabilities(self, questions: Sequence[str]) -> NDArray[np.float64]:
        """0.7 for the task of the question, 0.4 for all if it is unknown."""
        self.asked.append(list(questions))
        known = [[0.8 * (text.split()[0] == QUESTIONS[label].split()[0]) for label in TASKS] for text in questions]
        return np.array([[0.1 + value if any(row) else 0.4 for value in row] for row in known])

    def identity(self) -> dict[str, Any]:
        """Its name."""
        return {"words": list(self.labels)}


ROUTER = Component(_component_="tests.routing.test_backend.Words")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tokenizer: tuple[str, int]) -> Path:
    """Base weights and an adapter for each task and for all, of unlike ranks."""
    folder = tmp_path_factory.mktemp("routed")
    torch.manual_seed(4)
    plain = randomised(mini.mini_internvl(tokenizer[1], decoder="qwen2", **SIZES), 0.2)
    save_hf(plain.state_dict(), plain.family, folder / "base")
    for number, name in enumerate((*TASKS, "all")):
        make_adapter(folder / name, tokenizer[1], rank=1 + number, base=str(folder / "base"))
    return folder


def make_adapter(folder: Path, vocabulary: int, rank: int, base: str | None, **changes: Any) -> Path:
    torch.manual_seed(rank)
    sizes = {**SIZES, "decoder": "qwen2", **changes}
    model = mini.lora_mini_internvl(vocab_size=vocabulary, lora_rank=rank, lora_alpha=2.0 + rank, **LORA, **sizes)
    state = {key: torch.randn(value.shape) * 0.15 for key, value in model.state_dict().items() if ".lora_" in key}
    return save_peft(state, model, folder, base)


def backend(world: Path, tokenizer: tuple[str, int], builder: str = "mini_internvl", **options: Any) -> RoutedModel:
    lora = {**LORA, "lora_rank": 8} if builder.startswith(("lora", "qlora")) else {}
    model = {"_component_": f"medtune.models.mini.{builder}", "vocab_size": tokenizer[1], "decoder": "qwen2"}
    transform = {"_component_": "medtune.models.mini.mini_internvl_transform", "path": tokenizer[0]}
    settings = {"router": ROUTER, "fallback": "all", "batch_size": 4, "window": 2, **options}
    return RoutedModel(
        Component(**model, **SIZES, **lora),
        Component(**transform, image_size=16, patch_size=4),
        str(world / "base"),
        settings.pop("adapters", {name: str(world / name) for name in (*TASKS, "all")}),
        **settings,
    )


def requests(count: int = 11) -> list[Request]:
    """One in four questions is of no known task."""
    source, made = PictureSource(), []
    for i in range(count):
        task = [*TASKS, "none"][i % 4]
        text = QUESTIONS.get(task, "nonsense") + " cell" * (i % 3)
        sample = Sample(f"r{i}", (f"wide-{i % 3}",), (Message("user", f"<image>{text}"),), {"task": task})
        made.append(Request(sample.id, sample, source, continuations=("big", "small") if i % 5 == 0 else ()))
    return made


def answers(model: RoutedModel, asked: list[Request], **settings: Any) -> dict[str, Generation]:
    opened = model.open(dataclasses.replace(SETTINGS, **settings))
    return {answer.id: answer for batch in opened.batches(asked) for answer in batch}


def text_of(found: dict[str, Generation]) -> dict[str, tuple[str, int]]:
    return {name: (answer.text, answer.tokens) for name, answer in found.items()}


@pytest.fixture(scope="module")
def expected(world: Path, tokenizer: tuple[str, int]) -> dict[str, dict[str, str]]:
    """What each adapter alone answers, by torchtune's own LoRA layers."""
    torch.manual_seed(4)
    plain = randomised(mini.mini_internvl(tokenizer[1], decoder="qwen2", **SIZES), 0.2)
    transform = mini.mini_internvl_transform(tokenizer[0], image_size=16, patch_size=4)
    found = {}
    for name in (*TASKS, "all"):
        model = alone(plain, read_peft(world / name, plain.family))
        generator = Generator(model, transform, batch_size=1, max_new_tokens=6)
        found[name] = {answer.id: answer.text for answer in generator(requests())}
    return found


def test_a_router_gives_each_question_its_adapter_or_the_fallback(world, tokenizer, expected) -> None:
    found = answers(backend(world, tokenizer), requests())
    for request in requests():
        task = request.sample.meta["task"]
        adapter = task if task in TASKS else "all"
        notes = found[request.id].notes
        assert notes["adapter"] == adapter and notes["route"] == (task if task in TASKS else "classification")
        assert notes["score"] == pytest.approx(0.9 if task in TASKS else 0.4)
        assert found[request.id].text == expected[adapter][request.id]
    assert len({text[request.id] for text in expected.values() for request in requests()}) > 20


def test_above_every_score_the_fallback_answers_all(world, tokenizer, expected) -> None:
    found = answers(backend(world, tokenizer, threshold=0.95), requests())
    assert {answer.notes["adapter"] for answer in found.values()} == {"all"}
    assert {name: answer.text for name, answer in found.items()} == expected["all"]
    own = {name: str(world / name) for name in TASKS}
    base = answers(backend(world, tokenizer, threshold=0.95, fallback=None, adapters=own), requests())
    assert {answer.notes["adapter"] for answer in base.values()} == {"base"}


@pytest.mark.parametrize("builder", ["mini_internvl", "lora_mini_internvl", "qlora_mini_internvl"])
def test_merged_weights_answer_as_the_mixed_batch(world, tokenizer, builder) -> None:
    wide = answers(backend(world, tokenizer, builder), requests())
    merged = answers(backend(world, tokenizer, builder, mode="merged"), requests())
    assert text_of(wide) == text_of(merged) and len(wide) == 11
    assert {name: answer.notes for name, answer in wide.items()} == {n: a.notes for n, a in merged.items()}
    for name, answer in wide.items():
        assert answer.scores == pytest.approx(merged[name].scores, abs=1e-4)
    assert any(answer.scores for answer in wide.values())


def test_the_oracle_takes_the_task_of_the_row(world, tokenizer, expected) -> None:
    found = answers(backend(world, tokenizer, mode="oracle", router=None), requests())
    for request in requests():
        task = request.sample.meta["task"]
        adapter = task if task in TASKS else "all"
        assert found[request.id].notes == {"route": task, "score": None, "adapter": adapter}
        assert found[request.id].text == expected[adapter][request.id]


def test_one_adapter_or_the_base_answers_all(world, tokenizer, expected) -> None:
    found = answers(backend(world, tokenizer, mode="single", adapter="counting"), requests())
    assert {name: answer.text for name, answer in found.items()} == expected["counting"]
    base = answers(backend(world, tokenizer, mode="single", adapter="base"), requests())
    assert {answer.notes["adapter"] for answer in base.values()} == {"base"}
    assert text_of(base) != text_of(found)


def test_without_a_router_each_row_names_its_adapter(world, tokenizer, expected) -> None:
    asked = requests(4)
    asked[1] = dataclasses.replace(asked[1], notes={"adapter": "all"})
    asked[2] = dataclasses.replace(asked[2], sample=dataclasses.replace(asked[2].sample, meta={"adapter": "counting"}))
    refused: list[str] = []
    model = backend(world, tokenizer, router=None)
    found = answers(model, asked, on_error=lambda request, error: refused.append(str(error)))
    assert {name: answer.text for name, answer in found.items()} == {
        "r1": expected["all"]["r1"], "r2": expected["counting"]["r2"],
    }  # fmt: skip
    assert len(refused) == 2 and "request 'r0': without a router its row must name its adapter" in refused[0]
    with pytest.raises(DataError, match="meta.adapter, one of classification, counting, detection, all, base"):
        answers(model, asked)


def test_requests_that_are_done_are_not_routed(world, tokenizer, expected) -> None:
    model = backend(world, tokenizer)
    opened = model.open(SETTINGS)
    found = [answer for batch in opened.batches(requests(), done={"r0", "r5"}) for answer in batch]
    assert {answer.id for answer in found} == {f"r{i}" for i in range(11)} - {"r0", "r5"}
    assert [len(block) for block in opened.assignment.router.asked] == [6, 3]


def test_an_empty_question_is_refused(world, tokenizer) -> None:
    asked = requests(2)
    asked[0] = dataclasses.replace(asked[0], sample=Sample("r0", ("wide-1",), (Message("user", "<image> \n"),)))
    with pytest.raises(DataError, match="request 'r0': its question is empty"):
        answers(backend(world, tokenizer), asked)
    refused: list[str] = []
    found = answers(backend(world, tokenizer), asked, on_error=lambda r, error: refused.append(r.id))
    assert (list(found), refused) == (["r1"], ["r0"])


def test_a_row_without_a_task_has_no_oracle(world, tokenizer) -> None:
    asked = [dataclasses.replace(requests(1)[0], sample=dataclasses.replace(requests(1)[0].sample, meta={}))]
    with pytest.raises(DataError, match="request 'r0': its row has no meta.task, which mode oracle needs"):
        answers(backend(world, tokenizer, mode="oracle"), asked)


def test_a_router_without_one_of_the_tasks_is_refused(world, tokenizer) -> None:
    router = Component(_component_="tests.routing.test_backend.Words", labels=["classification", "detection"])
    with pytest.raises(ConfigError, match="does not know the task 'counting'"):
        backend(world, tokenizer, router=router).open(SETTINGS)
    backend(world, tokenizer, router=router, mode="oracle").open(SETTINGS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapters": {}}, "adapters is empty"),
        ({"adapters": {"base": "x"}}, "cannot be named 'base'"),
        ({"adapters": {"all": "nowhere"}}, "adapters.all: nowhere holds no adapter_config.json"),
        ({"fallback": "mt"}, "the fallback 'mt' is not among the adapters all, classification"),
        ({"mode": "single"}, "give both or neither"),
        ({"adapter": "all"}, "give both or neither"),
        ({"mode": "single", "adapter": "mt"}, "backend.adapter 'mt' is none of"),
        ({"batch_size": 0}, "must be at least 1"),
        ({"threshold": -0.1}, "threshold at least 0"),
    ],
)
def test_options_that_cannot_work_are_refused_at_once(world, tokenizer, options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        backend(world, tokenizer, **options)


@pytest.mark.parametrize("mode", ["batch", "merged"])
def test_an_adapter_of_another_base_is_refused_and_named(world, tokenizer, tmp_path, mode) -> None:
    def opened(folder: Path) -> None:
        backend(world, tokenizer, adapters={"all": str(folder)}, router=None, mode=mode).open(SETTINGS)

    wider = make_adapter(tmp_path / "wider", tokenizer[1], 2, None, embed_dim=192)
    with pytest.raises(ModelError, match="adapter 'all'.*128"):
        opened(wider)
    deeper = make_adapter(tmp_path / "deeper", tokenizer[1], 2, None, decoder_layers=2)
    with pytest.raises(ModelError, match="adapter 'all'"):
        opened(deeper)
    torch.manual_seed(9)
    other = mini.mini_internvl(tokenizer[1], decoder="qwen2", **SIZES)
    save_hf(other.state_dict(), other.family, tmp_path / "other")
    twin = make_adapter(tmp_path / "twin", tokenizer[1], 2, str(tmp_path / "other"))
    with pytest.raises(ModelError, match=r"adapter 'all' .*trained on other base weights .*other"):
        opened(twin)
    opened(make_adapter(tmp_path / "hub", tokenizer[1], 2, "OpenGVLab/InternVL3-8B"))


def test_an_adapter_whose_rank_differs_from_its_config_is_refused(world, tokenizer, tmp_path) -> None:
    folder = make_adapter(tmp_path / "adapter", tokenizer[1], 3, None)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "r": 4}))
    for mode in ("batch", "merged"):
        with pytest.raises(ModelError, match="adapter 'all'"):
            backend(world, tokenizer, adapters={"all": str(folder)}, router=None, mode=mode).open(SETTINGS)


def test_the_identity_covers_the_content_of_base_adapters_and_router(world, tokenizer, tmp_path) -> None:
    first = backend(world, tokenizer).identity()
    assert first == backend(world, tokenizer, batch_size=2).identity()
    assert json.loads(json.dumps(first)) == first
    files = load_file(world / "all" / "adapter_model.safetensors")
    (tmp_path / "all").mkdir()
    save_file({k: v + 0.001 for k, v in files.items()}, tmp_path / "all" / "adapter_model.safetensors")
    (tmp_path / "all" / "adapter_config.json").write_bytes((world / "all" / "adapter_config.json").read_bytes())
    changed = {name: str((tmp_path if name == "all" else world) / name) for name in (*TASKS, "all")}
    for options in (
        {"adapters": changed}, {"threshold": 0.3}, {"fallback": None}, {"mode": "merged"}, {"mode": "oracle"},
        {"router": Component(_component_="tests.routing.test_backend.Words", labels=[*TASKS, "more"])},
    ):  # fmt: skip
        assert backend(world, tokenizer, **options).identity() != first, options


def test_the_router_is_loaded_once(world, tokenizer) -> None:
    model = backend(world, tokenizer)
    model.identity()
    assert model.assignment().router is model.open(SETTINGS).assignment.router  # type: ignore[attr-defined]


def test_making_the_backend_opens_no_model(world, tokenizer, monkeypatch) -> None:
    monkeypatch.setattr("medtune.routing.backend.load_base", lambda *a, **k: pytest.fail("loaded"))
    monkeypatch.setattr("medtune.routing.backend.load_router", lambda *a: pytest.fail("loaded"))
    with pytest.raises(MedtuneError):
        backend(world, tokenizer, adapters={"all": "nowhere"})
    assert backend(world, tokenizer).scores and not backend(world, tokenizer).remote
