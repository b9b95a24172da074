"""The robustness card: whether an answer stays when it should, and changes when it should.

A model that was tuned on medical data may score well and still answer from the position of an option, from the wording
of a question, or without looking. Each question is therefore asked again in up to four ways, its *probes*:

- ``swapped``: on another question's image (:mod:`medtune.evaluation.swapped`); the answer should follow the image.
- ``no_image``: without an image; a right answer then comes from the question alone.
- ``options``: with the options in another order, so that each has another letter; the answer should stay.
- ``paraphrase``: in other words with the same meaning; the answer should stay.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from medtune.data.multiple_choice import open_question
from medtune.data.randomness import sample_rng
from medtune.data.sample import IMAGE_TAG, Message, Sample
from medtune.errors import ConfigError
from medtune.evaluation.protocols.base import EvaluationProtocol, Verdict, question_meta
from medtune.evaluation.protocols.conversation import user_turn
from medtune.evaluation.result import Metric
from medtune.evaluation.scoring import accuracy_drop, share_of, unread

PROBES = ("swapped", "no_image", "options", "paraphrase")
STAY = ("options", "paraphrase")
"""Probes that change nothing that matters: a changed answer is a fault."""
_FLIPPED = {
    "swapped": "share of questions whose answer changes with the image, of those whose other image has another right "
    "answer; a model that looks changes it",
    "no_image": "share of questions whose answer changes without the image",
    "options": "share of questions whose answer, by its text, changes with the order of the options",
    "paraphrase": "share of questions whose answer changes with the wording of the question",
}
_BETTER = {"swapped": True, "no_image": None, "options": False, "paraphrase": False}
_OF_ATTRIBUTE = (
    "Which {attribute} does the image show?",
    "Looking at the image, what would you call the {attribute}?",
    "How would you describe the {attribute} in this image?",
)
_OF_ANY = ("Look at the image and answer: {question}", "Based on the image: {question}", "{question} Use the image.")


def chosen_probes(given: bool | Sequence[str]) -> tuple[str, ...]:
    """Return the probes that a config asks for, in their usual order.

    Args:
        given: True for all, False for none, or names.

    Raises:
        ConfigError: For an unknown name.
    """
    if isinstance(given, bool):
        return PROBES if given else ()
    unknown = [name for name in given if name not in PROBES]
    if unknown:
        raise ConfigError(f"robustness: unknown probe {unknown[0]!r}; choose from {', '.join(PROBES)}, or true for all")
    return tuple(name for name in PROBES if name in given)


def probed(sample: Sample, probe: str, seed: int) -> Sample:
    """Return a question as a probe asks it; ``meta["probe"]`` holds the probe's name.

    Args:
        sample: The question.
        probe: ``no_image``, ``options`` or ``paraphrase``.
        seed: Seed of the order of the options and of the choice of the wording; every model is asked the same.
    """
    marked = dataclasses.replace(sample, meta={**sample.meta, "probe": probe})
    rng = sample_rng(seed, 0, 0, f"{probe}:{sample.id}")
    if probe == "no_image":
        return dataclasses.replace(marked, images=(), messages=_turns(sample, lambda text: text))
    if probe == "options":
        options = list(question_meta(sample)["options"])
        turn = rng.randrange(1, len(options))  # a rotation gives every option another letter
        return dataclasses.replace(marked, meta={**marked.meta, "option_order": options[turn:] + options[:turn]})
    own = sample.meta.get("paraphrases")
    given = [text for text in own if isinstance(text, str) and text.strip()] if isinstance(own, list) else []
    asked = user_turn(sample)
    attribute = sample.meta.get("attribute")
    standard = isinstance(attribute, str) and asked in ("", open_question(attribute))
    wordings = given or [
        text.format(attribute=attribute, question=asked) for text in (_OF_ATTRIBUTE if standard else _OF_ANY)
    ]
    return dataclasses.replace(marked, messages=_turns(sample, lambda _: rng.choice(wordings)))


def _turns(sample: Sample, changed: Callable[[str], str]) -> tuple[Message, ...]:
    """Return the turns with another last question, which is the one that is asked, without image tags."""
    asked = max((at for at, turn in enumerate(sample.messages) if turn.role == "user"), default=None)
    turns = [Message(turn.role, turn.content.replace(IMAGE_TAG, "").strip()) for turn in sample.messages]
    if asked is None:
        return (Message("user", changed("")), *turns)
    turns[asked] = Message("user", changed(turns[asked].content))
    return tuple(turns)


def robustness_card(
    verdicts: Sequence[Verdict],
    probes: Sequence[str],
    protocols: Mapping[str, EvaluationProtocol],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, dict[str, Metric]]]:
    """Compare the answers to probes with those to the questions as they are.

    Args:
        verdicts: Verdicts on the questions, on swapped images and on probes.
        probes: The probes that were asked.
        protocols: The protocols by name; those without probes have no card.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.

    Returns:
        ``{protocol: {probe: {flip_rate, accuracy, drop, unread}}}``. ``accuracy`` is over questions, ``drop`` the mean
        over attributes of the accuracy that the probe costs, paired by question.
    """
    card: dict[str, dict[str, dict[str, Metric]]] = {}
    for name, protocol in protocols.items():
        of_task = [verdict for verdict in verdicts if verdict.task == name]
        plain = {verdict.sample_id: verdict for verdict in of_task if not verdict.swapped and not verdict.probe}
        for probe in (probe for probe in probes if probe in protocol.probes):
            asked = [verdict for verdict in of_task if _probe_of(verdict) == probe]
            pairs = [(plain[verdict.sample_id], verdict) for verdict in asked if verdict.sample_id in plain]
            if pairs:
                card.setdefault(name, {})[probe] = _numbers(probe, pairs, resamples, seed)
    return card


def robustness_rows(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Return a row for each answer to a probe: ids, and what was read with and without it, never an answer's text."""
    plain = {(v.task, v.sample_id): v for v in verdicts if not v.swapped and not v.probe}
    rows = []
    for verdict in verdicts:
        before = plain.get((verdict.task, verdict.sample_id))
        if _probe_of(verdict) and before is not None:
            rows.append(
                {
                    "id": verdict.id,
                    "task": verdict.task,
                    "probe": _probe_of(verdict),
                    "attribute": verdict.attribute,
                    "gold": verdict.gold,
                    "before": "" if before.predicted is None else before.predicted,
                    "after": "" if verdict.predicted is None else verdict.predicted,
                    "flipped": int(before.predicted != verdict.predicted),
                }
            )
    return rows


def _probe_of(verdict: Verdict) -> str:
    return "swapped" if verdict.swapped else verdict.probe


def _numbers(probe: str, pairs: Sequence[tuple[Verdict, Verdict]], resamples: int, seed: int) -> dict[str, Metric]:
    # Clusters are the images of the questions themselves: a probe may show another image or none.
    own = [dataclasses.replace(after, images=before.images) for before, after in pairs]
    flipped = {after.id: before.predicted != after.predicted for before, after in pairs}
    counted = [verdict for verdict in own if probe != "swapped" or verdict.shown_differs]
    return {
        "flip_rate": share_of(
            counted, lambda verdict: flipped[verdict.id], _FLIPPED[probe], resamples, seed, _BETTER[probe]
        ),
        "accuracy": share_of(
            own, lambda verdict: verdict.correct, "share of right answers to the probe", resamples, seed,
            True if probe in STAY else None,
        ),
        "drop": accuracy_drop(pairs, "accuracy as asked minus that of the probe", resamples, seed),
        "unread": unread(own, resamples, seed),
    }  # fmt: skip
