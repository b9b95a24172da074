"""Answers with exemplars: batched equals one by one equals a plain forward with the exemplar put in by hand."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medtune.errors import DataError, ModelError
from medtune.generation.engine.generator import Generator
from medtune.generation.exemplars import ExemplarSource
from medtune.models.classifier.tsm import load_tsm
from medtune.models.exemplars import ExemplarRecord, save_exemplars
from medtune.modules.exemplar import ExemplarConnector
from tests.tiny_task import write_tsm

WIDTH, DIM, CPU = 12, 32, torch.device("cpu")


@pytest.fixture
def source(tmp_path: Path) -> ExemplarSource:
    return make(tmp_path, "cls")


def make(folder: Path, exemplar: str) -> ExemplarSource:
    connector = ExemplarConnector(WIDTH, DIM, seed=3)
    with torch.no_grad():
        connector.linear_2.weight.mul_(8)
    save_exemplars(folder / "exemplar", connector, ExemplarRecord(exemplar, write_tsm(folder / "tsm")))
    return ExemplarSource(str(folder / "exemplar"))


def requests(setup):
    return [request for request in setup.requests() if request.sample.images]


def answers(setup, source, batch_size):
    exemplars = source.open(setup.transform, CPU) if source else None
    generator = Generator(setup.model, setup.transform, batch_size=batch_size, max_new_tokens=6, extension=exemplars)
    return {answer.id: answer for answer in generator(requests(setup))}


@torch.no_grad()
def first_logits(setup, source, request, exemplar):
    """Logits after the prompt, the exemplar's rows put in after the last image token by hand, unpadded."""
    transform, found = setup.transform, source.open(setup.transform, CPU)
    images = request.source.open_images(request.sample)
    item = transform(request.sample, images, inference=True)
    tsm = load_tsm(found_tsm(source))
    features = tsm.features(tsm.transform.pixels(images[-1])[None], "cls" if exemplar == "cls" else "all")
    rows, count = found.connector(features), features.shape[1]
    tokens = list(item["tokens"])
    place = max(i for i, token in enumerate(tokens) if token == transform.image_id) + 1
    batch = transform.collate([item])
    mask = batch["vision_mask"]
    tokens[place:place] = [transform.placeholder_id] * count
    where = torch.zeros(1, len(tokens), dtype=torch.bool)
    where[0, place : place + count] = True
    if mask.dim() == 3:
        mask = torch.cat([mask[:, :place], mask[:, place - 1 : place].expand(-1, count, -1), mask[:, place:]], dim=1)
    if exemplar == "replace":
        mask = torch.zeros_like(mask)
        if mask.dim() == 2:
            keep = [token != transform.image_id for token in tokens]
            tokens = [token for token, kept in zip(tokens, keep, strict=True) if kept]
            where = where[:, keep]
    hidden = setup.model.hidden(
        torch.tensor([tokens]), setup.model.encode(batch["vision"]), vision_mask=mask, replace=(where, rows)
    )
    return setup.model.logits(hidden[:, -1])[0]


def found_tsm(source):
    return str(Path(source.path).parent / "tsm")


@pytest.mark.parametrize("exemplar", ["cls", "all", "replace"])
def test_batched_answers_begin_as_a_plain_forward_does(setup, tmp_path, exemplar):
    source = make(tmp_path, exemplar)
    batched, single = answers(setup, source, 4), answers(setup, source, 1)
    for request in requests(setup):
        first = int(first_logits(setup, source, request, exemplar).argmax())
        expected = "" if first in setup.transform.stop_ids else setup.transform.decode([first])
        assert batched[request.id].text == single[request.id].text
        assert batched[request.id].text.startswith(expected.rstrip("\ufffd"))
        assert batched[request.id].scores == pytest.approx(single[request.id].scores, abs=2e-5, rel=1e-6)


def test_the_exemplar_changes_answers_and_scores(setup, source):
    without, with_them = answers(setup, None, 4), answers(setup, source, 4)
    moved = [one for one in requests(setup) if one.continuations]
    assert any(without[one.id].scores != pytest.approx(with_them[one.id].scores, abs=1e-3) for one in moved)


def test_another_task_specific_model_is_plugged_in(setup, source, tmp_path):
    other = write_tsm(tmp_path / "other")
    (file,) = Path(other).glob("*.safetensors")
    from safetensors.torch import load_file, save_file

    save_file({name: value * -1.5 for name, value in load_file(file).items()}, file)
    plugged = replace(source, tsm=other)
    own, new = answers(setup, source, 4), answers(setup, plugged, 4)
    moved = [one for one in requests(setup) if one.continuations]
    assert any(own[one.id].scores != pytest.approx(new[one.id].scores, abs=1e-3) for one in moved)
    assert source.identity() != plugged.identity()


def test_a_model_of_other_features_is_refused(setup, source, tmp_path):
    save_exemplars(tmp_path / "wide", ExemplarConnector(WIDTH + 1, DIM), ExemplarRecord("cls", found_tsm(source)))
    with pytest.raises(ModelError, match=f"width {WIDTH}.*reads {WIDTH + 1}"):
        ExemplarSource(str(tmp_path / "wide")).open(setup.transform, CPU)


def test_a_folder_without_exemplars_is_refused(tmp_path):
    with pytest.raises(ModelError, match="holds no exemplars.*VITask run"):
        ExemplarSource(str(tmp_path)).identity()


def test_a_prompt_without_an_image_has_no_exemplar(setup, source):
    with pytest.raises(DataError, match="without an image"):
        source.open(setup.transform, CPU).prepare(setup.request("a", "cell"), [], {})
