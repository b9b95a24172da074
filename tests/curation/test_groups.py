"""Groups of figures: features from files and models, k-means, the uniform choice of complex texts, and its files."""

import csv
import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file

from medtune.curation import choosing
from medtune.curation.choosing import Groups, choose_figures
from medtune.curation.features import ClipFeatures, Features, StoredFeatures, TimmFeatures, beside
from medtune.curation.figures import Figure
from medtune.curation.groups import chosen_uniformly, complexity, grouped, quotas
from medtune.curation.plot import directions
from medtune.errors import ConfigError, DataError, ModelError

RNG = np.random.default_rng(0)
CENTRES = np.array([[9.0, 0, 0], [0, 9, 0], [0, 0, 9]], dtype=np.float32)


def clouds(*sizes: int) -> np.ndarray:
    """Three clouds of points that k-means cannot mistake."""
    return np.concatenate(
        [centre + RNG.normal(0, 0.1, (size, 3)).astype(np.float32) for centre, size in zip(CENTRES, sizes, strict=True)]
    )


def figures(count: int) -> list[Figure]:
    return [
        Figure(f"f{n}", f"{n}.png", (), " ".join(f"word{i}" for i in range(n + 1)), ("word0",)) for n in range(count)
    ]


def test_clouds_are_groups_and_the_same_seed_gives_the_same_ones() -> None:
    table = clouds(5, 8, 3)
    found = grouped(table, 3, 0)
    assert [len(set(part)) for part in (found[:5], found[5:13], found[13:])] == [1, 1, 1] and len(set(found)) == 3
    assert (grouped(table, 3, 0) == found).all()


def test_more_groups_than_figures_or_than_different_features_are_an_error() -> None:
    with pytest.raises(ConfigError, match="groups.count is 5, and there are 4 figures"):
        grouped(clouds(2, 1, 1), 5, 0)
    with pytest.raises(ConfigError, match="have 2 different features"):
        grouped(np.repeat(CENTRES[:2], 4, axis=0), 3, 0)
    broken = clouds(2, 2, 2)
    broken[3, 1] = np.nan
    with pytest.raises(DataError, match="row 4 are not finite"):
        grouped(broken, 2, 0)


def test_repeated_words_do_not_make_a_text_complex() -> None:
    assert complexity("The knee, the KNEE.") == 2 < complexity("A tear of the meniscus.")


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.data())
def test_quotas_are_as_even_as_the_sizes_allow(sizes: list[int], data: Any) -> None:
    total = data.draw(st.integers(0, sum(sizes)))
    found = quotas(sizes, total, random.Random(0))
    assert sum(found) == total and all(0 <= count <= size for count, size in zip(found, sizes, strict=True))
    unfilled = [count for count, size in zip(found, sizes, strict=True) if count < size]
    assert not unfilled or max(found) - min(unfilled) <= 1


def test_the_choice_is_even_over_groups_and_among_the_complex_half_of_each() -> None:
    groups, scores = np.repeat([0, 1, 2], [40, 40, 2]), list(range(82))
    chosen = chosen_uniformly(groups, scores, 22, 0.5, 0)
    assert Counter(groups[chosen].tolist()) == {0: 10, 1: 10, 2: 2}
    assert all(row >= 20 for row in chosen if groups[row] == 0) and all(row >= 60 for row in chosen if groups[row] == 1)
    assert chosen != list(chosen_uniformly(groups, scores, 22, 0.5, 1)) and chosen == sorted(chosen)
    assert min(chosen_uniformly(groups, scores, 60, 1.0, 0)) < 20
    with pytest.raises(ConfigError, match="groups.size is 83, and there are 82"):
        chosen_uniformly(groups, scores, 83, 0.5, 0)


def test_directions_are_principal_components() -> None:
    table = RNG.normal(size=(50, 6)) * [1, 9, 1, 1, 4, 1]
    from sklearn.decomposition import PCA

    wanted = PCA(2).fit_transform(table)
    np.testing.assert_allclose(np.abs(directions(table)), np.abs(wanted), atol=1e-9)
    assert directions(table[:, :1]).shape == (50, 2)


def chosen(folder: Path, features: Any, count: int = 16, size: int = 6, **more: Any) -> list[Figure]:
    def refuse(name: str, error: DataError) -> None:
        raise error

    options = {
        "open_image": lambda figure: Image.new("RGB", (8, 8)),
        "refuse": refuse,
        "say": lambda text: None,
        **more,
    }
    groups = Groups(3, size, batch_size=4)
    return choose_figures(folder, figures(count), "sha", groups, features, **options)


def stored(tmp_path: Path, table: np.ndarray) -> StoredFeatures:
    np.save(tmp_path / "x.npy", table)
    return StoredFeatures(str(tmp_path / "x.npy"))


