"""The data side of VITask: negatives, exemplars' pictures, and tasks that do not belong together."""

import hashlib
import pickle
import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from medtune.config import instantiate
from medtune.data.features import EncodedPicture
from medtune.data.sample import Message, Sample
from medtune.data.training_set import TrainingSet
from medtune.errors import DataError, ModelError
from medtune.models.classifier.tsm import LabelledSet
from medtune.objectives.base import keep_sample
from medtune.objectives.companions import load_companions
from medtune.objectives.vitask.items import NegativeIndex, VITaskItems, question_key, response_key
from medtune.objectives.vitask.objective import VITask
from tests.objectives.tiny_vitask import ALIGN, CONTRAST, batch_of, bound, close, family, loss_and_gradients
from tests.tiny_task import SETS, task_rows, write_task, write_tsm

# -- negatives --------------------------------------------------------------------------------------------------------


def test_negatives_have_the_same_question_and_another_response_each_equally_often(task: SimpleNamespace) -> None:
    usable = np.array([index for index in range(len(task.source)) if index != 7])
    index, sample = NegativeIndex(task.source, usable), task.source[0]
    drawn = Counter(index.draw(sample, random.Random(seed)) for seed in range(900))
    answers = {i: task.source[i].messages[-1].content for i in range(len(task.source))}
    expected = {i for i in usable if answers[i] in ("leaf green", "blue")}
    assert set(drawn) == expected and len(expected) == 8 - answers.get(7).startswith(("leaf", "blue"))
    assert max(drawn.values()) < 2 * min(drawn.values())
    assert index.draw(task.source[20], random.Random(0)) is None, "no other response to that question"
    stranger = Sample("x", ("x.png",), (Message("user", "Never asked."), Message("assistant", "red")))
    assert index.draw(stranger, random.Random(0)) is None


def test_the_first_and_the_last_of_a_question_may_be_drawn_for_every_response(task: SimpleNamespace) -> None:
    index = NegativeIndex(task.source, np.arange(len(task.source)))
    for own in range(5):
        sample = task.source[own]
        drawn = {index.draw(sample, random.Random(seed)) for seed in range(300)}
        expected = {
            i
            for i in range(len(task.source))
            if task.source[i].meta["set"] == sample.meta["set"]
            and task.source[i].messages[-1].content != sample.messages[-1].content
        }
        assert drawn == expected


def test_the_only_other_response_is_drawn() -> None:
    samples = [said(("user", "Which?"), ("assistant", answer)) for answer in ("red", "blue", "red")]
    index = NegativeIndex(samples, np.arange(3))
    assert [index.draw(samples[0], random.Random(seed)) for seed in range(5)] == [1] * 5
    assert {index.draw(samples[1], random.Random(seed)) for seed in range(20)} == {0, 2}


def camera(name: str, answer: str) -> Sample:
    one = said(("user", "Which grade?"), ("assistant", answer))
    return Sample(f"{name}/{answer}", one.images, one.messages, {"set": name})


def test_negatives_stay_within_their_set_where_two_sets_have_one_instruction_and_the_key_says_so() -> None:
    samples = [camera(name, answer) for name in ("retina", "idrid") for answer in ("0", "1", "2") for _ in range(4)]
    free, kept = NegativeIndex(samples, np.arange(24)), NegativeIndex(samples, np.arange(24), within_set=True)
    for own in (0, 9, 23):
        drawn = {
            name: [samples[index.draw(samples[own], random.Random(seed))] for seed in range(200)]
            for name, index in (("free", free), ("kept", kept))
        }
        others = sum(one.meta["set"] != samples[own].meta["set"] for one in drawn["free"])
        assert 60 < others < 140, "half of the negatives are of the other camera"
        assert {one.meta["set"] for one in drawn["kept"]} == {samples[own].meta["set"]}
        assert all(one.messages[-1] != samples[own].messages[-1] for one in drawn["kept"])


def test_rows_of_another_set_are_no_negatives_in_a_batch_either() -> None:
    _, transform = family("internvl")
    picture = Image.new("RGB", (16, 16))
    shown = [camera("retina", "0"), camera("idrid", "1"), camera("idrid", "0")]
    source = SimpleNamespace(__len__=lambda: 3, open_images=lambda sample: [picture], name="s")
    for within, expected in ((False, [True, True, False]), (True, [False, True, False])):
        items = VITaskItems(keep_sample, None, "roll", None, within)
        made = [items(_Listed(shown, source), at, random.Random(0), transform) for at in range(3)]
        assert items.collate(made, transform)["contrasted"].tolist() == expected


