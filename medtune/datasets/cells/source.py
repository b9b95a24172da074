"""A source of samples about cells, which are drawn when they are read."""

import hashlib
import json
import re
from collections.abc import Callable

from PIL import Image

from medtune.data.multiple_choice import open_question
from medtune.data.randomness import sample_rng
from medtune.data.sample import Message, Sample, report_sample
from medtune.datasets.cells.attributes import Attributes, asked_attributes, cell_report, options, sample_attributes
from medtune.datasets.cells.instructions import (
    attribute_list,
    check_drill,
    checks,
    closed_drill,
    conversation,
    phrase_list,
)
from medtune.datasets.cells.lookups import drill, fact_conversation, lookup_conversation, sentence_drill
from medtune.datasets.cells.render import render_cell
from medtune.datasets.cells.text_tasks import text_conversation
from medtune.datasets.cells.wording import open_answer
from medtune.datasets.preferences import REJECTED
from medtune.errors import ConfigError, DataError

#: Change it whenever the same arguments would give other images or other words.
RENDERER_VERSION = 1

_IMAGE_NAME = re.compile(r"cell-(\d+)\.png")


class RenderedCells:
    """Samples about rendered cells; sample i is a function of the seed and of `offset + i` alone.

    Nothing is stored: attributes, words and images are drawn again each time, each from its own random generator.
    """

    def __init__(self, size: int, seed: int, kind: str, image_size: int, offset: int, natural: float) -> None:
        """See `rendered_cells_dataset`."""
        if kind not in KINDS:
            raise ConfigError(f"rendered cells: unknown kind {kind!r}; use one of {', '.join(KINDS)}.")
        if size < 1 or offset < 0 or image_size < 16 or not 0 <= natural <= 1:
            raise ConfigError(
                f"rendered cells: size {size} must be at least 1, offset {offset} at least 0, "
                f"image_size {image_size} at least 16, natural {natural} between 0 and 1."
            )
        self.name = f"rendered_cells_{kind}"
        self._size, self._seed, self._kind = size, seed, kind
        self._image_size, self._offset, self._natural = image_size, offset, natural

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._size

    def __getitem__(self, index: int) -> Sample:
        """Return a sample.

        Raises:
            IndexError: if the index is outside the source.
        """
        if not 0 <= index < self._size:
            raise IndexError(f"{self.name}: no sample {index}, there are {self._size}.")
        return KINDS[self._kind](self, self._offset + index)

    def attributes(self, number: int) -> Attributes:
        """Return the attributes of the cell of that number."""
        return sample_attributes(sample_rng(self._seed, 0, number, "cell"), self._natural)

    def open_images(self, sample: Sample) -> list[Image.Image]:
        """Draw the images of a sample.

        Raises:
            DataError: if the sample is not one of a rendered source.
        """
        return [self._draw(name, sample.id) for name in sample.images]

    def image_sizes(self, sample: Sample) -> list[tuple[int, int]]:
        """Return (width, height) of each image."""
        return [(self._image_size, self._image_size)] * len(sample.images)

    def fingerprint(self) -> str:
        """Return a digest of everything that the samples depend on."""
        parts = [RENDERER_VERSION, self._size, self._seed, self._kind, self._image_size, self._offset, self._natural]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _draw(self, name: str, sample_id: str) -> Image.Image:
        match = _IMAGE_NAME.fullmatch(name)
        if match is None:
            raise DataError(
                f"{self.name}, sample {sample_id!r}: {name!r} is not a rendered cell, such as cell-000123.png."
            )
        number = int(match[1])
        return render_cell(self.attributes(number), sample_rng(self._seed, 0, number, "image"), self._image_size)

    def _report(self, number: int) -> Sample:
        return report_sample(f"cell-{number:06d}", (f"cell-{number:06d}.png",), cell_report(self.attributes(number)))

    def _question(self, number: int) -> Sample:
        cell = self.attributes(number)
        name = sample_rng(self._seed, 0, number, "question").choice(asked_attributes(cell))
        messages = (Message("user", open_question(name)), Message("assistant", cell[name]))
        meta = {"attribute": name, "options": options(name), "answer": cell[name]}
        return Sample(f"cell-{number:06d}", (f"cell-{number:06d}.png",), messages, meta)

    def _preference(self, number: int) -> Sample:
        cell, rng = self.attributes(number), sample_rng(self._seed, 0, number, "preference")
        name = rng.choice(asked_attributes(cell))
        wrong = rng.choice([value for value in options(name) if value != cell[name]])
        messages = (Message("user", open_question(name)), Message("assistant", open_answer(name, cell[name])))
        meta = {"attribute": name, REJECTED: open_answer(name, wrong)}
        return Sample(f"cell-{number:06d}-preference", (f"cell-{number:06d}.png",), messages, meta)

    def _instructions(self, number: int) -> Sample:
        messages = conversation(self.attributes(number), sample_rng(self._seed, 0, number, "instructions"))
        return Sample(f"cell-{number:06d}-instructions", (f"cell-{number:06d}.png",), messages)

    def _by_value(self, number: int) -> Sample:
        rng = sample_rng(self._seed, 0, number, "by_value")
        messages = conversation(self.attributes(number), rng, value_first=True)
        return Sample(f"cell-{number:06d}-by-value", (f"cell-{number:06d}.png",), messages)

    def _checks(self, number: int) -> Sample:
        messages = checks(self.attributes(number), sample_rng(self._seed, 0, number, "checks"))
        return Sample(f"cell-{number:06d}-checks", (f"cell-{number:06d}.png",), messages)

    def _check_drills(self, number: int) -> Sample:
        messages = check_drill(self.attributes(number), sample_rng(self._seed, 0, number, "check_drills"))
        return Sample(f"cell-{number:06d}-check-drill", (f"cell-{number:06d}.png",), messages, {"drill": True})

    def _closed_drills(self, number: int) -> Sample:
        messages = closed_drill(self.attributes(number), sample_rng(self._seed, 0, number, "closed_drills"))
        return Sample(f"cell-{number:06d}-closed-drill", (f"cell-{number:06d}.png",), messages, {"drill": True})

    def _attributes(self, number: int) -> Sample:
        messages = attribute_list(self.attributes(number), sample_rng(self._seed, 0, number, "attributes"))
        return Sample(f"cell-{number:06d}-attributes", (f"cell-{number:06d}.png",), messages)

    def _phrases(self, number: int) -> Sample:
        messages = phrase_list(self.attributes(number), sample_rng(self._seed, 0, number, "phrases"))
        return Sample(f"cell-{number:06d}-phrases", (f"cell-{number:06d}.png",), messages)

    def _text(self, number: int) -> Sample:
        messages = text_conversation(self.attributes(number), sample_rng(self._seed, 0, number, "text"))
        return Sample(f"text-{number:06d}", (), messages)

    def _text_by_value(self, number: int) -> Sample:
        rng = sample_rng(self._seed, 0, number, "text_by_value")
        return Sample(f"text-{number:06d}", (), text_conversation(self.attributes(number), rng, value_first=True))

    def _drills(self, number: int) -> Sample:
        return Sample(f"drill-{number:06d}", (), drill(sample_rng(self._seed, 0, number, "drills")), {"drill": True})

    def _sentence_drills(self, number: int) -> Sample:
        return Sample(
            f"sentence-drill-{number:06d}",
            (),
            sentence_drill(sample_rng(self._seed, 0, number, "sentence_drills")),
            {"drill": True},
        )

    def _lookups(self, number: int) -> Sample:
        messages = lookup_conversation(sample_rng(self._seed, 0, number, "lookups"))
        return Sample(f"lookups-{number:06d}", (), messages)

    def _facts(self, number: int) -> Sample:
        messages = fact_conversation(sample_rng(self._seed, 0, number, "facts"))
        return Sample(f"facts-{number:06d}", (), messages)


KINDS: dict[str, Callable[[RenderedCells, int], Sample]] = {
    "reports": RenderedCells._report,
    "questions": RenderedCells._question,
    "attributes": RenderedCells._attributes,
    "instructions": RenderedCells._instructions,
    "phrases": RenderedCells._phrases,
    "preferences": RenderedCells._preference,
    "text": RenderedCells._text,
    "instructions_by_value": RenderedCells._by_value,
    "text_by_value": RenderedCells._text_by_value,
    "check_drills": RenderedCells._check_drills,
    "closed_drills": RenderedCells._closed_drills,
    "checks": RenderedCells._checks,
    "drills": RenderedCells._drills,
    "sentence_drills": RenderedCells._sentence_drills,
    "lookups": RenderedCells._lookups,
    "facts": RenderedCells._facts,
}
