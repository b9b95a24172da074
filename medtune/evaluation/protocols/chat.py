"""Open questions of a chat, scored by a judge beside a reference answer (BioMed-VITAL, Sec. 4.3; LLaVA-Med).

A judge gives the reference answer and the model's answer a score from 1 to 10 each. The judge recipe writes the scores
into the prediction file (``meta["chat"]``); this protocol adds them up. An answer whose judgement could not be read has
no score: it is left out and counted.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from medtune.data.sample import Sample
from medtune.data.writing import sha256
from medtune.errors import DataError
from medtune.evaluation.chat_grades import ChatGrade
from medtune.evaluation.display import Column, Display, Grouping
from medtune.evaluation.measures import Measure, compare_measures, score_measures
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.base import (
    EvaluationProtocol,
    Pair,
    Query,
    Topic,
    Verdict,
    Vocabulary,
    query_frame,
    verdict_frame,
)
from medtune.evaluation.protocols.conversation import conversation, user_turn
from medtune.evaluation.result import Metric
from medtune.evaluation.scoring import Numbers, by_attribute, share_of
from medtune.evaluation.swapped import swap_images

TASK = "chat"
ALL = "all"
"""Domain and type of questions that name none."""
PERCENT = "% of the reference"
UNREAD = "share of answers without a score, because a reply of the judge could not be read; they are left out elsewhere"


def _of_means(verdicts: Sequence[Verdict]) -> float | None:
    scored = [verdict.measures for verdict in verdicts if "reference_score" in verdict.measures]
    reference = sum(measures["reference_score"] for measures in scored)
    return 100 * sum(measures["answer_score"] for measures in scored) / reference if reference else None


RELATIVE = Measure(
    "relative_score",
    PERCENT,
    True,
    "mean over questions of the judge's score of the answer divided by its score of the reference answer, times 100 "
    "(LLaVA-Med, BioMed-VITAL Table 2)",
)
OF_MEANS = Measure(
    "relative_of_means",
    PERCENT,
    True,
    "mean of the judge's scores of the answers divided by the mean of its scores of the reference answers, times 100 "
    "(LLaVA)",
    _of_means,
)
MEASURES = (
    RELATIVE,
    OF_MEANS,
    Measure("answer_score", "points", True, "mean score that the judge gives the answers"),
    Measure("reference_score", "points", None, "mean score that the judge gives the reference answers"),
    Measure(
        "place_effect",
        "points",
        None,
        "how many points more the judge gives an answer that is shown before the reference answer than the same answer "
        "shown after it; 0 for a judge that does not mind the place",
    ),
    Measure(
        "follows_place",
        "fraction",
        False,
        "share of the questions for which the judge prefers the same place in both orders, and so different answers; "
        "questions with a tie in a reply are left out",
    ),
)
MOST_FOLLOWED = 0.5
"""A judge that follows the place more often than this gives scores with a caution."""
_TITLES = {
    "relative_score": "Relative score, %",
    "relative_of_means": "Ratio of mean scores, %",
    "answer_score": "Answers, points",
    "reference_score": "References, points",
    "place_effect": "Effect of the place, points",
    "follows_place": "Judge follows the place",
}
_HELP = (
    "The score that the judge gives an answer, in percent of the score that it gives the reference answer; mean over "
    "questions. 100 is as good as the reference answers. In small letters: the mean score of the answers, and the "
    "share of answers without a score."
)
_GROUP, _NOTES = (
    Column("relative_score", "relative score, %"),
    (Column("answer_score", "points"), Column("unread", "unread %")),
)
_DISPLAY = Display(
    "Chat",
    rank=85,
    help="an open question, whose answer a judge scores beside a reference answer; answers without a score are left "
    "out and counted",
    headline=(
        Column("relative_score_micro", "Chat, relative score, %"),
        Column("answer_score_micro", "Chat, points"),
        Column("unread", "Chat, without a score"),
    ),
    columns=(*(Column(f"{name}_micro", title) for name, title in _TITLES.items()), Column("unread", "Without a score")),
    titles={f"{name}_macro": f"{title.split(',')[0]}, mean over domains" for name, title in _TITLES.items()},
    followed_of_sets=("relative_score",),
    paired="measure:relative_score",
    side_by_side="The reference answer, and each model's answer with the judge's scores and words.",
    groupings=(
        Grouping("attributes", "Chat by domain", "Domain", _HELP, _GROUP, _NOTES),
        Grouping("question_types", "Chat by type of question", "Type", _HELP, _GROUP, _NOTES),
    ),
)


@dataclass(frozen=True)
class ChatVerdict(Verdict):
    """A scored answer.

    Attributes:
        question_type: Type of the question, for example ``conversation``.
        grade: What the judge said; None for a question without an answer.
    """

    question_type: str = ALL
    grade: ChatGrade | None = None


class Chat(EvaluationProtocol):
    """Asks the sample's last user turn after the turns before it; a judge scores the answers afterwards.

    The reference answer is ``meta["answer"]``, or the assistant's turn after the question; without one the judge has to
    make it from ``meta["caption"]`` and ``meta["mentions"]``. ``meta["attribute"]`` is the domain and
    ``meta["question_type"]`` the type of the question, which numbers are also given for.
    """

    name: ClassVar[str] = TASK
    display = _DISPLAY
    answer_keys: ClassVar[tuple[str, ...]] = ("chat",)

    @staticmethod
    def topic(sample: Sample) -> Topic:
        """Return the domain and the reference answer, or the sample's id in its place."""
        return Topic(_named(sample, "attribute"), reference_answer(sample) or sample.id, ())

    @staticmethod
    def other_images(samples: Sequence[Sample], seed: int) -> list[Sample]:
        """Return the questions on images of other questions of their domain."""
        return swap_images(samples, seed, about=Chat.topic)

    def plan(self, sample: Sample) -> list[Query]:
        """Return the one query of a question.

        Raises:
            DataError: The question has no text or no image, or its ``meta`` holds another kind of value.
        """
        prompt = user_turn(sample)
        if not prompt or not sample.images:
            raise DataError(f"question {sample.id!r}: a question needs an image and a user turn.")
        reference, (query_id, shown) = reference_answer(sample), query_frame(self.name, sample)
        messages = conversation(sample, prompt)
        meta = {
            "attribute": _named(sample, "attribute"),
            "question_type": _named(sample, "question_type"),
            "answer": reference,
            **_texts(sample),
            **({"history": [[turn.role, turn.content] for turn in messages[:-1]]} if len(messages) > 1 else {}),
        }
        asked = Sample(id=query_id, images=sample.images, messages=messages, meta={})
        return [Query(query_id, self.name, asked, (), (reference,) if reference else (), {**meta, **shown})]

    def judge(self, row: Prediction, vocabulary: Vocabulary) -> ChatVerdict:
        """Read the judge's scores of an answer.

        Raises:
            DataError: The answer was not judged.
        """
        frame = {**verdict_frame(row), "gold": "", "question_type": row.meta["question_type"]}
        if row.meta.get("missing"):
            return ChatVerdict(**frame, predicted=None, in_format=False)
        if "chat" not in row.meta:
            raise DataError(
                f"prediction {row.id!r} has no score of a judge; run the judge recipe with score=predictions.jsonl, "
                "and evaluate the graded.jsonl that it writes."
            )
        grade = ChatGrade.from_dict(row.meta["chat"], f"prediction {row.id!r}")
        predicted = None if grade.scores is None else f"{grade.scores[1]:g}"
        return ChatVerdict(
            **frame, predicted=predicted, in_format=predicted is not None, measures=_measured(grade), grade=grade
        )

    def score(
        self, verdicts: Sequence[Verdict], vocabulary: Vocabulary, *, resamples: int, seed: int
    ) -> dict[str, Any] | None:
        """Score all questions, those of each domain (``attributes``) and those of each type (``question_types``)."""
        read = [verdict for verdict in verdicts if verdict.predicted is not None]
        scored = score_measures(read, MEASURES, resamples=resamples, seed=seed)
        typed = score_measures([_by_type(verdict) for verdict in read], MEASURES, resamples=resamples, seed=seed)
        true = [verdict for verdict in verdicts if not verdict.swapped]

        def unread(rows: Sequence[Verdict]) -> Metric:
            return share_of(rows, lambda verdict: verdict.predicted is None, UNREAD, resamples, seed, False)

        def of_groups(numbers: Mapping[str, Numbers], rows: Iterable[Verdict]) -> dict[str, Numbers]:
            groups = by_attribute(rows)
            return {name: {**_none(), **numbers.get(name, {}), "unread": unread(of)} for name, of in groups.items()}

        return {
            "overall": {**_cautioned(scored["overall"]), "unread": unread(true)},
            "attributes": of_groups(scored["attributes"], true),
            "question_types": of_groups(typed["attributes"], map(_by_type, true)),
            "swapped": scored["swapped"],
        }

    def remarks(self, row: Prediction) -> tuple[str, str]:
        """Return the reference answer, and the judge's scores and words."""
        stored = next(iter(row.references), "")
        if "chat" not in row.meta:
            return stored, ""
        grade = ChatGrade.from_dict(row.meta["chat"], f"prediction {row.id!r}")
        if grade.scores is None:
            said = f"no score ({grade.reason.replace('_', ' ')})"
        else:
            reference, answer = grade.scores
            said = f"score {answer:g}, the reference answer {reference:g}: {100 * answer / reference:.0f}%"
        words = (" ".join(text.split()) for text in grade.words)
        return grade.reference or stored, "\n".join([said, *(f"“{text}”" for text in words if text)])

    def facts(self, verdicts: Sequence[Verdict]) -> dict[str, Any]:
        """Return who judged, a digest of the reference answers, and why answers have no score."""
        grades = {
            verdict.sample_id: verdict.grade
            for verdict in verdicts
            if isinstance(verdict, ChatVerdict) and verdict.grade is not None and not verdict.swapped
        }
        unread = [grade.reason or "unread" for grade in grades.values() if grade.scores is None]
        texts = "\n".join(f"{name} {grade.reference}" for name, grade in sorted(grades.items()))
        return {
            "chat": {
                "judges": sorted({grade.judge for grade in grades.values()}),
                "references": {
                    "made_by_the_judge": sum(grade.made for grade in grades.values()),
                    "sha256": sha256(texts.encode()),
                },
                "unread": {name: unread.count(name) for name in sorted(set(unread))},
            }
        }

    def mismatch(self, first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
        """Return that two runs had different judges or reference answers; empty if they had the same."""
        one, other = first.get("chat", {}), second.get("chat", {})
        if one.get("judges") != other.get("judges"):
            return "they were scored by different judges"
        different = one.get("references", {}).get("sha256") != other.get("references", {}).get("sha256")
        return "they were scored beside different reference answers" if different else ""

    def compare(
        self,
        pairs: Mapping[int, Sequence[Pair]],
        vocabulary: Mapping[str, Any],
        base: str,
        *,
        resamples: int,
        seed: int,
    ) -> dict[str, Metric]:
        """Return the paired difference of the ratio of mean scores."""
        return compare_measures(pairs, (OF_MEANS,), base, resamples=resamples, seed=seed)


def reference_answer(sample: Sample) -> str:
    """Return the reference answer: ``meta["answer"]``, or the assistant's turn after the last question; empty for none.

    Raises:
        DataError: ``meta["answer"]`` is no text.
    """
    given = sample.meta.get("answer")
    if given is not None:
        if not isinstance(given, str):
            raise DataError(f"question {sample.id!r}: meta.answer, the reference answer, must be a text.")
        return given.strip()
    last = sample.messages[-1]
    return last.content.strip() if last.role == "assistant" else ""


def _cautioned(overall: Numbers) -> Numbers:
    """Return the overall numbers; the scores have a caution if the judge mostly follows the place of an answer."""
    followed = overall["follows_place_micro"].value
    if followed is None or followed <= MOST_FOLLOWED:
        return overall
    caution = (
        f"comes from a judge that preferred the same place in both orders for {100 * followed:.0f}% of the questions, "
        "whichever answer stood there; it says little of the answers"
    )
    return {
        name: replace(number, caution=caution) if name.startswith(("relative_", "answer_")) else number
        for name, number in overall.items()
    }


def _by_type(verdict: Verdict) -> Verdict:
    """Return a verdict whose group is the type of its question."""
    return replace(verdict, attribute=verdict.question_type) if isinstance(verdict, ChatVerdict) else verdict


def _none() -> Numbers:
    """Return the numbers of questions without a score."""
    return {one.name: Metric(None, one.unit, one.higher_is_better, 0, None, one.definition) for one in MEASURES}


def _named(sample: Sample, key: str) -> str:
    given = sample.meta.get(key, ALL)
    if not isinstance(given, str) or not given.strip():
        raise DataError(f"question {sample.id!r}: meta.{key} must be a text.")
    return given


def _texts(sample: Sample) -> dict[str, Any]:
    """Return what a judge may be shown of the figure."""
    caption, mentions = sample.meta.get("caption", ""), sample.meta.get("mentions", [])
    if not isinstance(caption, str):
        raise DataError(f"question {sample.id!r}: meta.caption must be a text.")
    if not (isinstance(mentions, list) and all(isinstance(text, str) for text in mentions)):
        raise DataError(f"question {sample.id!r}: meta.mentions must be a list of texts.")
    return {"caption": caption, "mentions": mentions}


def _measured(grade: ChatGrade) -> dict[str, float]:
    """Return the per-sample numbers of a judged answer; none if there is no score."""
    if grade.scores is None:
        return {}
    reference, answer = grade.scores
    effect, follows = grade.place_effect, grade.follows_place
    numbers = {
        "relative_score": 100 * answer / reference,
        "answer_score": answer,
        "reference_score": reference,
    }
    placed = {"place_effect": effect, "follows_place": None if follows is None else float(follows)}
    return numbers | {name: value for name, value in placed.items() if value is not None}