class _Listed(list):
    def __init__(self, samples: list[Sample], source: SimpleNamespace) -> None:
        super().__init__(samples)
        self.open_images, self.name = source.open_images, source.name


def test_a_sample_without_a_set_is_refused_where_negatives_must_stay_within_one() -> None:
    held = [camera("retina", "0"), said(("user", "Which grade?"), ("assistant", "1"))]
    samples = _Listed(held, SimpleNamespace(open_images=None, name="s"))
    with pytest.raises(DataError, match="names no set"):
        NegativeIndex(samples, np.arange(2), within_set=True)
    assert NegativeIndex(samples, np.arange(2)).draw(samples[0], random.Random(0)) == 1


def test_an_item_is_a_function_of_seed_epoch_and_index(task: SimpleNamespace) -> None:
    model, transform = family("internvl")
    objective = bound(task, model, transform)
    items = objective.items(task.source, np.arange(len(task.source)), CONTRAST)
    copy = pickle.loads(pickle.dumps(items))
    pixels = []
    for maker, epoch in ((items, 0), (copy, 0), (items, 1), (items, 2)):
        item = TrainingSet(task.source, maker, transform, seed=3)[(epoch, 0, True)]
        assert item["negative"]["labels"] != [] and item["exemplar_pixels"].shape == (3, 16, 16)
        pixels.append(torch.cat(item["negative"]["images"]).mean().item())
    assert pixels[0] == pixels[1] and len(set(pixels[1:])) > 1


def test_the_keys_are_64_bits_of_blake2b_as_they_always_were() -> None:
    """Their order decides which negative a seed draws, so that a run that is resumed needs the same ones."""
    sample = said(("user", "ab"), ("assistant", " yes "), images=2)
    by_hand = b"\0\0\0\0\0\0\0\x012" + b"\0\0\0\0\0\0\0\x02ab"
    assert question_key(sample) == int.from_bytes(hashlib.blake2b(by_hand, digest_size=8).digest(), "big")
    by_hand = b"\0\0\0\0\0\0\0\x03yes"
    assert response_key(sample) == int.from_bytes(hashlib.blake2b(by_hand, digest_size=8).digest(), "big")


def said(*turns: tuple[str, str], images: int = 1) -> Sample:
    return Sample("x", ("x.png",) * images, tuple(Message(role, content) for role, content in turns))


def test_what_makes_two_questions_and_two_responses_the_same() -> None:
    """A negative fits the user's words and the number of images; it differs in the assistant's words."""
    plain = said(("user", "ab"), ("assistant", "yes"), ("user", "c"), ("assistant", "no"))
    guided = said(("system", "Be brief."), *((turn.role, turn.content) for turn in plain.messages))
    assert question_key(guided) == question_key(plain) and response_key(guided) == response_key(plain)
    assert question_key(said(("user", "ab"), images=2)) != question_key(said(("user", "ab")))
    assert question_key(said(("user", "a"), ("user", "bc"))) != question_key(said(("user", "ab"), ("user", "c")))
    others = said(("user", "ab"), ("assistant", "no"), ("user", "c"), ("assistant", "no"))
    assert question_key(others) == question_key(plain) and response_key(others) != response_key(plain)
    assert response_key(said(("assistant", " red\n"))) == response_key(said(("assistant", "red")))


def test_a_negative_that_would_be_too_long_is_none(task: SimpleNamespace) -> None:
    """A wide picture has more tiles: the conversation with it does not fit any more."""
    _, transform = family("internvl")
    index = NegativeIndex(task.source, np.arange(len(task.source)))
    items = VITaskItems(keep_sample, None, "sampled", index)
    transform.max_seq_len = len(transform(task.source[0], task.source.open_images(task.source[0]))["tokens"])
    found = set()
    for seed in range(12):
        drawn = index.draw(task.source[0], random.Random(seed))
        wide = task.source.open_images(task.source[drawn])[0].width > 16
        negative = items(task.source, 0, random.Random(seed), transform)["negative"]
        assert (negative is None) == wide
        found.add(wide)
    assert found == {True, False}


