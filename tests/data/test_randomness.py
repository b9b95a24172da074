from itertools import product

from medtune.data.randomness import sample_rng


def test_the_four_decide_alone():
    assert sample_rng(1, 2, 3, "x").random() == sample_rng(1, 2, 3, "x").random()


def test_each_of_the_four_matters():
    resamples = {sample_rng(*key).random() for key in product((0, 1, 12), (0, 1, 21), (0, 1, 2), ("", "a"))}
    assert len(resamples) == 3 * 3 * 3 * 2


def test_the_draw_is_the_same_on_every_machine_and_version():
    assert sample_rng(0, 0, 0).getrandbits(32) == 2953529712
