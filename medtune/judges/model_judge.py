"""A served model as the judge (STLLaVA-Med, Sec. 3.3 and Fig. 3): it scores both answers in one reply.

The answers are shown in both orders and the scores averaged, because models prefer an answer for its place. The paper
asks once, in the given order (``orders: given``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from PIL import Image

from medtune.clients.errors import RequestRefusedError
from medtune.clients.messages import ChatRequest, SamplingAt, SamplingOptions, content
from medtune.clients.prompt_files import NONE, shortened
from medtune.clients.served import RecordedClient
from medtune.errors import DataError
from medtune.judges.base import Judgement, OpenImages
from medtune.judges.candidates import Candidate
from medtune.judges.parsing import ReadScores, read_scores
from medtune.judges.prompts import CONTEXT, JudgePrompt, read_prompt

NO_ANSWER = "(no answer)"
"""What the judge sees in place of an empty answer."""


@dataclass(frozen=True)
class ModelJudge:
    """A judge that asks a served model.

    Attributes:
        prompt: Name of a packaged prompt (``pair-v1`` with images, ``pair_text-v1`` without), or path of a ``.txt``
            file.
        orders: ``both`` shows the answers in both orders and averages the scores; ``given`` asks once.
        temperature: Sampling temperature; 0 is greedy. The official code uses 0.2.
        top_p: Least sum of the probabilities of the kept tokens.
        seed: Seed of the sampling.
        max_tokens: Maximum number of tokens of a reply; null leaves it to the server, or to
            ``server.options.max_completion_tokens`` where a server wants this name.
        text_limit: Most characters of a caption, and of the mentions together, that a prompt shows.

    Raises:
        ConfigError: There is no such prompt.
        ValueError: A number is out of range.
    """

    remote: ClassVar[bool] = True
    name: ClassVar[str] = "model"
    prompt: str = "pair-v1"
    orders: Literal["both", "given"] = "both"
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    max_tokens: int | None = 300
    text_limit: int = 6000

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or (self.max_tokens is not None and self.max_tokens < 1):
            raise ValueError(
                "temperature must not be negative, top_p must be above 0 and at most 1, max_tokens positive"
            )
        if self.orders not in ("both", "given"):
            raise ValueError("orders must be both or given")
        if self.text_limit < 100:
            raise ValueError("text_limit must be at least 100")
        assert self._read

    @cached_property
    def _read(self) -> JudgePrompt:
        return read_prompt(self.prompt)

    @property
    def looks(self) -> bool:
        """Whether its prompt shows the images."""
        return self._read.images

    def identity(self) -> dict[str, Any]:
        """Return prompt version, orders and sampling."""
        told = any(self._read.shows(name) for name in CONTEXT)
        return {
            "name": self.name,
            "prompt": self._read.version,
            "orders": self.orders,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "max_tokens": self.max_tokens,
            **({"text_limit": self.text_limit} if told else {}),
        }

    def versions(self) -> Sequence[str]:
        """Return name and version of its prompt."""
        return [self._read.version]

    def requests(self, candidate: Candidate, open_images: OpenImages) -> list[ChatRequest]:
        """Return one request for each order.

        Raises:
            DataError: The prompt shows a reference answer, and the candidate has none.
        """
        images = open_images() if self.looks else []
        found = []
        for order in ((0, 1), (1, 0))[: 2 if self.orders == "both" else 1]:
            first, second = (candidate.answers[place].strip() or NO_ANSWER for place in order)
            values = {"question": candidate.question, "answer_1": first, "answer_2": second}
            found.append(self._request(candidate, self._read, values, images, self.max_tokens))
        return found

    def judge(self, candidate: Candidate, open_images: OpenImages, client: RecordedClient | None) -> Judgement:
        """Ask in each order and average. If one reply cannot be read, the candidate has no scores."""
        assert client is not None
        return self._judged(candidate, self.requests(candidate, open_images), client)

    def _judged(self, candidate: Candidate, requests: Sequence[ChatRequest], client: RecordedClient) -> Judgement:
        """Ask for the scores in each order and average them."""
        read, words, asked, cached = [], [], 0, 0
        for request in requests:
            try:
                reply = client.ask(request, self._read.version)
            except RequestRefusedError:
                read.append(ReadScores(None, "rejected"))
                words.append("")
                continue
            asked, cached = asked + reply.asked, cached + (not reply.asked)
            read.append(self._scores(reply.text, reply.finish_reason))
            words.append(reply.text or "")
        shown = tuple(None if one.scores is None else (one.scores[0], one.scores[1]) for one in read)
        reason = next((one.reason for one in read if one.reason), "")
        known = [scores for scores in shown if scores is not None]
        if reason:
            return Judgement(candidate.id, None, reason, shown, asked, cached, words=tuple(words))
        # In the second order the first answer is the one that is shown second.
        own = [scores if place == 0 else scores[::-1] for place, scores in enumerate(known)]
        first, second = (sum(scores[answer] for scores in own) / len(own) for answer in (0, 1))
        return Judgement(candidate.id, (first, second), "", shown, asked, cached, words=tuple(words))

    def _scores(self, text: str | None, finish_reason: str) -> ReadScores:
        """Read the two scores in a reply."""
        return read_scores(text, 2, self._read.low, self._read.high, finish_reason)

    def _request(
        self,
        candidate: Candidate,
        prompt: JudgePrompt,
        values: dict[str, str],
        images: Sequence[Image.Image],
        max_tokens: int | None,
    ) -> ChatRequest:
        """Return the request that a prompt makes of a candidate's texts and images."""
        context = {name: shortened(candidate.context.get(name, ""), self.text_limit) for name in CONTEXT}
        context["reference"] = candidate.context.get("reference", "").strip()
        if prompt.shows("reference") and not context["reference"]:
            raise DataError(
                f"question {candidate.id!r} has no reference answer, which the prompt {prompt.name} shows; choose a "
                "prompt without {reference}, or answer questions that have one."
            )
        text = prompt.filled({name: value or NONE for name, value in context.items()} | values)
        sampling: SamplingOptions | None = None
        if self.temperature:
            sampling = SamplingAt(self.temperature, self.top_p, seed=self.seed)
        turns = [{"role": "user", "content": content([*images, text])}]
        return ChatRequest(candidate.id, turns, sampling, max_tokens)