def test_known_features_stand_in_place_of_the_exemplars_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    features = {"features": torch.zeros(1, 2, 3), "own": torch.ones(1, 4)}
    items = VITaskItems(keep_sample, lambda image: pytest.fail("no pixels are needed"), None, None)
    monkeypatch.setattr(VITaskItems, "item", lambda *_: {"tokens": [1]})

    class Known(list):
        def open_images(self, sample: Sample) -> list[EncodedPicture]:
            return [EncodedPicture((16, 16), **features)]

    item = items(Known([said(("user", "a"))]), 0, random.Random(0), None)  # type: ignore[arg-type]
    assert torch.equal(item["exemplar_features"], features["own"]) and "exemplar_pixels" not in item


@pytest.mark.parametrize("passes", ["separate", "joint", "packed"])
def test_a_negative_with_another_response_is_refused(task: SimpleNamespace, passes: str) -> None:
    model, transform = family("internvl")
    objective = bound(task, model, transform, passes=passes)
    batch = batch_of(task, objective, transform)
    labels = batch["negative"]["labels"]
    row, column = labels.ne(-100).nonzero()[0].tolist()
    labels[row, column] += 1
    with pytest.raises(ModelError, match="different response tokens"):
        objective(model, batch)


def louder(sample: Sample, rng: random.Random) -> Sample:
    """A sample transform that rewrites each turn."""
    turns = tuple(Message(turn.role, turn.content.upper()) for turn in sample.messages)
    return Sample(sample.id, sample.images, turns, sample.meta)


def test_a_negative_is_the_transformed_conversation_with_other_images(task: SimpleNamespace) -> None:
    _, transform = family("llava")
    items = VITaskItems(louder, None, "sampled", NegativeIndex(task.source, np.arange(len(task.source))))
    item = items(task.source, 0, random.Random(4), transform)
    assert item["negative"]["tokens"] == item["tokens"] and item["negative"]["labels"] == item["labels"]
    assert "RED" in transform.decode([label for label in item["labels"] if label != -100])
    assert not torch.equal(item["negative"]["images"][0], item["images"][0])


def test_the_exemplar_is_of_the_last_of_several_images(task: SimpleNamespace, tmp_path: Path) -> None:
    """It stands behind the last image's tokens, so it must be that image's; the language model sees both."""
    rows = task_rows()
    for row in rows:
        row["images"] = [f"first-{row['id']}.png", *row["images"]]
    config = write_task(tmp_path, rows)
    for row in rows:
        Image.new("RGB", (16, 16), (0, 0, 0)).save(tmp_path / row["images"][0])
    source = instantiate(config)
    model, transform = family("internvl")
    objective = bound(task, model, transform)
    items = objective.items(source, np.arange(len(source)), CONTRAST)
    item = TrainingSet(source, items, transform, seed=3)[(0, 0, True)]
    first, last = source.open_images(source[0])
    pixels = objective.beside["tsm"].transform.pixels
    assert torch.equal(item["exemplar_pixels"], pixels(last)) and not torch.equal(pixels(first), pixels(last))
    assert len(item["images"]) == 2


def test_a_filler_has_no_weight_and_its_negative_none(task: SimpleNamespace) -> None:
    model, transform = family("internvl")
    objective = bound(task, model, transform)
    items = objective.items(task.source, np.arange(len(task.source)), CONTRAST)
    samples = TrainingSet(task.source, items, transform, seed=3)
    alone = items.collate([samples[(0, 0, True)]], transform)
    filled = items.collate([samples[(0, 0, True)], samples[(0, 20, False)], samples[(0, 1, False)]], transform)
    one, with_fillers = (loss_and_gradients(model, objective, batch) for batch in (alone, filled))
    assert one[0].loss_sum.item() == pytest.approx(with_fillers[0].loss_sum.item(), rel=1e-6)
    assert one[0].weight == with_fillers[0].weight and with_fillers[0].metrics["no_negative"].item() == 0
    close(one[1], with_fillers[1])
    for index in (0, 20):  # the second has no negative, but no token that lacks one either
        nothing = items.collate([samples[(0, index, False)]], transform)
        output, gradients = loss_and_gradients(model, objective, nothing)
        assert output.loss_sum.item() == 0.0 and output.weight.item() == output.metrics["no_negative"].item() == 0
        assert all(not gradient.any() for gradient in gradients.values())


def test_rolling_takes_the_next_row_where_it_fits(task: SimpleNamespace) -> None:
    model, transform = family("internvl")
    objective = bound(task, model, transform, negatives="roll")
    # red, green, bar, red, red again, wide blue; the row after the last is the first
    batch = batch_of(task, objective, transform, [0, 1, 3, 5, 0, 2])
    assert batch["partner"].tolist() == [1, 2, 3, 4, 5, 0]
    assert batch["contrasted"].tolist() == [True, False, False, False, False, False]
    assert "negative" not in batch and len(batch["vision"]["images"]) == 6
    alone = batch_of(task, objective, transform, [0])
    assert alone["contrasted"].tolist() == [False]
    assert objective(model, alone).metrics["crt"].item() == 0.0


