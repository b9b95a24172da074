"""A model is asked on images like those that it was trained on: configs of one data set agree on how images look."""

import inspect
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from medtune.config import import_path
from medtune.config.composition import compose, packaged_configs, resolve_path

NOT_OF_IMAGES = ("_component_", "source")
"""Arguments of a dataset that do not change what an image looks like."""
TEXT_OR_PATH = ("_component_", "path", "max_seq_len", "chat_template", "system")
"""Arguments of a transform that do not."""


@pytest.fixture(scope="module")
def configs() -> dict[str, dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDTUNE_DATA", "/MEDTUNE_DATA")
        return {name: resolved(name) for name in packaged_configs()}


def resolved(name: str) -> dict[str, Any]:
    tree: Any = OmegaConf.to_container(OmegaConf.create(compose(resolve_path(name)).tree), resolve=True)
    return tree


def data_set(node: Any) -> str:
    """The folder of prepared data that a dataset reads; empty if it reads none."""
    source = (node or {}).get("source", "")
    return Path(source).parent.as_posix() if isinstance(source, str) and source.startswith("prepared/") else ""


def images(node: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key not in NOT_OF_IMAGES}


def transform(config: dict[str, Any]) -> dict[str, Any]:
    """A transform's arguments with their defaults, without those of text."""
    node = config.get("transform")
    if not node:
        return {}
    parameters = inspect.signature(import_path(node["_component_"], "transform")).parameters.values()
    defaults = {one.name: one.default for one in parameters if one.default is not one.empty}
    return {key: value for key, value in {**defaults, **node}.items() if key not in TEXT_OR_PATH}


def is_mini(name: str) -> bool:
    return "mini" in name


def pairs(configs: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """Training and predict configs that read one folder of prepared data, both of the miniature or both not."""
    asked = {name: data_set(config["questions"]) for name, config in configs.items() if name.startswith("predict/")}
    trained = {name: data_set(config.get("dataset")) for name, config in configs.items() if "dataset" in config}
    return [
        (train, predict)
        for train, of in trained.items()
        for predict, folder in asked.items()
        if of and of == folder and is_mini(train) == is_mini(predict)
    ]


def test_every_predict_config_of_the_same_data_shows_the_images_that_training_showed(configs):
    found = pairs(configs)
    assert {predict for _, predict in found} >= {"predict/llama3_2_vision_11b", "predict/mini", "predict/vitask_mini"}
    differing = {
        (train, predict): (images(configs[train]["dataset"]), images(configs[predict]["questions"]))
        for train, predict in found
        if images(configs[train]["dataset"]) != images(configs[predict]["questions"])
    }
    assert differing == {}


def test_a_model_is_asked_with_the_image_transform_that_it_was_trained_with(configs):
    same = [(train, predict) for train, predict in pairs(configs)
            if transform(configs[predict]) and (configs[train]["transform"]["_component_"]
                                                == configs[predict]["transform"]["_component_"])]  # fmt: skip
    assert len(same) > 5
    assert {pair: (transform(configs[pair[0]]), transform(configs[pair[1]])) for pair in same
            if transform(configs[pair[0]]) != transform(configs[pair[1]])} == {}  # fmt: skip


def test_validation_shows_the_images_that_training_shows(configs):
    both = {name: config for name, config in configs.items() if config.get("dataset") and config.get("dataset_val")}
    assert len(both) > 10
    options = ("image_root", "pad_to_square", "center_crop")
    for name, config in both.items():
        train, val = ([config[key].get(option) for option in options] for key in ("dataset", "dataset_val"))
        assert train == val, name


def test_data_are_checked_on_the_images_that_training_reads(configs):
    roots = {config["output_dir"]: config.get("image_root") for name, config in configs.items()
             if name.startswith("prepare/")}  # fmt: skip
    trained = {name: (roots.get(data_set(config["dataset"])), config["dataset"].get("image_root"))
               for name, config in configs.items()
               if data_set(config.get("dataset")) and not is_mini(name)}  # fmt: skip
    assert {name: pair for name, pair in trained.items() if pair[0] and pair[0] != pair[1]} == {}
    assert any(pair[0] for pair in trained.values())
