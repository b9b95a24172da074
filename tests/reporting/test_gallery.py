from dataclasses import replace

from PIL import Image

from medtune.reporting.gallery import choose_cards, image_opener
from medtune.reporting.runs import read_run


def test_cards_go_round_the_attributes_and_hold_every_run(runs, open_image):
    loaded = [read_run(run, with_answers=True) for run in runs]
    cards = choose_cards(loaded, 7, open_image, seed=1)
    assert len({card.question for card in cards}) == 7
    for card in cards:
        assert [name for name, _, _ in card.answers] == [run.name for run in loaded]
        assert len(card.tasks) == 4 and all(len(answers) == 4 for _, _, answers in card.answers)
    assert choose_cards(loaded, 7, open_image, seed=1) == cards
    assert choose_cards(loaded, 7, open_image, seed=2) != cards
    assert len(choose_cards(loaded, 10_000, None)) == 84


def test_a_question_that_was_changed_for_the_robustness_card_is_no_sample(runs):
    run = read_run(runs[0], with_answers=True)
    first = next(row for row in run.predictions.values() if row.task == "open")
    probe = replace(
        first, id="a/open/no_image", meta={**first.meta, "sample_id": "a", "images": [], "probe": "no_image"}
    )
    changed = replace(run, predictions={probe.id: probe, **run.predictions})
    assert len(choose_cards([changed], 10_000, None)) == len(choose_cards([run], 10_000, None)) == 84


def test_the_choice_does_not_look_at_answers(runs):
    loaded = [read_run(run, with_answers=True) for run in runs]
    picked = [[(card.question, card.gold) for card in choose_cards([run], 5, None)] for run in loaded]
    assert all(one == picked[0] for one in picked)


def test_marks_are_the_verdicts(runs):
    run = read_run(runs[1], with_answers=True)
    cards = choose_cards([run], 84, None)
    marks = [answers[0].verdict for card in cards for _, _, answers in card.answers]
    right = sum(row["correct"] == "1" for row in run.verdicts.values() if row["id"].endswith("/open"))
    assert marks.count("right") == right
    assert set(marks) == {"right", "wrong"}
    letters = [answers[1].verdict for card in cards for _, _, answers in card.answers]
    assert "unread" in letters


def test_pictures_are_small(runs):
    run = read_run(runs[0], with_answers=True)
    card = choose_cards([run], 1, lambda path: Image.effect_noise((2000, 1500), 80))[0]
    assert card.picture.startswith("data:image/png;base64,")
    assert len(card.picture) < 250_000


def test_images_open_from_their_root(tmp_path, runs):
    (tmp_path / "cells").mkdir()
    for image in range(12):
        Image.new("L", (8, 8), image).save(tmp_path / "cells" / f"{image}.png")
    run = read_run(runs[0], with_answers=True)
    assert choose_cards([run], 1, image_opener(tmp_path))[0].picture.startswith("data:image/png")
    (tmp_path / "cells" / "0.png").write_bytes(b"no image")
    troubles = [card.trouble for card in choose_cards([run], 84, image_opener(tmp_path))]
    assert troubles.count("the image could not be opened (DataError)") == 7