def test_no_negatives_are_made_before_their_stage(task: SimpleNamespace) -> None:
    model, transform = family("internvl")
    objective = bound(task, model, transform, ALIGN)
    every = np.arange(len(task.source))
    items = objective.items(task.source, every, ALIGN)
    samples = TrainingSet(task.source, items, transform, seed=3)
    assert "negative" not in samples[(0, 0, True)]
    assert set(objective(model, items.collate([samples[(0, 0, True)]], transform)).metrics) == {"van", "ep", "rda"}
    objective.begin_stage(CONTRAST)
    assert "negative" not in samples[(0, 0, True)], "items that were made belong to their stage"
    assert "negative" in samples.with_items(objective.items(task.source, every, CONTRAST))[(0, 0, True)]


def test_data_with_one_response_for_each_question_are_refused(task: SimpleNamespace, tmp_path: Path) -> None:
    rows = [row for row in task_rows() if row["messages"][1]["content"] in ("red", "thin")]
    source = instantiate(write_task(tmp_path, rows))
    objective = bound(task, *family("llava"))
    with pytest.raises(DataError, match=r"task: every instruction has one response only.*objective.beta to 0"):
        objective.items(source, np.arange(len(source)), CONTRAST)
    assert bound(task, *family("llava"), beta=0.0).items(source, np.arange(len(source)), CONTRAST)


# -- what cannot be ---------------------------------------------------------------------------------------------------


def test_a_task_specific_model_of_another_task_is_refused_with_both_names(
    task: SimpleNamespace, tmp_path: Path
) -> None:
    other = write_tsm(tmp_path / "other", {"moles": LabelledSet("multi_class", ("naevus", "melanoma"))})
    fewer = write_tsm(tmp_path / "fewer", {**SETS, "blobs": LabelledSet("multi_class", ("red", "blue"))})
    for path, named in ((other, ("'blobs'", "'moles'")), (fewer, ("3 classes", "2"))):
        objective = bound(task, *family("llava"), tsm=path)
        with pytest.raises(DataError, match="task: objective.tsm does not belong to these data") as caught:
            objective.items(task.source, np.arange(len(task.source)), CONTRAST)
        assert all(name in str(caught.value) for name in named)


def test_samples_that_name_no_task_are_taken(task: SimpleNamespace, tmp_path: Path) -> None:
    source = instantiate(write_task(tmp_path, [{**row, "meta": {}} for row in task_rows()]))
    assert bound(task, *family("llava")).items(source, np.arange(len(source)), CONTRAST)


@pytest.mark.parametrize("meta", [{"classes": ["other", "than these"]}, {"set": "blobs"}, {"set": "x", "classes": "y"}])
def test_a_sample_names_its_task_by_both_keys_or_not_at_all(task: SimpleNamespace, tmp_path: Path, meta: dict) -> None:
    source = instantiate(write_task(tmp_path, [{**row, "meta": meta} for row in task_rows()]))
    assert bound(task, *family("llava")).items(source, np.arange(len(source)), CONTRAST)


def test_a_sample_without_an_image_is_refused(task: SimpleNamespace, tmp_path: Path) -> None:
    rows = task_rows()
    rows[0]["images"] = []
    source = instantiate(write_task(tmp_path, rows))
    model, transform = family("internvl")
    items = bound(task, model, transform).items(source, np.arange(len(source)), CONTRAST)
    with pytest.raises(DataError, match=r"task.jsonl, line 1 .*no exemplar.*objective.exemplar to none"):
        TrainingSet(source, items, transform, seed=3)[(0, 0, True)]


def test_a_folder_without_a_task_specific_model_is_refused_unless_a_run_is_planned(tmp_path: Path) -> None:
    model, transform = family("llava")
    objective = VITask(tsm=str(tmp_path / "absent"))
    with pytest.raises(ModelError, match="absent holds no task-specific model"):
        load_companions(objective.companions())
    problems: list[str] = []
    objective.attach(load_companions(objective.companions(), problems))
    assert len(problems) == 1 and problems[0].startswith("the task-specific model is not here: ")
    objective.bind(model.to("meta"), transform, 0)
    assert objective.parts()["connector"]
