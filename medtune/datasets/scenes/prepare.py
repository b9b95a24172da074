"""Scenes of white blood cells as a data set with the seven tasks of FLARE 2D."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medtune.config import nearest
from medtune.data.archives import png_bytes, tar_blocks
from medtune.data.images import ImageRoot
from medtune.data.randomness import sample_rng
from medtune.data.sample import Message, Sample
from medtune.datasets.prepared import Prepared
from medtune.datasets.scenes.cells import Cells, DrawnCells, Photographs
from medtune.datasets.scenes.draw import Scene, draw_scene, paint
from medtune.datasets.scenes.tasks import ANSWERS
from medtune.datasets.scenes.wording import BASE_WORDINGS, HELD_OUT, WORDINGS
from medtune.datasets.wbcatt import SPLITS
from medtune.errors import ConfigError

NAME, DRAWN = "cell_scenes", "drawn_scenes"
IMAGES = "images.tar"
_SMALLEST_SIDE, _LARGEST_SIDE = 48, 512
_FOLDERS = {"train": "imagesTr", "val": "imagesVal", "test": "imagesTs"}


@dataclass(frozen=True)
class SceneSplit:
    """The scenes of one split; scene i is a function of the seed, the split and i.

    Attributes:
        dataset: name of the data set.
        name: ``train``, ``val`` or ``test``.
        cells: the pictures of cells.
        wordings: task -> the wordings of its question.
        size: number of scenes.
        side: width and height of a canvas in pixels.
        seed: of everything random.
    """

    dataset: str
    name: str
    cells: Cells
    wordings: Mapping[str, Sequence[str]]
    size: int
    side: int
    seed: int
    _painted: dict[int, bytes] = field(default_factory=dict, repr=False, compare=False)

    def scene(self, number: int) -> Scene:
        """The scene of a number."""
        return draw_scene(sample_rng(self.seed, 0, number, f"{self.name}/scene"), self.cells.names, self.side)

    def image(self, number: int) -> str:
        """The path of a scene's image in the tar file."""
        return f"{_FOLDERS[self.name]}/scene_{number:05d}.png"

    def members(self) -> Iterator[tuple[str, bytes]]:
        """Yield path and contents of every image; each is painted once, about 8 kB."""
        for number in range(self.size):
            if number not in self._painted:
                self._painted[number] = self._paint(number)
            yield self.image(number), self._painted[number]

    def _paint(self, number: int) -> bytes:
        scene = self.scene(number)
        pictures = [self.cells.load(cell.picture) for cell in scene.cells]
        grain = sample_rng(self.seed, 0, number, f"{self.name}/grain")
        return png_bytes(paint(scene, pictures, self.cells.center_crop, grain))

    def samples(self, tasks: Sequence[str], tasks_per_scene: int) -> list[Sample]:
        """The questions: each scene is asked ``tasks_per_scene`` of the tasks in turn, all equally often."""
        return [
            self._question(number, tasks[(number * tasks_per_scene + place) % len(tasks)])
            for number in range(self.size)
            for place in range(tasks_per_scene)
        ]

    def _question(self, number: int, task: str) -> Sample:
        question = sample_rng(self.seed, 0, number, f"{self.name}/{task}").choice(self.wordings[task])
        answer = ANSWERS[task](self.scene(number))
        meta = {"task": task, "dataset": self.dataset, "modality": "microscopy", "answer": answer}
        messages = (Message("user", question), Message("assistant", answer))
        return Sample(f"{self.dataset}/{self.name}/{number:05d}/{task}", (self.image(number),), messages, meta)


