"""The packaged configs: the same values as ever, described, shallow, and no part of one copied from another."""

import json
import typing
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from medtune.aliases import canonical
from medtune.config import composition as config_composition
from medtune.config import config_hash, load_config, to_plain
from medtune.config.composition import CONFIGS, compose, packaged_configs, read_yaml, resolve_path
from tests.recipe_modules import load_recipe

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden/composed_configs_d377d55.json").read_text())
"""Every config of commit d377d55, interpolations resolved; data lie in /MEDTUNE_DATA, the package in /MEDTUNE."""
FROM_THE_RECORD = ("protocols", "swapped", "limit", "seed")
"""What the evaluate configs repeated of predict's; it is read from the record of the predictions now."""
IMAGES_THEN, IMAGES_NOW = "/MEDTUNE_DATA/wbcatt/wbcatt_128.tar", "/MEDTUNE_DATA/wbcatt/images"
"""Models that were trained on the original images were asked on copies of 128 pixels; the miniature's still are."""
ASKED_ANEW = ("internvl2_2b", "llama3_2_vision_11b", "llava1_5", "openai_server", "transformers_local")
FILES = sorted(CONFIGS.glob("*/*.yaml"))
ACCURACIES_ALONE = ["protocols=[multiple_choice,open]", "swapped=[]"]


@pytest.fixture
def no_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths of no machine in particular."""
    monkeypatch.setenv("MEDTUNE_DATA", "/MEDTUNE_DATA")
    monkeypatch.setattr("medtune.config.PACKAGE", Path("/MEDTUNE"))


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_a_config_of_old_composes_to_the_same_values(name: str, no_machine: None) -> None:
    expected = canonical(GOLDEN[name])
    if name.startswith("evaluate/"):
        for key in FROM_THE_RECORD:
            del expected[key]
    if name in [f"predict/{model}" for model in ASKED_ANEW]:
        assert expected["questions"]["image_root"] == IMAGES_THEN
        expected["questions"]["image_root"] = IMAGES_NOW
    if name in ("prepare/wbcatt", "prepare/wbcatt_official"):
        assert expected["image_root"] == IMAGES_THEN
        expected["image_root"] = IMAGES_NOW
    found: Any = OmegaConf.to_container(OmegaConf.create(compose(resolve_path(name)).tree), resolve=True)
    if name in ("sweep/mini_alpha", "sweep/mini_vectors"):
        assert found.pop("evaluate_overrides") == ACCURACIES_ALONE
        assert found.pop("predict_overrides") == [*ACCURACIES_ALONE, "batch_size=128", "max_new_tokens=24"]
    if name == "sweep/mini_tables":
        assert expected.pop("evaluate_overrides") == ACCURACIES_ALONE, "today it asks everything"
        expected["predict_overrides"] = ["batch_size=128"]
    if name.startswith(("prepare/wbcatt", "prepare/medmnist", "prepare/cbis_ddsm")):
        assert found.pop("allow_leakage"), "the overlaps that these data sets are known for"
    assert json.dumps(found, sort_keys=True) == json.dumps(expected, sort_keys=True)


@pytest.mark.parametrize(
    ("saved", "name", "recipe", "overrides"),
    [
        ("train_instfree_mini", "instfree/mini", "instfree", []),
        ("train_vitask_mini", "vitask/mini", "vitask", []),
        ("train_sft_lora", "sft/llama3_2_vision_11b_lora_single_device", "sft", []),
        ("train_tsm_mini", "tsm/mini", "tsm", []),
        ("predict_openai_server", "predict/openai_server", "predict", []),
        (
            "predict_vitask_mini",
            "predict/vitask_mini",
            "predict",
            ["exemplars.path=runs/vitask_mini/exemplar", "sampling.temperature=0.5"],
        ),
        ("sweep_vitask_mini", "sweep/vitask_mini", "sweep", []),
    ],
)
def test_a_run_saves_the_values_and_has_the_hash_of_old(
    saved: str, name: str, recipe: str, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDTUNE_DATA", "/data")
    monkeypatch.setattr("medtune.config.PACKAGE", Path("/opt/medtune"))
    main = load_recipe(recipe).main.__wrapped__
    config_class = next(iter(typing.get_type_hints(main).values()))
    today = load_config(name, config_class, overrides)
    of_old = canonical(read_yaml(Path(__file__).parent / f"golden/configs_d377d55/{saved}.yaml"))
    if name == "predict/openai_server":
        of_old["questions"]["image_root"] = IMAGES_NOW.replace("/MEDTUNE_DATA", "/data")
    kept = known_then(to_plain(today), of_old)
    assert kept == of_old
    assert config_hash(kept) == config_hash(of_old)


def known_then(today: Any, of_old: Any) -> Any:
    """Today's values without keys that were added since."""
    if isinstance(today, dict) and isinstance(of_old, dict):
        return {key: known_then(value, of_old[key]) for key, value in today.items() if key in of_old}
    if isinstance(today, list) and isinstance(of_old, list) and len(today) == len(of_old):
        return [known_then(one, other) for one, other in zip(today, of_old, strict=True)]
    return today


