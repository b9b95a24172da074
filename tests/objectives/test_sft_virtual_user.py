"""`sft` with a virtual user: who speaks, the loss of a batch, whole runs, and gradients of the image encoder's LoRA."""

import json
import pickle
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from medtune.config import instantiate
from medtune.data.randomness import sample_rng
from medtune.data.sample import IMAGE_TAG, VIRTUAL_USER, Message, Sample
from medtune.data.training_set import TrainingSet
from medtune.errors import ConfigError
from medtune.objectives.base import Stage
from medtune.objectives.sft import SFT
from medtune.objectives.sft_virtual_user import VirtualUserTurns, later_questions
from tests.objectives.tiny_vitask import batch_of, close, family, loss_and_gradients
from tests.runs import SFT as RUN
from tests.runs import largest_difference, launch, losses, tiny, weights
from tests.tiny_task import write_task

TALK = [
    ("user", "What is it?"),
    ("assistant", "A bar."),
    ("user", "Is it thin?"),
    ("assistant", "Yes."),
    ("user", "Red?"),
    ("assistant", "No, it is black."),
]


def sample(turns: list[tuple[str, str]] = TALK, images: int = 1, name: str = "s") -> Sample:
    return Sample(name, tuple(f"{name}{i}.png" for i in range(images)), tuple(Message(*turn) for turn in turns))


def roles(found: Sample) -> list[str]:
    return [message.role for message in found.messages]


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    rows = [sample(TALK[: 2 + 2 * (number % 3)], name=f"t{number}").to_dict() for number in range(9)]
    rows.append(sample(TALK, images=0, name="text").to_dict())
    folder = tmp_path_factory.mktemp("talks")
    return SimpleNamespace(source=instantiate(write_task(folder, rows)), config=write_task(folder, rows))


def test_the_papers_sum_lets_a_virtual_user_speak_in_every_later_turn() -> None:
    found = VirtualUserTurns(1.0)(sample(), random.Random(0))
    assert roles(found) == ["user", "assistant", VIRTUAL_USER, "assistant", VIRTUAL_USER, "assistant"]
    assert [m.content for m in found.messages] == [text for _, text in TALK]


@pytest.mark.parametrize(
    ("turns", "images", "places"),
    [
        (TALK, 1, [2, 4]),
        (TALK[:2], 1, []),
        (TALK, 0, []),
        ([("system", "S."), *TALK], 1, [3, 5]),
        ([("assistant", "Look."), *TALK[2:]], 1, [3]),
        ([*TALK[:2], ("user", " "), ("assistant", "Go on."), *TALK[4:]], 1, [4]),
        ([("user", f"{IMAGE_TAG} What?"), TALK[1], ("user", f"And {IMAGE_TAG}?"), *TALK[3:]], 2, [4]),
    ],
    ids=["later", "single", "no image", "system", "assistant first", "empty", "shows an image"],
)
def test_turns_that_a_virtual_user_may_speak(turns: Any, images: int, places: list[int]) -> None:
    assert later_questions(sample(turns, images)) == places


def test_each_later_turn_is_drawn_for_the_sample_and_the_epoch_alone() -> None:
    method = pickle.loads(pickle.dumps(SFT(virtual_user="sampled", sq_r=0.3).sample_transform()))
    drawn = {(seed, epoch, i): roles(method(sample(), sample_rng(seed, epoch, i)))
             for seed in (0, 1) for epoch in range(20) for i in range(50)}  # fmt: skip
    assert drawn == {key: roles(method(sample(), sample_rng(*key))) for key in reversed(drawn)}
    shares = [sum(found[place] == VIRTUAL_USER for found in drawn.values()) / len(drawn) for place in (2, 4)]
    assert shares == pytest.approx([0.3, 0.3], abs=0.03)
    assert all(found[0] == "user" for found in drawn.values())
    assert len({tuple(found) for (_, _, i), found in drawn.items() if i == 0}) == 4, "another draw in each epoch"


def by_hand(talks: Any, model: Any, transform: Any, method: SFT, chosen: list[int]) -> tuple[float, float, int, int]:
    """L_vq and L_qa from full logits, one conversation and one turn at a time, and their tokens."""
    sums, counts = {VIRTUAL_USER: 0.0, "assistant": 0.0}, {VIRTUAL_USER: 0, "assistant": 0}
    for index in chosen:
        one = talks.source[index]
        shown = method.sample_transform()(one, sample_rng(3, 0, index))
        row = transform.collate([transform(shown, talks.source.open_images(one))])
        features = model.encode(row["vision"])
        log_probs = model.logits(model.hidden(row["tokens"], features, vision_mask=row["vision_mask"]))
        log_probs = log_probs[0].log_softmax(-1)
        tokens, end = row["tokens"][0].tolist(), 0
        for message in shown.messages:
            words = transform.encode(message.content)
            start = next(at for at in range(end, len(tokens)) if tokens[at : at + len(words)] == words)
            end = start + len(words)
            assert message.role == "user" or tokens[end] in transform.stop_ids
            if message.role in sums:
                for place in range(start, end + 1):  # the words and the token that ends them
                    sums[message.role] -= log_probs[place - 1, tokens[place]].item()
                counts[message.role] += end + 1 - start
    return sums[VIRTUAL_USER], sums["assistant"], counts[VIRTUAL_USER], counts["assistant"]


