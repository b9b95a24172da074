"""VITask: Eq. 7 sample by sample on each kind of model, negatives, stages, what is computed once and what never."""

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
from medtune.models.classifier.tsm import load_tsm
from medtune.models.exemplars import ExemplarRecord, load_connector, load_record
from medtune.objectives.base import Stage
from medtune.objectives.vitask.items import NegativeIndex
from medtune.objectives.vitask.objective import VITask
from tests.objectives.tiny_vitask import CHOSEN, batch_of, bound, close, family, loss_and_gradients, one_row
from tests.tiny_task import task_rows, write_task


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


def test_rolled_negatives_are_the_next_rows_pictures(task: SimpleNamespace) -> None:
    """Six rows; which negative each has, and what CRT makes of it, by hand."""
    model, transform = family("internvl")
    chosen = [0, 1, 7, 3, 4, 6]  # red, green, blue, thin, thick, green
    partners = {0: 1, 1: 7, 3: 4, 6: 0}  # blue is followed by a bar, thick by a blob: no negative
    objective = bound(task, model, transform, negatives="roll", exemplar="none", alpha=0.0, tsm=None)
    expected = torch.zeros(())
    for own, other in partners.items():
        positive, asked = response_logits(model, one_row(task, transform, own))
        negative, _ = response_logits(model, one_row(task, transform, own, images_of=other))
        expected = expected - (positive - negative).log_softmax(-1)[torch.arange(len(asked)), asked].sum()
    output = objective(model, batch_of(task, objective, transform, chosen))
    assert output.metrics["crt"].item() == pytest.approx(expected.item(), rel=2e-6)
    without = sum(int(one_row(task, transform, own)["labels"].ne(-100).sum()) for own in (7, 4))
    assert output.metrics["no_negative"].item() == without


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


def test_answers_before_the_image_count_in_both_passes(task: SimpleNamespace, tmp_path: Path) -> None:
    """The picture comes in the second turn, so that the packed passes share a supervised answer."""
    rows = task_rows()
    for row in rows:
        question, answer = row["messages"]
        turns = [("user", "Are you there?"), ("assistant", "Yes."), ("user", f"<image>{question['content']}")]
        row["messages"] = [*({"role": role, "content": text} for role, text in turns), answer]
    source = instantiate(write_task(tmp_path, rows))
    other = SimpleNamespace(source=source, tsm=task.tsm)
    model, transform = family("internvl")
    found = []
    for passes in ("separate", "packed"):
        objective = bound(other, model, transform, Stage("align", ()), passes=passes)
        batch = batch_of(other, objective, transform, [0, 2, 5])
        found.append(loss_and_gradients(model, objective, batch))
    (plain, gradients), (packed, packed_gradients) = found
    image = batch["tokens"].eq(model.image_id).int().argmax(dim=1)
    assert bool((batch["labels"].ne(-100).int().argmax(dim=1) < image).all()), "an answer stands before the image"
    assert packed.loss_sum.item() == pytest.approx(plain.loss_sum.item(), rel=1e-6)
    assert packed.weight == plain.weight == batch["labels"].ne(-100).sum()
    close(packed_gradients, gradients)


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
    tsm = objective.beside["tsm"]
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
    objective.attach({})
    del given["vision"], given["exemplar_pixels"]
    assert objective(model, given).loss_sum.item() == plain


def test_the_task_specific_model_is_no_part_of_the_method(task: SimpleNamespace) -> None:
    objective = bound(task, *family("llava"))
    names = {"norm", "linear_1", "linear_2"}
    expected = {f"connector.{name}.{kind}" for name in names for kind in ("weight", "bias")}
    assert set(objective.state_dict()) == expected == set(dict(objective.named_parameters()))
    assert set(objective.parts()["connector"]) == expected
    objective.train()
    assert not objective.beside["tsm"].training


def test_what_a_cache_keeps_is_told_apart_by_variant_and_tsm(task: SimpleNamespace) -> None:
    """Class features must not serve a run that wants patches: a cache is refused when its settings differ."""
    model, transform = family("llava")
    pixels = torch.zeros(2, 3, 16, 16)
    found = {}
    for variant, shape in (("cls", (2, 1, 12)), ("all", (2, 4, 12)), ("replace", (2, 4, 12))):
        encoder = bound(task, model, transform, exemplar=variant).auxiliary_encoder()
        assert encoder is not None and encoder.weights == task.tsm
        assert encoder.features(pixels).shape == shape
        found[variant] = encoder.settings
    assert found["cls"] != found["all"] == found["replace"], "the same features may serve both"
    transform_settings = load_tsm(task.tsm).transform.settings()
    assert all(transform_settings.items() <= settings.items() for settings in found.values())
    assert bound(task, model, transform, exemplar="none", alpha=0.0).auxiliary_encoder() is None


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


def test_the_connectors_start_is_the_runs_seed(task: SimpleNamespace) -> None:
    model, transform = family("llava")
    starts = []
    for seed in (1, 1, 2):
        objective = VITask(tsm=task.tsm)
        objective.bind(model, transform, seed)
        starts.append(torch.cat([value.flatten() for value in objective.state_dict().values()]))
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])


@pytest.mark.parametrize("variant", ["cls", "all", "replace"])
def test_what_is_exported_says_how_exemplars_were_used(task: SimpleNamespace, variant: str, tmp_path: Path) -> None:
    objective = bound(task, *family("llava"), exemplar=variant)
    objective.export(tmp_path)
    assert load_record(tmp_path / "exemplar") == ExemplarRecord(variant, task.tsm)
    connector = load_connector(tmp_path / "exemplar", 12, task.tsm)
    for name, value in objective.connector.state_dict().items():
        assert torch.equal(connector.state_dict()[name], value)
    bound(task, *family("llava"), exemplar="none", alpha=0.0).export(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_rows_of_a_sample_that_memory_is_planned_for() -> None:
    assert VITask(tsm="x").rows == 3 and VITask(tsm="x", beta=0.0).rows == 2
    assert VITask(exemplar="none", alpha=0.0).rows == 2 and VITask(exemplar="none", alpha=0.0, beta=0.0).rows == 1


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
