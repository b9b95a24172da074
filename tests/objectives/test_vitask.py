"""VITask: Eq. 7 sample by sample on each kind of model, negatives, stages, what is computed once and what never."""

import pickle
import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medtune.config import instantiate
from medtune.data.randomness import sample_rng
from medtune.data.sample import Message, Sample
from medtune.data.training_set import TrainingSet
from medtune.errors import DataError, ModelError
from medtune.models.tsm import LabelledSet, load_tsm
from medtune.objectives.base import Stage
from medtune.objectives.vitask import VITask
from medtune.objectives.vitask_items import NegativeIndex
from tests.tiny_task import SETS, task_rows, write_task, write_tsm

TOKENIZER = Path(__file__).parents[2] / "medtune" / "assets" / "mini_tokenizer"
SIZES = {"embed_dim": 16, "vision_layers": 1, "decoder_layers": 2, "image_size": 16}
BUILDERS = {"cross-attention": "vlm", "internvl": "internvl", "llava": "llava"}
CHOSEN = [0, 3, 2, 4, 20]  # blobs, bars, a wide blob, bars, and the lone row without a negative
CONTRAST = Stage("contrast", ())


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("task")
    return SimpleNamespace(source=instantiate(write_task(folder / "data")), tsm=write_tsm(folder / "tsm"))


def family(name: str) -> tuple[Any, Any]:
    """A model of random weights, and its transform, which cuts wide pictures into several tiles where it can."""
    kind = BUILDERS[name]
    torch.manual_seed(5)
    sizes = {**SIZES, "max_num_tiles": 2} if kind == "vlm" else SIZES
    model = instantiate({"_component_": f"medtune.models.mini.mini_{kind}", "vocab_size": 1024, **sizes})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    tiles = {} if name == "llava" else {"max_num_tiles": 2}
    path = {"vlm": "mini_transform"}.get(kind, f"mini_{kind}_transform")
    transform = instantiate(
        {"_component_": f"medtune.models.mini.{path}", "path": str(TOKENIZER), "image_size": 16, **tiles}
    )
    return model, transform


def bound(task: SimpleNamespace, model: Any, transform: Any, stage: Stage = CONTRAST, **arguments: Any) -> VITask:
    arguments = {"tsm": task.tsm, "alpha": 0.7, "beta": 1.3, "chunk_tokens": 3, **arguments}
    objective = VITask(**arguments)
    objective.bind(model, transform, seed=2)
    if objective.connector is not None:
        with torch.no_grad():
            objective.connector.linear_2.weight.mul_(20)  # so that an exemplar changes an untrained model's answer
    objective.begin_stage(stage)
    return objective


def batch_of(task: SimpleNamespace, objective: VITask, transform: Any, chosen: list[int] = CHOSEN) -> dict[str, Any]:
    items = objective.items(
        task.source, np.arange(len(task.source)), CONTRAST if objective.contrast else Stage("align", ())
    )
    samples = TrainingSet(task.source, items, transform, seed=3)
    return items.collate([samples[(0, index, True)] for index in chosen], transform)