def test_a_choice_writes_its_groups_a_plot_and_the_figures(tmp_path: Path) -> None:
    found = chosen(tmp_path / "out", stored(tmp_path, clouds(6, 6, 4)))
    rows = list(csv.DictReader((tmp_path / "out/groups.csv").open()))
    assert [row["id"] for row in rows if row["chosen"] == "1"] == [figure.id for figure in found] and len(rows) == 16
    assert Counter(row["group"] for row in rows if row["chosen"] == "1") == {"0": 2, "1": 2, "2": 2}
    assert rows[4]["words"] == "5"
    with Image.open(tmp_path / "out/groups.png") as plot:
        assert plot.size == (1210, 550) and len(plot.convert("RGB").getcolors(1 << 20)) > 50
    lines = (tmp_path / "out/chosen.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [figure.id for figure in found]
    assert chosen(tmp_path / "out", StoredFeatures(str(tmp_path / "x.npy"))) == found


@pytest.mark.parametrize(("size", "name"), [(17, "size"), (2, "count")])
def test_too_few_figures_are_said_before_anything_is_encoded(size: int, name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"groups.{name} is"):
        chosen(tmp_path, Slow(), count=16 if name == "size" else 2, size=size)


class Slow(Features):
    """Counts what it encodes, and fails after so many figures."""

    looks = True

    def __init__(self, most: int = 1000) -> None:
        self.most, self.seen = most, []

    def identity(self) -> dict[str, Any]:
        return {"name": "slow"}

    def of(self, figures: Any, images: Any, rows: Any) -> np.ndarray:
        assert len(figures) == len(images) == len(rows) <= 4
        if len(self.seen) + len(rows) > self.most:
            raise KeyboardInterrupt
        self.seen += rows
        return np.array([[*CENTRES[row % 3], row] for row in rows], dtype=np.float32)


def test_a_killed_run_encodes_no_chunk_twice_and_other_features_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "CHUNK", 5)
    with pytest.raises(KeyboardInterrupt):
        chosen(tmp_path, Slow(most=12))
    rest = Slow()
    found = chosen(tmp_path, rest)
    assert rest.seen == list(range(10, 16)) and chosen(tmp_path, Slow(most=0)) == found
    with pytest.raises(ConfigError, match="features of other figures or of another model"):
        chosen(tmp_path, stored(tmp_path, clouds(6, 6, 4)))


def test_an_image_that_is_gone_is_left_out_of_the_groups(tmp_path: Path) -> None:
    def opened(figure: Figure) -> Image.Image:
        if figure.id in ("f1", "f15"):
            raise DataError("gone")
        return Image.new("RGB", (8, 8))

    refused: list[str] = []
    slow = Slow()
    chosen(tmp_path, slow, open_image=opened, refuse=lambda name, error: refused.append(name))
    assert refused == ["f1", "f15"] and slow.seen == [row for row in range(16) if row not in (1, 15)]
    rows = list(csv.DictReader((tmp_path / "groups.csv").open()))
    assert [row["id"] for row in rows] == [f"f{row}" for row in slow.seen]
    chosen(tmp_path, Slow(most=0), open_image=opened, refuse=lambda name, error: refused.append(name))
    assert refused[2:] == ["f1", "f15"], "a second start lists what the first one left out"


def test_stored_features_are_taken_by_order_or_by_id(tmp_path: Path) -> None:
    table = RNG.normal(size=(4, 3)).astype(np.float32)
    some = figures(4)[1:3]
    np.testing.assert_array_equal(stored(tmp_path, table).of(some, [], [1, 2]), table[1:3])
    save_arrays({"features": table}, tmp_path / "x.safetensors")
    (tmp_path / "ids.txt").write_text("f3\nf2\nf1\nf0\n")
    by_id = StoredFeatures(str(tmp_path / "x.safetensors"), str(tmp_path / "ids.txt"))
    np.testing.assert_array_equal(by_id.of(some, [], [1, 2]), table[[2, 1]])
    assert by_id.identity() != stored(tmp_path, table).identity()


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("short", "has 4 rows, and"), ("ids", "has 3 ids"), ("repeated", "3 different"), ("absent id", "'f9'"),
        ("flat", "must hold one table"), ("whole", "must hold one table"), ("no tensor", "no tensor 'features'"),
        ("absent", "cannot be read"), ("objects", "cannot be read"),
    ],
)  # fmt: skip
def test_stored_features_that_do_not_fit_are_said(case: str, said: str, tmp_path: Path) -> None:
    path, ids = tmp_path / "x.npy", tmp_path / "ids.txt"
    np.save(path, {"flat": np.zeros(4), "whole": np.zeros((4, 2), int)}.get(case, np.zeros((4, 2))))
    names = {"ids": "a\nb\nc", "repeated": "a\nb\nc\nc", "absent id": "a\nb\nc\nd"}.get(case)
    ids.write_text(names or "")
    if case == "no tensor":
        path = tmp_path / "x.safetensors"
        save_arrays({"other": np.zeros((4, 2))}, path)
    if case == "objects":
        np.save(path, np.array([{}, {}]), allow_pickle=True)
    if case == "absent":
        path = tmp_path / "none.npy"
    with pytest.raises(DataError, match=said):
        features = StoredFeatures(str(path), str(ids) if names else None)
        features.check(10)
        features.of(figures(10)[9:], [], [9])