def test_all_configs_of_old_are_held() -> None:
    assert len(GOLDEN) == 81
    assert set(GOLDEN) <= set(packaged_configs())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(CONFIGS).as_posix())
def test_a_file_says_what_it_is_and_is_used(path: Path) -> None:
    assert path.read_text().startswith("# "), "a config begins with a comment that says what it is"
    name = path.relative_to(CONFIGS).with_suffix("").as_posix()
    assert name in packaged_configs() or path in bases(), "a base that no config builds on"


@cache
def bases() -> set[Path]:
    """The files that another config builds on."""
    return {base for path in FILES for base in compose(path).files if base != path}


def depth(path: Path) -> int:
    below = config_composition._bases(read_yaml(path).get("base"), path)
    return 1 + max((depth(config_composition._find_base(name, (path,))) for name in below), default=-1)


def test_a_config_is_understood_after_two_steps_down() -> None:
    assert {path.relative_to(CONFIGS).as_posix(): depth(path) for path in FILES if depth(path) > 2} == {}


def copied_share(files: dict[Any, list[str]], block: int) -> float:
    """Share of the lines that stand, in a run of at least ``block`` lines, word for word in another file too."""
    holders: dict[tuple[str, ...], set[Any]] = {}
    for name, lines in files.items():
        for start in range(len(lines) - block + 1):
            holders.setdefault(tuple(lines[start : start + block]), set()).add(name)
    copied = 0
    for lines in files.values():
        marked = set()
        for start in range(len(lines) - block + 1):
            if len(holders[tuple(lines[start : start + block])]) > 1:
                marked.update(range(start, start + block))
        copied += len(marked)
    return copied / sum(map(len, files.values()))


def test_the_measure_of_copying() -> None:
    files = {"a": list("pqrstu"), "b": list("xqrsy"), "c": list("mnop")}
    assert copied_share(files, 3) == 6 / 15
    assert copied_share(files, 4) == 0


def test_no_part_of_a_config_is_copied_from_another() -> None:
    """Comments and empty lines do not count. Before ``base:`` 68% of the lines stood in runs of six, 76% of four.

    What is left are lists of a sweep's steps and variants, which cannot be merged, and the arguments of one builder
    written for another.
    """
    files = {}
    for path in FILES:
        lines = (line.rstrip() for line in path.read_text().splitlines())
        files[path] = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    assert copied_share(files, 6) <= 0.12
    assert copied_share(files, 4) <= 0.18


NOT_THE_PAPERS = ("learning rate", "optimizer", "AdamW", "weight decay", "clip", "moments", "fusion")
"""What InstFree's paper does not give."""


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("instfree/*.yaml")), ids=lambda path: path.stem)
def test_comments_call_only_the_papers_values_the_papers(path: Path) -> None:
    comments = " ".join(line.strip(" #\n") for line in path.open() if line.lstrip().startswith("#"))
    for sentence in comments.replace(";", ".").split(". "):
        if "the paper's" in sentence or sentence.startswith("Of the paper"):
            assert not [word for word in NOT_THE_PAPERS if word in sentence], sentence


def test_the_papers_values_are_the_papers(no_machine: None) -> None:
    for name in ("", "_skincon", "_cbis_ddsm"):
        tree: Any = compose(resolve_path(f"instfree/llama3_2_vision_11b{name}_single_device")).tree
        objective = {key: tree["objective"][key] for key in ("vectors", "alpha", "warmup_epochs", "shuffle_separator")}
        assert objective == {"vectors": 8, "alpha": 0.999, "warmup_epochs": 1, "shuffle_separator": ","}
        assert (tree["epochs"], tree["batch_size"], tree["gradient_accumulation_steps"]) == (5, 2, 1)
