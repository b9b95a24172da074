"""One process's share of a run: waves of pictures, each described, asked about and answered, every text logged."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from medtune.evaluation.prediction import Prediction
from medtune.generation.backends.base import Answerer
from medtune.generation.engine.answers import EngineAnswers
from medtune.generation.engine.generator import Generator
from medtune.generation.requests import Request
from medtune.generation.self_questioning.pictures import Picture
from medtune.generation.self_questioning.prompts import ANSWER, ASK, DESCRIBE, Prompts
from medtune.generation.self_questioning.sift import Texts, Written, described, sift_questions


class Questioner:
    """Writes the texts of pictures, wave by wave.

    Each step of a wave is one stream of requests. Those on one image stand next to one another, so that their common
    beginning is read once: the image, for questions also the description, for the second answer also the question.

    Args:
        prompts: Makes the requests.
        open_answerer: Loads the policy; called before the first text that is not known yet.
        write: Appends a row to the log.
        known: Texts that were written before, by id.
        progress: Called with the number of texts that were written, or will not be; the first call has 0 and comes once
            the policy is loaded.

    Attributes:
        asked: Texts that were written now.
    """

    def __init__(
        self,
        prompts: Prompts,
        open_answerer: Callable[[], Answerer],
        write: Callable[[Prediction], None],
        known: Texts,
        progress: Callable[[int], None] = lambda texts: None,
    ) -> None:
        self.prompts, self.settings = prompts, prompts.settings
        self._open, self._write, self._progress = open_answerer, write, progress
        self._known = known
        self._answerer: Answerer | None = None
        self._images = ExitStack()
        self.asked = 0

    @property
    def images_encoded(self) -> int:
        """Images that were encoded, or sent with a request."""
        return self._answerer.images_encoded if self._answerer else 0

    def __call__(self, pictures: Sequence[Picture], wave: int) -> None:
        """Write all texts of the pictures.

        Args:
            pictures: This process's share.
            wave: Pictures per wave.
        """
        for start in range(0, len(pictures), wave):
            with ExitStack() as self._images:
                self._wave(pictures[start : start + wave])

    def _policy(self) -> Answerer:
        """The policy. Medtune's own models keep what they encode until the end of the wave."""
        if self._answerer is None:
            self._answerer = self._open()
            self._progress(0)
        if isinstance(self._answerer, EngineAnswers | Generator) and not self._answerer.keeps_images:
            self._images.enter_context(self._answerer.keeping_images())
        return self._answerer

    def _wave(self, pictures: Sequence[Picture]) -> None:
        texts = dict(self._texts(DESCRIBE, (self.prompts.describe(picture) for picture in pictures)))
        per_question = len(self.settings.answer.seeds)
        shown = {picture: described(picture, texts) for picture in pictures}
        asking = [
            request
            for picture, description in shown.items()
            if description is not None
            for request in self.prompts.ask(picture, description)
        ]
        without = sum(description is None for description in shown.values())
        self._progress(without * (self.settings.texts_per_image - 1))
        texts |= dict(self._texts(ASK, asking))
        answering: list[Request] = []
        for picture, description in shown.items():
            if description is None:
                continue
            kept = sift_questions(picture, texts, self.settings, Counter())
            self._progress((self.settings.ask.count - len(kept)) * per_question)
            for place, question in kept.items():
                answering += self.prompts.answer(picture, place, question)
        for _ in self._texts(ANSWER, answering):
            pass  # each is in the log, and candidates are made of the log

    def _texts(self, step: str, requests: Iterable[Request]) -> Iterator[tuple[str, Written]]:
        """Id and text of each request that the policy could answer, known ones first."""
        asked = {request.id: request for request in requests}
        for name in asked:
            if name in self._known:
                yield name, self._known[name]
        if all(name in self._known for name in asked):
            return
        for batch in self._policy().batches(asked.values(), done=self._known):
            for generation in batch:
                prompt = asked[generation.id].sample.messages[-1].content
                meta: dict[str, Any] = {"tokens": generation.tokens, "stopped": generation.stopped}
                self._write(Prediction(generation.id, step, prompt, generation.text.strip(), (), meta))
                self.asked += 1
                yield generation.id, Written(generation.text.strip(), generation.stopped)
            self._progress(len(batch))


def written(row: Prediction) -> Written:
    """The text of a row of the log."""
    return Written(row.prediction, bool(row.meta.get("stopped")))
