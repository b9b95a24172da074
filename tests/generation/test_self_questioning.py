"""Self-questioning: the images, the prompts, what is kept and what is dropped, and the same texts in any batch."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from medtune.data.sample import VIRTUAL_USER, Message, Sample
from medtune.errors import ConfigError, DataError
from medtune.evaluation.prediction import Prediction, write_predictions
from medtune.generation.engine.answers import EngineAnswers
from medtune.generation.engine.continuous import Engine
from medtune.generation.engine.generator import Generator
from medtune.generation.engine.sampling import Sampling
from medtune.generation.self_questioning.output import by_picture, write_candidates
from medtune.generation.self_questioning.pictures import Chosen, Picture, choose_pictures
from medtune.generation.self_questioning.prompts import Prompts, answer_id, description_id, every_id, question_id
from medtune.generation.self_questioning.run import Questioner
from medtune.generation.self_questioning.settings import Answer, Ask, Describe, Settings
from medtune.generation.self_questioning.sift import Sifted, Written, same_text
from medtune.models.mini import mini_transform, mini_vlm
from tests.generation.conftest import PictureSource, Setup, randomised
from tests.models.tiny_early import tiny_early_transform, tiny_early_vlm

DRAWN = Sampling(temperature=1.2, top_k=60, top_p=0.95, seed=3)
SETTINGS = Settings(Describe("What?", 9), Ask(3, None, 7, DRAWN), Answer(6, DRAWN, (40, 42)))
PICTURES = [Picture("a", ("square-1",)), Picture("b", ("wide-2",)), Picture("c", ("square-3", "tall-4"))]


class Rows:
    """Rows in memory; a row that is an error raises it."""

    name = "rows"

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        row = self.rows[index]
        if isinstance(row, DataError):
            raise row
        return Sample(row[0], tuple(row[1:]), (Message("user", "?"),))


def refuse(name: str, error: DataError) -> None:
    raise error


def test_each_picture_is_taken_once_under_its_first_row() -> None:
    source: Any = Rows([("1", "x"), ("2", "y"), ("3", "x"), ("4",), ("5", "x", "y")])
    chosen = choose_pictures(source, None, 0, refuse)
    assert chosen.pictures == [Picture("1", ("x",)), Picture("2", ("y",)), Picture("5", ("x", "y"))]
    assert chosen.counts == {"rows": 5, "rows_without_image": 1, "images": 3, "chosen": 3}


def test_a_random_choice_depends_on_the_seed_alone_and_keeps_the_order() -> None:
    source: Any = Rows([(str(i), f"{i}.png") for i in range(200)])
    picks = [[int(p.id) for p in choose_pictures(source, 20, seed, refuse).pictures] for seed in (0, 1, 0)]
    assert picks[0] == picks[2] != picks[1] and picks[0] == sorted(picks[0]) and len(set(picks[0])) == 20
    assert max(picks[0]) > 150, "not the first ones"
    assert len(choose_pictures(source, 500, 0, refuse).pictures) == 200


def test_unreadable_rows_are_told_and_rows_without_images_alone_are_refused() -> None:
    told: list[str] = []
    source: Any = Rows([DataError("broken"), ("2", "y")])
    found = choose_pictures(source, None, 0, lambda name, error: told.append(name))
    assert [p.id for p in found.pictures] == ["2"] and told == ["rows[0]"]
    with pytest.raises(ConfigError, match="rows: no row shows an image"):
        choose_pictures(Rows([("1",)]), None, 0, refuse)  # type: ignore[arg-type]


def test_the_three_prompts() -> None:
    prompts, picture = Prompts(SimpleNamespace(), SETTINGS), PICTURES[0]  # type: ignore[arg-type]
    first = prompts.describe(picture)
    assert first.sample == Sample("a/description", ("square-1",), (Message("user", "What?"),))
    assert (first.max_new_tokens, first.sampling) == (9, None)
    asked = prompts.ask(picture, "A cell.")
    assert [request.id for request in asked] == [f"a/question/{place}" for place in range(3)]
    opened = (Message("user", "What?"), Message("assistant", "A cell."), Message(VIRTUAL_USER, ""))
    assert all(request.sample.messages == opened and request.sampling == DRAWN for request in asked)
    answers = prompts.answer(picture, 2, "Big?")
    assert [request.id for request in answers] == ["a/question/2/answer/40", "a/question/2/answer/42"]
    assert all(request.sample.messages == (Message("user", "Big?"),) for request in answers)
    assert [request.sampling.seed for request in answers if request.sampling] == [40, 42]
    plain = Settings(SETTINGS.describe, Ask(1, "Ask me."), SETTINGS.answer)
    (request,) = Prompts(SimpleNamespace(), plain).ask(picture, "A cell.")  # type: ignore[arg-type]
    assert request.sample.messages[-1] == Message("user", "Ask me.")


def texts(**given: str | tuple[str, bool]) -> dict[str, Written]:
    """Texts of picture a: d, q0, q1, ... and a0_40, ...; a bare text was ended by the policy."""
    names = {"d": description_id(PICTURES[0])}
    for place in range(3):
        names[f"q{place}"] = question_id(PICTURES[0], place)
        names |= {f"a{place}_{seed}": answer_id(PICTURES[0], place, seed) for seed in (40, 42)}
    pairs = {key: (value, True) if isinstance(value, str) else value for key, value in given.items()}
    return {names[key]: Written(*value) for key, value in pairs.items()}


GOOD = {"d": "A cell.", "q0": "Big?", "a0_40": "Yes.", "a0_42": "No."}


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({}, {}),
        ({"q1": "  BIG "}, {"duplicate question": 1}),
        ({"q1": "?!"}, {"empty question": 1}),
        ({"q1": ("How big is", False)}, {"question cut off": 1}),
        ({"q1": "What is <image>?"}, {"question with an image tag": 1}),
        ({"q1": "Red?", "a1_40": "", "a1_42": "x"}, {"empty answer": 1}),
        ({"q1": "Red?", "a1_40": "x", "a1_42": ("It is", False)}, {"answer cut off": 1}),
        ({"q1": "Red?", "a1_40": "Yes,  it is.", "a1_42": "yes, it is"}, {"identical answers": 1}),
        ({"q1": "Red?", "a1_40": "x"}, {"prompt that the model could not read": 1}),
    ],
    ids=lambda value: next(iter(value), "nothing") if isinstance(value, dict) else None,
)
def test_what_is_dropped_and_counted(changes: dict[str, Any], reasons: dict[str, int]) -> None:
    sifted = Sifted()
    settings = Settings(SETTINGS.describe, Ask(1 + any(key.startswith("q") for key in changes)), SETTINGS.answer)
    rows = sifted.candidates(PICTURES[0], texts(**GOOD, **changes), settings)
    assert [row["id"] for row in rows] == ["a/question/0"] and dict(sifted.dropped) == reasons
    assert rows[0]["answers"] == ["Yes.", "No."] and rows[0]["images"] == ["square-1"]
    assert rows[0]["messages"] == [{"role": "user", "content": "Big?"}]
    assert rows[0]["meta"]["description"] == "A cell." and rows[0]["meta"]["seeds"] == [40, 42]
    Sample.from_dict({key: value for key, value in rows[0].items() if key != "answers"}, "candidates.jsonl")


@pytest.mark.parametrize("given", [{}, {"d": " "}], ids=["unreadable", "empty"])
def test_an_image_without_a_description_has_no_candidates(given: dict[str, str]) -> None:
    sifted = Sifted()
    written = {name: Written(one.text.strip(), one.stopped) for name, one in texts(**given).items()}
    assert sifted.candidates(PICTURES[0], written, SETTINGS) == []
    assert dict(sifted.dropped) == {"image without a description": 1}


def test_a_description_that_is_cut_off_still_gives_context() -> None:
    settings = Settings(SETTINGS.describe, Ask(1), SETTINGS.answer)
    assert Sifted().candidates(PICTURES[0], texts(**{**GOOD, "d": ("A cel", False)}), settings)


@pytest.mark.parametrize(("one", "other"), [("Is it BIG ?", "is it big"), ("A\n b.", "a b")])
def test_texts_that_count_as_equal(one: str, other: str) -> None:
    assert same_text(one) == same_text(other)


def test_ids_of_texts_never_meet() -> None:
    pictures = [Picture(name, ("x",)) for name in ("a", "a/question/0", "a/description", "a/question/0/answer/40")]
    ids = Counter(name for picture in pictures for name in every_id(picture, SETTINGS))
    assert set(ids.values()) == {1} and len(ids) == 4 * SETTINGS.texts_per_image


def test_rows_go_to_their_picture_whatever_its_name(tmp_path: Path) -> None:
    pictures = [Picture("a", ("x",)), Picture("a/question/0", ("y",)), Picture("none", ("z",))]
    ids = [name for picture in pictures[:2] for name in every_id(picture, SETTINGS)]
    write_predictions(tmp_path / "log.jsonl", [Prediction(name, "ask", "", name) for name in [*ids, "left over"]])
    found = {picture.id: set(one) for picture, one in by_picture(tmp_path / "log.jsonl", pictures, SETTINGS)}
    assert found == {"a": set(ids[:10]), "a/question/0": set(ids[10:]), "none": set()}


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: Ask(count=0), "ask.count must be at least 1"),
        (lambda: Describe(max_new_tokens=0), "describe.max_new_tokens must be at least 1"),
        (lambda: Answer(seeds=[4, 4]), "answer.seeds must be two different numbers"),
        (lambda: Answer(seeds=[4]), "answer.seeds must be two different numbers"),
    ],
)
def test_senseless_settings_are_refused(make: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        make()


@pytest.fixture(scope="module", params=["deep", "early"])
def setup(request: pytest.FixtureRequest, tokenizer: tuple[str, int]) -> Setup:
    """A policy with room for the sentence about the virtual user, which this tokenizer writes letter by letter."""
    torch.manual_seed(1)
    if request.param == "deep":
        sizes = {"image_size": 16, "embed_dim": 32, "vision_layers": 2, "max_num_tiles": 4, "max_seq_len": 320}
        model, std = mini_vlm(tokenizer[1], **sizes), 0.4
        transform: Any = mini_transform(tokenizer[0], image_size=16, max_num_tiles=4, max_seq_len=320)
    else:
        model, std = tiny_early_vlm(tokenizer[1], embed_dim=32, max_seq_len=320), 0.6
        transform = tiny_early_transform(tokenizer[0], max_seq_len=320)
    return Setup(randomised(model, std), transform, PictureSource())


def policy(setup: Any, **options: Any) -> Generator:
    return Generator(setup.model, setup.transform, max_new_tokens=6, **options)


def continuous(setup: Any, batch_size: int, share_prefix: bool = True) -> EngineAnswers:
    engine = Engine(setup.model, setup.transform, slots=batch_size, max_new_tokens=6, share_prefix=share_prefix)
    return EngineAnswers(engine)


def run(
    setup: Any, wave: int, known: dict[str, Written] | None = None, make: Any = policy, **options: Any
) -> tuple[Any, dict]:
    """The texts that a policy writes now, by id, and the policy."""
    generator, found = make(setup, **options), {}

    def write(row: Prediction) -> None:
        found[row.id] = Written(row.prediction, row.meta["stopped"])

    questioner = Questioner(Prompts(setup.source, SETTINGS), lambda: generator, write, known or {})
    questioner(PICTURES, wave)
    assert questioner.asked == len(found)
    if isinstance(generator, EngineAnswers):
        generator.engine.close()
    return generator, found


def test_texts_are_those_of_single_requests_in_any_batch(setup: Any) -> None:
    """Greedy descriptions and sampled questions and answers, one by one, without sharing and without a wave."""
    generator, found = run(setup, wave=3, batch_size=7)
    assert run(setup, wave=1, batch_size=2, share_prefix=False)[1] == found
    prompts, alone = Prompts(setup.source, SETTINGS), policy(setup, batch_size=1, share_prefix=False)
    for picture in PICTURES:
        (description,) = alone([prompts.describe(picture)])
        assert found[description.id] == Written(description.text.strip(), description.stopped)
        for request in prompts.ask(picture, description.text.strip()):
            (question,) = alone([request])
            assert found[question.id] == Written(question.text.strip(), question.stopped)
    assert len({found[question_id(picture, place)].text for picture in PICTURES for place in range(3)}) > 6
    images = {path for picture in PICTURES for path in picture.images}
    engine, same = run(setup, wave=3, make=continuous, batch_size=4)
    assert same == found == run(setup, wave=2, make=continuous, batch_size=1, share_prefix=False)[1]
    for one, features in ((generator, generator.features), (engine, engine.engine.features)):
        assert one.images_encoded == len(images), "once for all three steps"
        assert len(features) == 0 and not one.keeps_images


def test_prompts_with_a_common_beginning_read_it_once(setup: Any) -> None:
    plain, _ = run(setup, wave=3, batch_size=9, share_prefix=False)
    for make, read in ((policy, lambda one: one), (continuous, lambda one: one.engine)):
        shared, _ = run(setup, wave=3, make=make, batch_size=4 if make is continuous else 9)
        assert read(shared).tokens_read < 0.75 * plain.tokens_read


def test_known_texts_are_not_written_again(setup: Any) -> None:
    _, whole = run(setup, wave=2, batch_size=5)
    for kept in (1, 5, len(whole) - 2):
        known = dict(list(whole.items())[:kept])
        _, rest = run(setup, wave=2, known=known, batch_size=5)
        assert rest.keys().isdisjoint(known) and {**known, **rest} == whole
    questioner = Questioner(
        Prompts(setup.source, SETTINGS), lambda: pytest.fail("loaded for nothing"), lambda row: None, whole
    )
    questioner(PICTURES, 2)
    assert questioner.asked == questioner.images_encoded == 0


def test_the_same_log_gives_the_same_files(tmp_path: Path) -> None:
    rows = [Prediction(name, "ask", "", one.text, (), {"stopped": True}) for name, one in texts(**GOOD).items()]
    found = []
    for folder in (tmp_path / "1", tmp_path / "2"):
        folder.mkdir()
        write_predictions(folder / "log.jsonl", rows)
        chosen = Chosen(PICTURES[:1], {"chosen": 1})
        manifest = write_candidates(folder / "log.jsonl", chosen, SETTINGS, {"weights": "w"}, {"b": "broken"})
        assert json.loads((folder / "manifest.json").read_text()) == manifest
        assert manifest["counts"]["candidates"] == 1 and manifest["skipped"] == [{"id": "b", "reason": "broken"}]
        assert manifest["dropped"] == {"prompt that the model could not read": 2}
        found.append([(folder / name).read_bytes() for name in ("candidates.jsonl", "manifest.json")])
    assert found[0] == found[1]