@pytest.mark.parametrize("form", ["sum", "sampled"])
@pytest.mark.parametrize("name", ["cross-attention", "internvl", "llava"])
def test_a_batch_is_the_equation_turn_by_turn(talks: SimpleNamespace, name: str, form: Any) -> None:
    chosen = [2, 0, 1, 9, 5]
    model, transform = family(name)
    method = SFT(chunk_tokens=4, virtual_user=form)
    with torch.no_grad():
        l_vq, l_qa, questions, answers = by_hand(talks, model, transform, method, chosen)
    output, _ = loss_and_gradients(model, method, batch_of(talks, method, transform, chosen))
    assert l_vq > 0 and questions > 0
    assert output.loss_sum.item() == pytest.approx(l_vq + l_qa, rel=1e-6)
    assert output.metrics["asking_loss"].item() == pytest.approx(l_vq, rel=1e-6)
    assert output.metrics["answering_loss"].item() == pytest.approx(l_qa, rel=1e-6)
    assert output.weight.item() == questions + answers and output.metrics["asked_share"].item() == questions


def test_a_batch_without_questions_logs_the_same_metrics(talks: SimpleNamespace) -> None:
    model, transform = family("internvl")
    plain, asking = SFT(), SFT(virtual_user="sum")
    batch = batch_of(talks, asking, transform, [0, 9])
    assert "asked" not in batch
    ours, gradients = loss_and_gradients(model, asking, batch)
    theirs, expected = loss_and_gradients(model, plain, batch)
    assert ours.loss_sum.item() == theirs.loss_sum.item()
    assert ours.metrics.keys() == {"asking_loss", "answering_loss", "asked_share"}
    assert ours.metrics["asking_loss"].item() == ours.metrics["asked_share"].item() == 0
    close(gradients, expected, 1e-7)


def test_no_epoch_makes_a_longer_row_than_the_measured_one(talks: SimpleNamespace) -> None:
    _, transform = family("llava")
    items = SFT(virtual_user="sampled").items(talks.source, None, Stage("train", ()))
    samples = TrainingSet(talks.source, items, transform, seed=3)
    for index in range(len(talks.source)):
        (row,) = items.measure(talks.source, index, sample_rng(3, 0, index), transform)
        lengths = [len(samples[(epoch, index, True)]["tokens"]) for epoch in range(12)]
        assert max(lengths) == row.tokens


def test_data_without_a_second_question_are_refused(tmp_path: Path) -> None:
    rows = [sample(TALK[:2], name="a").to_dict(), sample(TALK, images=0, name="b").to_dict()]
    asking = {**RUN["objective"], "virtual_user": "sum"}
    config = tiny(tmp_path / "run", **{**RUN, "dataset": write_task(tmp_path / "data", rows), "objective": asking})
    assert launch(config) == [2]
    error = (tmp_path / "run" / "error_0.txt").read_text()
    assert error.startswith("ConfigError: task: objective.virtual_user has nothing to learn")


@pytest.mark.parametrize("ratio", [0.0, 1.5])
def test_a_ratio_that_is_no_probability_is_refused(ratio: float) -> None:
    with pytest.raises(ConfigError, match="objective.sq_r is"):
        SFT(virtual_user="sampled", sq_r=ratio)


LLAVA = {
    "_component_": "medtune.models.mini.lora_mini_llava",
    "embed_dim": 16,
    "heads": 2,
    "vision_layers": 3,
    "decoder_layers": 2,
    "image_size": 16,
    "lora_attn_modules": ["q_proj", "k_proj", "v_proj", "output_proj"],
    "apply_lora_to_mlp": True,
    "lora_parts": {"decoder": {"rank": 4, "alpha": 8}, "vision": {"rank": 2, "alpha": 4}},
}
TRANSFORM = {"_component_": "medtune.models.mini.mini_llava_transform", "path": "${asset}", "image_size": 16}
STAGE_1 = {
    **RUN,
    "model": LLAVA,
    "transform": TRANSFORM,
    "objective": {**RUN["objective"], "virtual_user": "sampled"},
    "trainable": ["adapter.decoder", "adapter.vision", "projection"],
    "max_steps": 4,
}
RATES = {"adapter.vision": 5e-4, "projection": 2e-4}


@pytest.mark.parametrize("form", ["sum", "sampled"])
def test_lora_of_the_image_encoder_gets_gradients(talks: SimpleNamespace, form: Any) -> None:
    """The official code computes the encoder without gradients, so that its LoRA never trains."""
    torch.manual_seed(5)
    model = instantiate({**LLAVA, "vocab_size": 1024})
    transform = instantiate({**TRANSFORM, "path": str(Path("medtune/assets/mini_tokenizer").resolve())})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_b" in name:  # zero at the start, and then A has no gradient yet
                parameter.normal_(std=0.02)
    method = SFT(virtual_user=form)
    _, gradients = loss_and_gradients(model, method, batch_of(talks, method, transform, [2, 5, 8]))
    for part in ("encoder.", "decoder."):
        found = {name: g for name, g in gradients.items() if name.startswith(part) and "lora_" in name}
        assert found and all(gradient.abs().max() > 1e-8 for gradient in found.values()), part


def test_one_process_equals_two_and_both_losses_are_logged(tmp_path: Path, talks: SimpleNamespace) -> None:
    for world in (1, 2):
        config = tiny(tmp_path / str(world), **{**STAGE_1, "dataset": talks.config, "batch_size": 4 // world})
        config.learning_rates = RATES
        assert set(launch(config, world)) == {0}
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "1"), abs=1e-6)
    assert largest_difference(weights(tmp_path / "1"), weights(tmp_path / "2")) < 1e-6
    rows = [json.loads(line) for line in (tmp_path / "1" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "asking_loss" in row]
    assert steps and any(row["asked_share"] > 0 for row in steps)
    for row in steps:
        assert row["asking_loss"] + row["answering_loss"] == pytest.approx(row["loss"], abs=1e-6)