def prepare_scenes(
    annotations: str,
    images: str,
    train: int = 2000,
    val: int = 200,
    test: int = 400,
    side: int = 64,
    tasks: Sequence[str] | None = None,
    tasks_per_scene: int = 2,
    tasks_per_test_scene: int | None = None,
    center_crop: float = 0.5625,
    seed: int = 0,
) -> Prepared:
    """Paste photographed white blood cells on canvases, with questions of FLARE's tasks whose answers are known.

    A scene of a split shows cells of WBCAtt's split of the same name. A photograph that occurs in an earlier split too
    is left out. Test questions are worded as no training or validation question is.

    Args:
        annotations: folder of ``pbc_attr_v1_{train,val,test}.csv``.
        images: folder or ``.tar`` of the photographs.
        train: number of scenes for training.
        val: number of scenes for choices such as a threshold.
        test: number of scenes of the test.
        side: width and height of a scene in pixels.
        tasks: some of the seven tasks; absent takes all.
        tasks_per_scene: number of questions about each scene, each of another task.
        tasks_per_test_scene: the same for a validation or test scene; absent takes ``tasks_per_scene``.
        center_crop: share of a photograph's sides that its cell fills: 0.5625 of WBCAtt's.
        seed: of everything random.

    Raises:
        ConfigError: for a size out of range or an unknown task.
        DataError: if the tables or the photographs cannot be read, or a type has no photograph.
    """
    sizes = {"train": train, "val": val, "test": test}
    of_test = tasks_per_scene if tasks_per_test_scene is None else tasks_per_test_scene
    asked = {"train": tasks_per_scene, "val": of_test, "test": of_test}
    chosen = _checked(tasks, asked, side, center_crop, sizes)
    root, folder = ImageRoot(images), Path(annotations).expanduser()
    inputs = {split: folder / f"pbc_attr_v1_{split}.csv" for split in SPLITS}
    seen: set[str] = set()
    splits = []
    for split, size in sizes.items():
        kept = slice(-HELD_OUT, None) if split == "test" else slice(None, -HELD_OUT)
        wordings = {task: texts[kept] for task, texts in WORDINGS.items()}
        cells = Photographs(inputs[split], root, center_crop, seen)
        splits.append(SceneSplit(NAME, split, cells, wordings, size, side, seed))
    return _prepared(splits, chosen, asked, inputs, {"center_crop": center_crop})


def prepare_drawn_scenes(
    train: int = 4000,
    val: int = 100,
    side: int = 64,
    tasks: Sequence[str] | None = None,
    tasks_per_scene: int = 2,
    seed: int = 1,
) -> Prepared:
    """Scenes of drawn cells, from which a mini model learns to count, to place and to measure, before photographs.

    Arguments and errors as for :func:`prepare_scenes`; the questions are worded as none of its questions is.
    """
    sizes = {"train": train, "val": val}
    asked = dict.fromkeys(sizes, tasks_per_scene)
    chosen = _checked(tasks, asked, side, 1.0, sizes)
    cells = DrawnCells(seed)
    splits = [SceneSplit(DRAWN, name, cells, BASE_WORDINGS, size, side, seed) for name, size in sizes.items()]
    return _prepared(splits, chosen, asked, {}, {})


def _prepared(
    splits: Sequence[SceneSplit],
    tasks: list[str],
    asked: dict[str, int],
    inputs: dict[str, Path],
    more: dict[str, float],
) -> Prepared:
    samples = {split.name: split.samples(tasks, asked[split.name]) for split in splits}
    first = splits[0]
    return Prepared(
        name=first.dataset,
        splits=samples,
        inputs=inputs,
        options={"side": first.side, "tasks": tasks, "tasks_per_scene": asked, "seed": first.seed, **more},
        summary={"tasks": {name: dict(Counter(s.meta["task"] for s in rows)) for name, rows in samples.items()}},
        files={IMAGES: lambda: tar_blocks(member for split in splits for member in split.members())},
    )


def _checked(
    tasks: Sequence[str] | None, asked: dict[str, int], side: int, center_crop: float, sizes: dict[str, int]
) -> list[str]:
    chosen = list(ANSWERS if tasks is None else tasks)
    unknown = [task for task in chosen if task not in ANSWERS]
    if unknown or not chosen or len(set(chosen)) < len(chosen):
        hint = nearest(unknown[0], list(ANSWERS)) if unknown else "name one or more, each once"
        raise ConfigError(f"tasks of the scenes: {unknown or chosen} cannot be used; {hint}")
    for number in asked.values():
        if not 1 <= number <= len(chosen):
            raise ConfigError(f"tasks_per_scene is {number}; it must be from 1 to the number of tasks, {len(chosen)}")
    if not _SMALLEST_SIDE <= side <= _LARGEST_SIDE:
        raise ConfigError(f"side is {side}; a scene has {_SMALLEST_SIDE} to {_LARGEST_SIDE} pixels a side")
    if not 0 < center_crop <= 1:
        raise ConfigError(f"center_crop is {center_crop}; it must be above 0 and at most 1")
    small = [name for name, size in sizes.items() if size < 1]
    if small:
        raise ConfigError(f"{small[0]} is {sizes[small[0]]}; each split needs a scene")
    return chosen