@pytest.mark.parametrize("rows", [9, 11])
def test_a_table_of_another_number_of_figures_is_refused_because_its_rows_would_be_of_others(
    rows: int, tmp_path: Path
) -> None:
    features = stored(tmp_path, np.zeros((rows, 2), np.float32))
    with pytest.raises(DataError, match=f"has {rows} rows, and there are 10 figures"):
        features.check(10)
    features.check(rows)


def test_features_are_text_then_image_of_length_one_each() -> None:
    text, image = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 5.0, 12.0]])
    np.testing.assert_allclose(beside(text, image), [[0.6, 0.8, 0, 5 / 13, 12 / 13]], rtol=1e-6)


def test_a_timm_model_and_a_sentence_encoder_give_the_features_that_they_give_alone(tmp_path: Path) -> None:
    import timm
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    network = timm.create_model("resnet10t", pretrained=False).eval()
    save_file(network.state_dict(), tmp_path / "timm.safetensors")
    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, **{f"word{i}": i + 2 for i in range(9)}}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        tmp_path / "t"
    )
    shape = BertConfig(vocab_size=11, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    encoder = BertModel(shape).eval()
    encoder.save_pretrained(tmp_path / "t")
    features = TimmFeatures("resnet10t", str(tmp_path / "timm.safetensors"), str(tmp_path / "t"))
    pictures = [Image.effect_noise((40, 30), 50 + n).convert("RGB") for n in range(2)]
    both = features.of(figures(2), pictures, [0, 1])
    alone = np.concatenate([features.of([one], [shown], [0]) for one, shown in zip(figures(2), pictures, strict=True)])
    np.testing.assert_allclose(both, alone, atol=1e-5)  # padding does not change a text's mean
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network), is_training=False)
    with torch.inference_mode():
        seen = network.forward_head(network.forward_features(transform(pictures[0])[None]), pre_logits=True)
        read = encoder(torch.tensor([[2, 2]])).last_hidden_state.mean(1)  # "word0\nword0"
    np.testing.assert_allclose(both[0], beside(read, seen)[0], atol=1e-5)
    with pytest.raises(ModelError, match="does not fit timm's resnet18"):
        TimmFeatures("resnet18", str(tmp_path / "timm.safetensors"), str(tmp_path / "t"))._image_model  # noqa: B018


def test_clip_features_are_those_of_open_clip(tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    network, _, transform = open_clip.create_model_and_transforms("ViT-S-16", pretrained=None)
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, tmp_path / "c.safetensors")
    features = ClipFeatures("ViT-S-16", str(tmp_path / "c.safetensors"))
    picture = Image.effect_noise((40, 30), 50).convert("RGB")
    found = features.of(figures(1), [picture], [0])
    with torch.inference_mode():
        seen = network.eval().encode_image(transform(picture)[None], normalize=True)
        read = network.encode_text(open_clip.get_tokenizer("ViT-S-16")(["word0\nword0"]), normalize=True)
    np.testing.assert_allclose(found, torch.cat([read, seen], 1).numpy(), atol=1e-5)


def test_clip_models_are_local_and_without_pickle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for model, checkpoint, said in (
        ("hf-hub:microsoft/x", None, "nothing is downloaded"),
        ("ViT-B-16", None, "checkpoint is missing"),
        ("ViT-B-16", "x.pt", "must be a .safetensors file"),
    ):
        with pytest.raises(ConfigError, match=said):
            ClipFeatures(model, checkpoint)
    with pytest.raises(ConfigError, match="there is no file"):
        ClipFeatures("ViT-B-16", str(tmp_path / "x.safetensors")).identity()
    with pytest.raises(ConfigError, match="there is no model in the folder"):
        ClipFeatures(f"local-dir:{tmp_path}").identity()
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ConfigError, match=r"medtune\[curation\]"):
        ClipFeatures("ViT-B-16", "x.safetensors").of([], [], [])
