"""Where features of images cannot be kept: they are no function of the picture alone."""

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from medtune.errors import ConfigError
from medtune.models.llama3_2_vision._encoder import VisionEncoder
from medtune.objectives.base import Stage
from medtune.training.feature_cache import check_frozen
from medtune.training.parts import TrainedParts


@pytest.mark.parametrize(
    ("transform", "encoder", "said"),
    [
        (SimpleNamespace(tiler=SimpleNamespace(max_tiles=4)), nn.Identity(), "reads pixels"),
        (SimpleNamespace(feature_width=None), nn.Sequential(nn.Dropout(0.1)), "has dropout"),
        (
            SimpleNamespace(feature_width=None, tiler=SimpleNamespace(max_tiles=2)),
            VisionEncoder(nn.Identity(), nn.Identity(), mode="torchtune"),
            "depend on its batch",
        ),
    ],
    ids=["no features", "dropout", "neighbours"],
)
def test_features_that_are_no_function_of_the_picture_are_refused(transform: Any, encoder: Any, said: str) -> None:
    model = nn.Module()
    model.encoder = encoder
    with pytest.raises(ConfigError, match=said):
        check_frozen([], TrainedParts(model, nn.Module(), {}), transform)


def test_an_encoder_as_torchtunes_may_keep_features_of_single_tiles() -> None:
    model = nn.Module()
    model.encoder = VisionEncoder(nn.Identity(), nn.Identity(), mode="torchtune")
    transform = SimpleNamespace(feature_width=None, tiler=SimpleNamespace(max_tiles=1))
    check_frozen([], TrainedParts(model, nn.Module(), {}), transform)


@pytest.mark.parametrize("place", [0, 1])
def test_a_stage_that_trains_the_encoder_is_refused_and_others_are_not(place: int) -> None:
    model = nn.Module()
    model.encoder, model.decoder = nn.Linear(2, 2), nn.Linear(2, 2)
    parts = TrainedParts(model, nn.Module(), {"vision": ["encoder.weight"], "decoder": ["decoder.weight"]})
    transform: Any = SimpleNamespace(feature_width=None)
    stages = [Stage("first", ("decoder",)), Stage("second", ("decoder",))]
    check_frozen(stages, parts, transform)
    stages[place] = Stage("seen", ("decoder", "vision"))
    with pytest.raises(
        ConfigError, match=r"stage seen trains vision, and with it the image encoder \(encoder.weight\)"
    ):
        check_frozen(stages, parts, transform)
