"""Positions and learning rates are functions of the step alone."""

import pytest

from medtune.objectives.base import Stage
from medtune.training.config import ScheduleConfig
from medtune.training.progress import Progress, rate_factor


def test_every_stage_begins_on_a_new_epoch() -> None:
    clock = Progress((Stage("warmup", ("proxy",), steps=5), Stage("tune", ("vision",), epochs=2)), steps_per_epoch=4)
    assert clock.total == 13
    places = [clock.position(step) for step in range(13)]
    assert [(p.stage_index, p.epoch, p.epoch_step) for p in places] == [
        *[(0, 0, i) for i in range(4)],
        (0, 1, 0),
        *[(1, 2, i) for i in range(4)],
        *[(1, 3, i) for i in range(4)],
    ]
    assert clock.first_step(1) == 5 and places[5].stage_step == 0


def test_steps_win_over_epochs() -> None:
    assert Progress((Stage("a", (), epochs=9, steps=2),), 4).total == 2


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_schedule_warms_up_and_ends_at_its_floor(kind: str) -> None:
    schedule = ScheduleConfig(kind=kind, warmup_steps=4, min_ratio=0.1)
    factors = [rate_factor(schedule, step, 20) for step in range(21)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == pytest.approx(1.0)
    assert factors[20] == pytest.approx(1.0 if kind == "constant" else 0.1)
    assert all(a >= b - 1e-12 for a, b in zip(factors[4:], factors[5:], strict=False))


def test_cosine_equals_torch() -> None:
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    for step in range(10):
        assert rate_factor(ScheduleConfig("cosine"), step, 10) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()
