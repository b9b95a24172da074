"""How continuations share rows: as many as fit, and no token is run that nothing asks for."""

import pytest
import torch

from medtune.generation.engine.scoring import score_continuations

OPTIONS = [[11, 12, 13], [14], [15, 16]]


@pytest.mark.parametrize(
    ("room", "widths"),
    [(3, [(1, 13)]), (2, [(2, 12)]), (1, [(2, 12)])],
    ids=["all in one row", "the last in a row of its own", "the first, which is too long, in a row of its own"],
)
def test_rows_hold_what_fits_and_end_before_the_last_token(setup, monkeypatch, room, widths):
    """Ten tokens of prompt; the options take two, none and one more: their last tokens predict nothing."""
    prompt, seen = list(range(20, 30)), []
    hidden = setup.model.hidden

    def watched(tokens, *args, **kwargs):
        seen.append(tuple(tokens.shape))
        return hidden(tokens, *args, **kwargs)

    monkeypatch.setattr(setup.model, "hidden", watched)
    vision_mask = torch.zeros((1, 10, 0) if not setup.model.images_as_tokens else (1, 0), dtype=torch.bool)
    arguments = {"pad_id": 0, "max_seq_len": 10 + room}
    with torch.inference_mode():
        (found,) = score_continuations(setup.model, [prompt], vision_mask, None, [OPTIONS], **arguments)
        assert seen == widths
        for score, option in zip(found, OPTIONS, strict=True):
            states = hidden(torch.tensor([[*prompt, *option]]))[0, 9:-1]
            log_probs = setup.model.logits(states).double().log_softmax(-1)
            expected = log_probs.gather(1, torch.tensor(option)[:, None]).sum().item()
            assert score == pytest.approx(expected, abs=1e-5, rel=1e-6)


def test_without_continuations_nothing_is_run(setup, monkeypatch):
    monkeypatch.setattr(setup.model, "hidden", lambda *args, **kwargs: pytest.fail("nothing is asked"))
    mask = torch.zeros(2, 1, 0, dtype=torch.bool)
    assert score_continuations(setup.model, [[1], [2]], mask, None, [[], []], pad_id=0, max_seq_len=9) == [[], []]


def test_the_prompt_of_each_row_is_told_before_the_pass(setup, monkeypatch):
    """The options of the second prompt need two rows, of the first none."""
    events = []
    hidden = setup.model.hidden

    def watched(tokens, *args, **kwargs):
        events.append(len(tokens))
        return hidden(tokens, *args, **kwargs)

    monkeypatch.setattr(setup.model, "hidden", watched)
    prompts = [[1], list(range(20, 30)), [2, 3]]
    vision_mask = torch.zeros((3, 10, 0) if not setup.model.images_as_tokens else (3, 0), dtype=torch.bool)
    arguments = {"pad_id": 0, "max_seq_len": 11, "before_forward": events.append}
    with torch.inference_mode():
        score_continuations(setup.model, prompts, vision_mask, None, [[], OPTIONS, [[11]]], **arguments)
    assert events == [[1, 1, 2], 3]
