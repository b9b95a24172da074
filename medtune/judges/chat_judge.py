"""A served model that scores a model's answer beside a reference answer (BioMed-VITAL, Sec. 4.3; LLaVA-Med).

The reference answer is stored with the question, or the judge makes it from the figure's caption and mentions first.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

from medtune.clients.errors import RequestRefusedError
from medtune.clients.messages import ChatRequest
from medtune.clients.served import RecordedClient
from medtune.errors import ConfigError, DataError
from medtune.judges.base import Judgement, OpenImages
from medtune.judges.candidates import Candidate
from medtune.judges.model_judge import ModelJudge
from medtune.judges.prompts import JudgePrompt, read_prompt

LETTERS = 4
"""Letters of a token, about, for the estimate of a request that shows a reference answer which is not made yet."""


@dataclass(frozen=True)
class ChatJudge(ModelJudge):
    """A judge of answers beside reference answers; the first answer of a candidate is the reference.

    Attributes:
        prompt: ``chat-v1`` with images, ``chat_text-v1`` without, ``chat_short-v1`` for very small models, or path of a
            ``.txt`` file, in which ``{caption}`` and ``{mentions}`` are what is known of the figure. Its scale must
            begin above 0.
        reference: ``stored`` takes the reference answers of the questions, ``made`` lets the judge make every one,
            ``stored_or_made`` lets it make those that are absent.
        reference_prompt: ``reference-v1`` with images, ``reference_text-v1`` without, or path of a ``.txt`` file.
        reference_max_tokens: Maximum number of tokens of a reference answer.
        reference_options: Fields of the body of a request for a reference answer, in place of those of
            ``server.options``, for example another ``response_format``.
    """

    name: ClassVar[str] = "chat"
    prompt: str = "chat-v1"
    reference: Literal["stored", "made", "stored_or_made"] = "stored"
    reference_prompt: str = "reference-v1"
    reference_max_tokens: int = 500
    reference_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reference not in ("stored", "made", "stored_or_made"):
            raise ValueError("reference must be stored, made or stored_or_made")
        if self.reference_max_tokens < 1:
            raise ValueError("reference_max_tokens must be at least 1")
        if self._read.low <= 0:
            raise ConfigError(
                f"the prompt {self.prompt} has a scale that begins at {self._read.low:g}; a score is divided by that "
                "of the reference answer, so the scale must begin above 0"
            )
        assert self._makes

    @cached_property
    def _makes(self) -> JudgePrompt:
        return read_prompt(self.reference_prompt, ("question", "caption"), scored=False)

    @property
    def looks(self) -> bool:
        """Whether one of its prompts shows the images."""
        return self._read.images or (self.reference != "stored" and self._makes.images)

    def identity(self) -> dict[str, Any]:
        """Return prompt versions, orders and sampling, and where the reference answers come from."""
        made = {
            "reference_prompt": self._makes.version,
            "reference_max_tokens": self.reference_max_tokens,
            "reference_options": self.reference_options,
        }
        return {**super().identity(), "reference": self.reference, **(made if self.reference != "stored" else {})}

    def versions(self) -> Sequence[str]:
        """Return names and versions of its prompts."""
        return [self._read.version, *([self._makes.version] if self.reference != "stored" else [])]

    def requests(self, candidate: Candidate, open_images: OpenImages) -> list[ChatRequest]:
        """Return the requests that a candidate needs; a reference answer that is not made yet is as long as it may be.

        Raises:
            DataError: There is no reference answer, and none is to be made; or one is to be made without a caption.
        """
        making = self._making(candidate, open_images)
        if making is None:
            return self._scoring(candidate, open_images)
        unknown = "?" * (LETTERS * self.reference_max_tokens)
        return [making, *self._scoring(replace(candidate, answers=(unknown, candidate.answers[1])), open_images)]

    def judge(self, candidate: Candidate, open_images: OpenImages, client: RecordedClient | None) -> Judgement:
        """Make the reference answer if there is none, and score both answers."""
        assert client is not None
        making = self._making(candidate, open_images)
        if making is None:
            return self._judged(candidate, self._scoring(candidate, open_images), client)
        try:
            reply = client.ask(making, self._makes.version)
        except RequestRefusedError:
            return Judgement(candidate.id, None, "reference_rejected")
        asked, cached = int(reply.asked), int(not reply.asked)
        made = (reply.text or "").strip()
        if not made or reply.finish_reason in ("length", "content_filter"):
            reason = "reference_cut_off" if reply.finish_reason == "length" else "reference_empty"
            return Judgement(candidate.id, None, reason, asked=asked, cached=cached)
        beside = replace(candidate, answers=(made, candidate.answers[1]))
        judged = self._judged(beside, self._scoring(beside, open_images), client)
        return replace(judged, asked=judged.asked + asked, cached=judged.cached + cached, reference=made)

    def _making(self, candidate: Candidate, open_images: OpenImages) -> ChatRequest | None:
        """Return the request for a reference answer; None if the stored one is taken."""
        stored = candidate.answers[0].strip()
        if self.reference == "stored" and not stored:
            raise DataError(
                f"question {candidate.id!r} has no reference answer; with judge.reference=stored_or_made the judge "
                "makes those that are absent."
            )
        if self.reference == "stored" or (stored and self.reference == "stored_or_made"):
            return None
        if not candidate.context.get("caption", "").strip():
            raise DataError(
                f"question {candidate.id!r} has no caption, from which the judge could make a reference answer; put it "
                "into meta.caption of the question."
            )
        images = open_images() if self._makes.images else []
        values = {"question": candidate.question}
        request = self._request(candidate, self._makes, values, images, self.reference_max_tokens)
        return replace(request, extra=dict(self.reference_options))

    def _scoring(self, candidate: Candidate, open_images: OpenImages) -> list[ChatRequest]:
        return ModelJudge.requests(self, candidate, open_images if self._read.images else lambda: [])
