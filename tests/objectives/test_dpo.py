"""One step of DPO: against its equation pair by pair, in both forms, with every reference; encodes counted."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medtune.data.sample import Message
from medtune.datasets import preference_dataset
from medtune.errors import ConfigError, DataError
from medtune.losses import log_probs as log_probs_module
from medtune.objectives.dpo import DPO
from medtune.objectives.dpo.items import last_answer, shared_beginning
from tests.objectives.tiny_dpo import KINDS, batch_of, bound, made, pair_rows, randomise, write_pairs

CHOSEN = [0, 2, 7, 13]  # short and long, wide pictures, and a prompt of several turns
NO = -100


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(folder)
    return folder


@pytest.fixture(params=KINDS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def plain_log_prob(model: Any, transform: Any, sample: Any, images: list, answer: str) -> Tensor:
    """The whole conversation alone, by full logits; only the last answer counts."""
    shown = replace(sample, messages=(*sample.messages[:-1], Message("assistant", answer)))
    row = transform.collate([{**transform(shown, images), "id": "x"}])
    hidden = model.hidden(row["tokens"], model.encode(row["vision"]), vision_mask=row["vision_mask"])
    logs, labels = model.logits(hidden)[0].double().log_softmax(-1), last_answer(row["labels"][0].tolist())
    return torch.stack([logs[at - 1, label] for at, label in enumerate(labels) if label != NO]).sum()


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}


def differ(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[key] - second[key]).abs().max()) for key in first)


@pytest.mark.parametrize("form", ["shared", "plain"])
def test_a_step_is_the_equation_pair_by_pair(name: str, form: str, pairs: Path) -> None:
    model, transform = made(name)
    reference = copy.deepcopy(model)
    randomise(reference, seed=6)
    objective = bound(model, transform, reference="companion", form=form)
    objective.attach({"reference": reference})
    batch = batch_of(pairs, objective, transform, CHOSEN)
    source = preference_dataset(str(pairs / "pairs.jsonl"), str(pairs))
    sums: dict[str, list[Tensor]] = {"chosen": [], "rejected": [], "r_chosen": [], "r_rejected": []}
    for index in CHOSEN:
        sample = source[index]
        images, answers = source.open_images(sample), (sample.messages[-1].content, sample.meta["rejected"])
        for net, prefix in ((model, ""), (reference, "r_")):
            for key, answer in zip(("chosen", "rejected"), answers, strict=True):
                sums[prefix + key].append(plain_log_prob(net, transform, sample, images, answer))
    c, r, rc, rr = (torch.stack(sums[key]) for key in ("chosen", "rejected", "r_chosen", "r_rejected"))
    expected = -F.logsigmoid(0.5 * ((c - rc.detach()) - (r - rr.detach()))).sum()
    # The companion's features are its own only if the encoder is trained, as it is here.
    found = objective(model, batch)
    assert found.loss_sum.item() == pytest.approx(expected.item(), abs=2e-5) and found.weight == 4
    assert found.metrics["logps/chosen"].item() == pytest.approx(c.sum().item(), abs=2e-5)
    assert found.metrics["rewards/rejected"].item() == pytest.approx(0.5 * (r - rr).sum().item(), abs=2e-5)
    assert abs(expected.item() - 4 * math.log(2)) > 5e-3
    ours, theirs = gradients(model, found.loss_sum), gradients(model, expected)
    assert differ(ours, theirs) < 5e-5


@pytest.mark.parametrize("trained", ["full", "lora", "lora_tower"])
def test_shared_and_plain_forms_have_the_same_gradients(name: str, trained: str, pairs: Path) -> None:
    model, transform = made(name, trained)
    reference = copy.deepcopy(model)
    if trained != "full":
        randomise(model, adapters=True)
    found = []
    for form in ("shared", "plain"):
        objective = bound(model, transform, reference="companion", form=form, beta=0.1)
        objective.attach({"reference": reference})
        output = objective(model, batch_of(pairs, objective, transform, CHOSEN))
        found.append((output, gradients(model, output.loss_sum / 4)))
    (ours, one), (theirs, other) = found
    assert ours.loss_sum.item() == pytest.approx(theirs.loss_sum.item(), abs=1e-6)
    assert {k: v.item() for k, v in ours.metrics.items()} == pytest.approx(
        {k: v.item() for k, v in theirs.metrics.items()}, abs=1e-5
    )
    assert differ(one, other) < 1e-6 and max(float(g.abs().max()) for g in one.values()) > 1e-2


@contextmanager
def counted(*models: Any) -> Iterator[dict[str, int]]:
    """Images that the encoders read and tokens that the decoders read."""
    counts = {"images": 0, "tokens": 0}

    def images(_: Any, arguments: tuple, keywords: dict[str, Any]) -> None:
        given = arguments[0] if arguments else keywords["images"]
        counts["images"] += given.shape[0] * (given.shape[1] if given.dim() > 4 else 1)

    def tokens(_: Any, arguments: tuple) -> None:
        counts["tokens"] += arguments[0].numel()

    handles = [model.encoder.register_forward_pre_hook(images, with_kwargs=True) for model in models]
    handles += [model.decoder.tok_embeddings.register_forward_pre_hook(tokens) for model in models]
    yield counts
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize(
    ("trained", "reference", "encodes"),
    [
        ("lora", "adapters_off", 1),
        ("lora", "companion", 1),
        ("lora", "precomputed", 1),
        ("lora_tower", "adapters_off", 2),
        ("lora_tower", "companion", 2),
        ("lora_tower", "precomputed", 1),
        ("full", "companion", 2),
    ],
)
@pytest.mark.parametrize("form", ["shared", "plain"])
def test_images_are_encoded_once_for_each_model_with_an_encoder_of_its_own(
    trained: str, reference: str, encodes: int, form: str, name: str, pairs: Path, tmp_path: Path
) -> None:
    model, transform = made(name, trained)
    other = copy.deepcopy(model)
    cache = {"reference_cache": str(tmp_path)} if reference == "precomputed" else {}
    objective = bound(model, transform, reference=reference, form=form, **cache)
    objective.attach({"reference": other} if reference == "companion" else {})
    square = [0, 1, 3]  # one tile each, so that a tile is an image
    batch = batch_of(pairs, objective, transform, square)
    if reference == "precomputed":
        batch["precomputed"] = {"log_probs": torch.zeros(3, 2, dtype=torch.float64)}
    with counted(model, other) as counts:
        objective(model, batch).loss_sum.backward()
    assert counts["images"] == encodes * 3
    per_model = counts["tokens"] // (1 if reference == "precomputed" else 2)
    real = int(batch["padding"].sum())
    assert real <= per_model == batch["padding"].numel()


def test_the_shared_form_reads_a_prompt_once(pairs: Path) -> None:
    model, transform = made("llava")
    sizes = {}
    for form in ("shared", "plain"):
        batch = batch_of(pairs, bound(model, transform, reference="companion", form=form), transform, CHOSEN)
        sizes[form] = int(batch["padding"].sum())
    prompts = [batch_of(pairs, bound(model, transform, form="shared"), transform, [index]) for index in CHOSEN]
    assert sizes["plain"] - sizes["shared"] == sum(batch["mask"]["prefix"] for batch in prompts)


@pytest.mark.parametrize("reference", ["adapters_off", "companion"])
def test_the_reference_is_the_base_and_has_no_gradient(name: str, reference: str, pairs: Path) -> None:
    """With trained adapters in the tower too; dropout of the adapters does not reach the reference."""
    model, transform = made(name, "lora_tower", dropout=0.5)
    base = copy.deepcopy(model)
    objective = bound(model, transform, reference=reference)
    randomise(model, adapters=True)
    model.train()
    objective.attach({"reference": base.eval()} if reference == "companion" else {})
    batch = batch_of(pairs, objective, transform, CHOSEN)
    features = model.encode(batch["vision"])
    found = objective.reference.log_probs(objective.form, model, base, batch, features, 3)
    with torch.no_grad():
        expected = objective.form.log_probs(base, batch, base.encode(batch["vision"]), 3)
    assert torch.equal(found, expected) and not found.requires_grad


@pytest.mark.parametrize("reference", ["adapters_off", "companion"])
def test_the_first_loss_is_ln_2(name: str, reference: str, pairs: Path) -> None:
    model, transform = made(name, "lora_tower")
    objective = bound(model, transform, reference=reference)
    objective.attach({"reference": copy.deepcopy(model)} if reference == "companion" else {})
    output = objective(model, batch_of(pairs, objective, transform, CHOSEN))
    assert output.loss_sum.item() / 4 == pytest.approx(math.log(2), abs=1e-6)


def test_no_tensor_holds_all_logits(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, transform = made("llava", "lora")
    seen: list[int] = []
    plain = model.logits
    monkeypatch.setattr(model, "logits", lambda states: seen.append(len(states)) or plain(states))
    objective = bound(model, transform)
    batch = batch_of(pairs, objective, transform, CHOSEN)
    objective(model, batch).loss_sum.backward()
    assert max(seen) == 3 and sum(seen) == 2 * int(batch["lengths"].sum())


def test_variants_of_the_loss_are_their_formulas(pairs: Path) -> None:
    model, transform = made("llava", "lora")
    reference = copy.deepcopy(model)
    randomise(model, adapters=True)

    def run(**arguments: Any) -> tuple[float, dict[str, float]]:
        objective = bound(model, transform, reference="companion", **arguments)
        objective.attach({"reference": reference})
        with torch.no_grad():
            output = objective(model, batch)
        return output.loss_sum.item(), {key: value.item() for key, value in output.metrics.items()}

    batch = batch_of(pairs, bound(model, transform, reference="companion"), transform, CHOSEN)
    with torch.no_grad():
        policy, frozen = (
            bound(net, transform, reference="companion").form.log_probs(net, batch, net.encode(batch["vision"]), 0)
            for net in (model, reference)
        )
    lengths = batch["lengths"].double()
    margin = (policy - frozen)[:, 0] - (policy - frozen)[:, 1]
    means = ((policy - frozen) / lengths)[:, 0] - ((policy - frozen) / lengths)[:, 1]
    smoothed = -0.9 * F.logsigmoid(0.5 * margin) - 0.1 * F.logsigmoid(-0.5 * margin)
    likelihood = (-policy[:, 0] / lengths[:, 0]).sum().item()
    assert run(label_smoothing=0.1)[0] == pytest.approx(smoothed.sum().item(), abs=1e-6)
    assert run(loss="ipo")[0] == pytest.approx(((margin - 1) ** 2).sum().item(), abs=1e-5)
    assert run(loss="ipo", mean_log_probs=True)[0] == pytest.approx(((means - 1) ** 2).sum().item(), abs=1e-5)
    without, metrics = run()
    assert "sft" not in metrics
    found, metrics = run(sft_weight=0.3)
    assert found == pytest.approx(without + 0.3 * likelihood, abs=1e-5)
    assert metrics["sft"] == pytest.approx(likelihood, abs=1e-5)


def test_a_blank_pair_has_no_weight(pairs: Path) -> None:
    model, transform = made("llava", "lora")
    reference = copy.deepcopy(model)
    randomise(model, adapters=True)
    objective = bound(model, transform, reference="companion")
    objective.attach({"reference": reference})
    batch, alone = (batch_of(pairs, objective, transform, chosen) for chosen in ([0, 1], [0]))
    batch["pairs"][1] = 0.0
    assert objective.weight(batch) == 1.0
    both, one = (objective(model, which) for which in (batch, alone))
    assert both.loss_sum.item() == pytest.approx(one.loss_sum.item(), abs=1e-6)
    for key, value in one.metrics.items():
        assert both.metrics[key].item() == pytest.approx(value.item(), abs=1e-5), key


def test_a_pair_counts_with_the_weight_of_its_row(tmp_path: Path) -> None:
    rows = pair_rows(2)
    rows[1]["weight"] = 0.1
    write_pairs(tmp_path, rows)
    model, transform = made("llava", "lora")
    objective = bound(model, transform)
    both, *alone = (batch_of(tmp_path, objective, transform, chosen) for chosen in ([0, 1], [0], [1]))
    randomise(model, adapters=True)
    outputs = [objective(model, batch) for batch in (both, *alone)]
    assert objective.weight(both) == outputs[0].weight.item() == pytest.approx(1.1)
    for value in ("loss_sum", "weight"):
        whole, *parts = (getattr(output, value).item() for output in outputs)
        assert whole == pytest.approx(sum(parts), abs=1e-6)


def test_a_model_with_trained_adapters_is_not_its_own_reference_without_them(name: str) -> None:
    model, transform = made(name, "lora")
    bound(model, transform)
    randomise(model, adapters=True)
    bound(model, transform, reference="companion")
    with pytest.raises(ConfigError, match="the run starts from trained adapters.*take reference=companion"):
        bound(model, transform)


def test_only_the_last_answer_is_supervised() -> None:
    assert last_answer([NO, 5, 6, NO, NO, 7, 8]) == [NO, NO, NO, NO, NO, 7, 8]
    assert last_answer([NO, 5, 6, NO, 7, 8, NO]) == [NO, NO, NO, NO, 7, 8, NO]
    assert last_answer([NO, NO]) == [NO, NO]


def test_what_two_conversations_share_ends_before_an_answer() -> None:
    assert shared_beginning(([1, 2, 3, 4], [NO, NO, 3, 4]), ([1, 2, 3, 5], [NO, NO, 3, 5])) == 2
    # a token that the tokenizer makes of the header's end and the answer's beginning belongs to the branch
    assert shared_beginning(([1, 2, 8, 4], [NO, NO, NO, 4]), ([1, 2, 9, 4], [NO, NO, NO, 4])) == 2
    assert shared_beginning(([1, 2], [NO, NO]), ([1, 2], [NO, NO])) == 1


@pytest.mark.parametrize(
    ("rejected", "said"),
    [
        (" red ", "both answers of the pair are the same to the model"),
        ("thin " * 300, r"\d+ tokens, the limit is"),
    ],
)
def test_a_bad_rejected_answer_is_found_before_training(rejected: str, said: str, name: str, tmp_path: Path) -> None:
    rows = pair_rows(6)
    rows[5]["chosen"], rows[5]["rejected"] = "red", rejected
    write_pairs(tmp_path, rows)
    model, transform = made(name)
    transform.max_seq_len = 200
    objective = bound(model, transform)
    source = preference_dataset(str(tmp_path / "pairs.jsonl"), str(tmp_path))
    items = objective.items(source, None, objective.stages(("adapter",), 1, None)[0])
    with pytest.raises(DataError, match=f"line 6.*{said}"):
        items.measure(source, 5, None, transform)  # type: ignore[arg-type]
    with pytest.raises(DataError):
        items(source, 5, None, transform)  # type: ignore[arg-type]


def test_the_measured_row_is_the_packed_row(name: str, pairs: Path) -> None:
    model, transform = made(name)
    source = preference_dataset(str(pairs / "pairs.jsonl"), str(pairs))
    for form, rows in (("shared", 1), ("plain", 2)):
        objective = bound(model, transform, form=form)
        assert objective.rows == rows
        for index in range(len(source)):
            items = objective.items(source, None, objective.stages(("adapter",), 1, None)[0])
            sizes = items.measure(source, index, None, transform)  # type: ignore[arg-type]
            real = int(batch_of(pairs, objective, transform, [index])["padding"].sum())
            assert len(sizes) == rows and abs(sum(size.tokens for size in sizes) - real) <= 1


@pytest.mark.parametrize(
    ("trainable", "named"),
    [(("adapter", "projection"), "projection"), (("decoder",), "decoder"), (("adapter.decoder", "fusion"), "fusion")],
)
def test_switched_off_adapters_are_no_reference_if_anything_else_is_trained(
    trainable: tuple[str, ...], named: str
) -> None:
    with pytest.raises(ConfigError, match=rf"`trainable` names {named}; take reference=companion or reference=prec"):
        DPO().stages(trainable, 1, None)
    assert DPO().stages(("adapter.vision", "adapter.decoder"), 1, None)[0].trainable
    assert DPO(reference="companion").stages(trainable, 1, None)[0].trainable == trainable


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"reference": "none"}, "reference 'none' is not one of adapters_off, companion, precomputed"),
        ({"loss": "hinge"}, "loss 'hinge' is not one of"),
        ({"form": "packed"}, "form 'packed' is not one of shared, plain"),
        ({"beta": 0}, "beta must be above 0"),
        ({"label_smoothing": 0.5}, r"label_smoothing in \[0, 0.5\)"),
        ({"loss": "ipo", "label_smoothing": 0.1}, "label_smoothing belongs to loss sigmoid"),
        ({"mean_log_probs": True}, "mean_log_probs belongs to loss ipo"),
        ({"sft_weight": -1.0}, "sft_weight at least 0"),
        ({"reference_weights": "a"}, "reference_weights belongs to reference companion"),
        ({"reference_cache": "a"}, "needs reference_cache"),
        ({"reference": "precomputed"}, "needs reference_cache"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DPO(**arguments)


def test_features_of_the_policy_are_not_those_of_other_weights(pairs: Path) -> None:
    model, transform = made("llava", "lora")
    objective = bound(model, transform, reference="companion", reference_weights="elsewhere")
    objective.attach({"reference": copy.deepcopy(model)})
    batch = batch_of(pairs, objective, transform, [0])
    batch["features"] = model.encode(batch.pop("vision"))
    with pytest.raises(ConfigError, match="the reference has weights of its own"):
        objective(model, batch)


def test_the_head_runs_once_for_each_token_with_a_frozen_head(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of a frozen head is taken in the forward pass; a trained one runs twice."""
    calls: list[str] = []
    for kind in ("_Precomputed", "_Recomputed"):
        plain = getattr(log_probs_module, kind)
        monkeypatch.setattr(plain, "forward", _noting(plain.forward, calls, kind))
    for trained in ("lora", "full"):
        model, transform = made("llava", trained)
        objective = bound(model, transform, reference="companion")
        objective.attach({"reference": copy.deepcopy(model)})
        objective(model, batch_of(pairs, objective, transform, [0, 1])).loss_sum.backward()
    assert calls == ["_Precomputed", "_Recomputed"]


def _noting(function: Any, calls: list[str], kind: str) -> Any:
    def noted(*arguments: Any) -> Any:
        calls.append(kind)
        return function(*arguments)

    return staticmethod(noted)