def loss_and_gradients(model: Any, objective: VITask, batch: dict[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    named = {**dict(model.named_parameters()), **dict(objective.named_parameters())}
    for parameter in named.values():
        parameter.grad = None
    output = model.compute(objective, batch)
    output.loss_sum.backward()
    return output, {name: p.grad for name, p in named.items() if p.grad is not None}


def close(first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.allclose(value, second[name], rtol=tolerance, atol=tolerance), name


def one_row(task: SimpleNamespace, transform: Any, index: int, images_of: int | None = None) -> dict[str, Any]:
    """A sample alone, with its own images or another's."""
    sample, other = task.source[index], task.source[index if images_of is None else images_of]
    shown = Sample(sample.id, other.images, sample.messages)
    return transform.collate([transform(shown, task.source.open_images(other))])


def response_logits(
    model: Any, row: dict[str, Any], exemplars: Tensor | None = None, image_id: int = 0, variant: str = "cls"
) -> tuple[Tensor, Tensor]:
    """Full logits of one sample cut to its response; exemplars are put behind the last image token by hand."""
    tokens, labels, sees = row["tokens"][0].tolist(), row["labels"][0].tolist(), row["vision_mask"]
    features, replace = model.encode(row["vision"]), None
    if exemplars is not None:
        at = len(tokens) - tokens[::-1].index(image_id)
        count = len(exemplars)
        tokens[at:at], labels[at:at] = [9] * count, [-100] * count
        where = torch.tensor([[at <= place < at + count for place in range(len(tokens))]])
        if sees.dim() == 3:
            sees = torch.cat([sees[:, :at], *[sees[:, at - 1 : at]] * count, sees[:, at:]], dim=1)
        if variant == "replace":
            sees = torch.zeros_like(sees)
            kept = [i for i, token in enumerate(tokens) if sees.dim() == 3 or token != image_id]
            tokens, labels, where = [tokens[i] for i in kept], [labels[i] for i in kept], where[:, kept]
        replace = where, exemplars
    hidden = model.hidden(torch.tensor([tokens]), features, vision_mask=sees, replace=replace)
    places = [place for place, label in enumerate(labels) if label != -100]
    asked = torch.tensor([labels[place] for place in places])
    return model.logits(hidden)[0, [place - 1 for place in places]], asked


def by_hand(task: SimpleNamespace, model: Any, transform: Any, objective: VITask, variant: str) -> dict[str, Tensor]:
    """The four losses as the equations have them, one sample and one pass at a time."""
    tsm, sums = load_tsm(task.tsm), {name: torch.zeros(()) for name in ("van", "ep", "rda", "crt")}
    index = NegativeIndex(task.source, np.arange(len(task.source)))
    for chosen in CHOSEN:
        sample = task.source[chosen]
        plain, asked = response_logits(model, one_row(task, transform, chosen))
        pixels = tsm.transform.pixels(task.source.open_images(sample)[0]).unsqueeze(0)
        features = tsm.features(pixels, "cls" if variant == "cls" else "all")
        rows = objective.connector(features)
        prompted, _ = response_logits(model, one_row(task, transform, chosen), rows, transform.image_id, variant)
        p, q = plain.log_softmax(-1), prompted.log_softmax(-1)
        places = torch.arange(len(asked))
        sums["van"] = sums["van"] - p[places, asked].sum()
        sums["ep"] = sums["ep"] - q[places, asked].sum()
        sums["rda"] = sums["rda"] + (p.exp() * (p - q.detach())).sum()
        other = index.draw(sample, sample_rng(3, 0, chosen))
        if other is not None:
            negative, _ = response_logits(model, one_row(task, transform, chosen, images_of=other))
            sums["crt"] = sums["crt"] - (plain - negative).log_softmax(-1)[places, asked].sum()
    return sums


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("cross-attention", "cls"),
        ("cross-attention", "replace"),
        ("internvl", "cls"),
        ("internvl", "all"),
        ("internvl", "replace"),
        ("llava", "cls"),
    ],
)
def test_a_batch_gives_the_equations_sample_by_sample(task: SimpleNamespace, name: str, variant: str) -> None:
    model, transform = family(name)
    objective = bound(task, model, transform, exemplar=variant)
    batch = batch_of(task, objective, transform)
    expected = by_hand(task, model, transform, objective, variant)
    total = expected["van"] + expected["ep"] + 0.7 * expected["rda"] + 1.3 * expected["crt"]
    total.backward()
    named = {**dict(model.named_parameters()), **dict(objective.named_parameters())}
    theirs = {name: parameter.grad.clone() for name, parameter in named.items() if parameter.grad is not None}
    output, ours = loss_and_gradients(model, objective, batch)
    assert output.loss_sum.item() == pytest.approx(total.item(), rel=1e-6)
    for term, value in expected.items():
        assert output.metrics[term].item() == pytest.approx(value.item(), rel=2e-6, abs=5e-6), term
        assert value.item() > 1e-3
    assert any("connector" in one for one in ours)
    close({key: value for key, value in ours.items() if key in theirs}, theirs)
    assert all(not value.any() for key, value in ours.items() if key not in theirs)
    lone_tokens = one_row(task, transform, CHOSEN[-1])["labels"].ne(-100).sum()
    assert output.metrics["no_negative"].item() == lone_tokens > 0
    assert output.weight.item() == batch["labels"].ne(-100).sum()


RUNS = [
    ("cross-attention", "sampled", "cls", "contrast"),
    ("internvl", "sampled", "cls", "contrast"),
    ("internvl", "roll", "all", "contrast"),
    ("internvl", "sampled", "replace", "contrast"),
    ("internvl", "sampled", "all", "align"),
    ("llava", "roll", "cls", "contrast"),
]


@pytest.mark.parametrize(("name", "negatives", "variant", "stage"), RUNS)
def test_passes_give_the_same_however_they_run(
    task: SimpleNamespace, name: str, negatives: str, variant: str, stage: str
) -> None:
    model, transform = family(name)
    found = []
    for passes in ("separate", "joint", "packed"):
        objective = bound(
            task, model, transform, Stage(stage, ()), passes=passes, negatives=negatives, exemplar=variant
        )
        found.append(loss_and_gradients(model, objective, batch_of(task, objective, transform, [0, 1, 5, 20])))
    (output, gradients), *others = found
    for other, others_gradients in others:
        assert other.loss_sum.item() == pytest.approx(output.loss_sum.item(), rel=1e-6)
        assert all(other.metrics[name].item() > 0 for name in output.metrics if name != "no_negative")
        close(others_gradients, gradients)


def test_image_tokens_of_both_passes_are_run_once(task: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    model, transform = family("internvl")
    seen: list[int] = []
    hidden = model.hidden
    monkeypatch.setattr(
        model,
        "hidden",
        lambda tokens, *a, **k: seen.append(tokens.eq(model.image_id).sum().item()) or hidden(tokens, *a, **k),
    )
    for passes in ("packed", "joint"):
        objective = bound(task, model, transform, Stage("align", ()), passes=passes)
        objective(model, batch_of(task, objective, transform, [0, 2, 4]))
    assert seen[1] == 2 * seen[0] > 0
    model.decoder.max_seq_len = 60
    objective = bound(task, model, transform, Stage("align", ()))
    objective(model, batch_of(task, objective, transform, [0, 2, 4]))
    assert seen[2] == seen[1], "what would be too long for the model is not packed"


def test_the_connectors_gradient_is_that_of_ep_alone_unless_the_teacher_learns_too(task: SimpleNamespace) -> None:
    model, transform = family("internvl")

    def connector_gradients(**arguments: Any) -> dict[str, Tensor]:
        objective = bound(task, model, transform, Stage("align", ()), **arguments)
        _, gradients = loss_and_gradients(model, objective, batch_of(task, objective, transform))
        return {name: value for name, value in gradients.items() if name.startswith("connector")}

    without, detached = connector_gradients(alpha=0.0), connector_gradients(alpha=5.0)
    close(without, detached)
    joint = connector_gradients(alpha=5.0, rda={"detach": False})
    assert any(not torch.allclose(joint[name], without[name], rtol=1e-3) for name in without)


def test_pictures_are_encoded_once_and_without_a_graph_where_nothing_of_the_encoder_trains(
    task: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, transform = family("internvl")
    objective = bound(task, model, transform)
    for parameter in model.encoder.parameters():
        parameter.requires_grad_(False)
    batch, seen = batch_of(task, objective, transform), Counter()
    tsm = objective._tsm[0]
    originals = {"vision": model.encode, "tsm": tsm.features, "decoder": model.hidden}

    def counted(name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Tensor:
            found = originals[name](*args, **kwargs)
            seen[name] += 1
            if name != "decoder":
                assert not found.requires_grad
                seen[f"{name} rows"] += len(found)
            return found

        return call

    for owner, attribute, name in ((model, "encode", "vision"), (tsm, "features", "tsm"), (model, "hidden", "decoder")):
        monkeypatch.setattr(owner, attribute, counted(name))
    output = objective(model, batch)
    output.loss_sum.backward()
    assert seen == {"vision": 1, "vision rows": 2 * len(CHOSEN), "tsm": 1, "tsm rows": len(CHOSEN), "decoder": 2}
    assert not any(p.requires_grad or p.grad is not None for p in tsm.parameters()) and not tsm.training


def test_features_that_are_given_are_not_computed(task: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    model, transform = family("llava")
    objective = bound(task, model, transform)
    batch = batch_of(task, objective, transform)
    plain = objective(model, batch).loss_sum.item()
    given = {
        **batch,
        "features": model.encode(batch["vision"]),
        "exemplar_features": objective.exemplar_features(batch),
    }
    monkeypatch.setattr(model, "encode", None)
    objective._tsm.clear()
    del given["vision"], given["exemplar_pixels"]
    assert objective(model, given).loss_sum.item() == plain


def test_the_task_specific_model_is_no_part_of_the_method(task: SimpleNamespace) -> None:
    objective = bound(task, *family("llava"))
    names = {"norm", "linear_1", "linear_2"}
    expected = {f"connector.{name}.{kind}" for name in names for kind in ("weight", "bias")}
    assert set(objective.state_dict()) == expected == set(dict(objective.named_parameters()))
    assert set(objective.parts()["connector"]) == expected
    objective.train()
    assert not objective._tsm[0].training


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
    nothing = items.collate([samples[(0, 0, False)]], transform)
    output, gradients = loss_and_gradients(model, objective, nothing)
    assert output.loss_sum.item() == 0.0 and output.weight.item() == 0
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
    align = Stage("align", ())
    objective = bound(task, model, transform, align)
    every = np.arange(len(task.source))
    items = objective.items(task.source, every, align)
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
        objective.bind(model, transform, 0)
    objective.bind(model.to("meta"), transform, 0)
    assert objective.missing and "the task-specific model is not here" in objective.missing
    assert objective.parts()["connector"]


def stage_table(**arguments: Any) -> list[tuple[str, tuple[str, ...], int, int | None]]:
    objective = VITask(**{"tsm": "x", **arguments})
    return [(s.name, s.trainable, s.epochs, s.steps) for s in objective.stages(("adapter",), 3, None)]


def test_stages() -> None:
    align, contrast = ("align", ("adapter", "connector"), 1, None), ("contrast", ("adapter",), 3, None)
    assert stage_table() == [align, contrast]
    assert stage_table(align_steps=7) == [(*align[:3], 7), contrast]
    assert stage_table(align_epochs=0) == stage_table(align_steps=0) == [contrast]
    assert stage_table(beta=0.0) == [align, contrast]
    assert stage_table(exemplar="none", alpha=0.0) == [("align", ("adapter",), 1, None), contrast]
    assert stage_table(exemplar="none", alpha=0.0, beta=0.0) == [("tune", ("adapter",), 3, None)]
    assert VITask(tsm="x", connector_learning_rate=0.2).stages((), 1, None)[0].learning_rates == {"connector": 0.2}


@pytest.mark.parametrize(
    "arguments",
    [
        {"exemplar": "patch"},
        {"rda": "joint"},
        {"rda": {"detach": "no"}},
        {"rda": {"detached": False}},
        {"negatives": "hard"},
        {"passes": "one"},
        {"alpha": -1.0},
        {"beta": -0.1},
        {"align_steps": -1},
        {"exemplar": "none"},
        {"tsm": None},
    ],
)
def test_impossible_values_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        VITask(**{"tsm": "x", **arguments})
