"""Free-form prompts about images: every prompt of a file is asked about every chosen image, without a right answer."""

from pathlib import Path

from medtune.data.sample import IMAGE_TAG, Message, Sample
from medtune.datasets._jsonl import jsonl_dataset
from medtune.datasets.prepared import Prepared
from medtune.errors import DataError

KIND = "free_form"


def prepare_free_form(questions: str, prompts: str, images: int | None = 8) -> Prepared:
    """Make a split ``test`` of prompts about images, for the protocol ``free_form`` (InstFree, Fig. 8).

    Args:
        questions: JSON Lines with the images: prepared questions or reports; their texts are not used.
        prompts: text file with one prompt per line; empty lines and lines that begin with ``#`` are skipped.
        images: number of images, from the start of the file, each once; absent takes all.

    Raises:
        DataError: a file is absent; there is no prompt, or one twice, or one with an image tag; or no row has an image.
    """
    if images is not None and images < 1:
        raise DataError(f"images must be at least 1, not {images}.")
    asked, rows = read_prompts(prompts), jsonl_dataset(questions)
    shown: dict[tuple[str, ...], str] = {}
    for place in range(len(rows)):
        sample = rows[place]
        if sample.images and len(shown) != images:
            shown.setdefault(sample.images, sample.id)
    if not shown:
        raise DataError(f"{questions}: no row has an image to ask about.")
    samples = [
        Sample(f"{id}/prompt{number}", paths, (Message("user", prompt),), {"kind": KIND})
        for paths, id in shown.items()
        for number, prompt in enumerate(asked, 1)
    ]
    inputs = {"questions": Path(questions), "prompts": Path(prompts)}
    return Prepared(KIND, {"test": samples}, inputs, {"images": images}, summary={"prompts": len(asked)})


def read_prompts(path: str | Path) -> list[str]:
    """Return the prompts of a text file.

    Raises:
        DataError: as :func:`prepare_free_form`.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file of prompts; write one prompt per line.") from None
    except (OSError, UnicodeDecodeError):
        raise DataError(f"{path}: not a text file in UTF-8.") from None
    found: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        prompt = line.strip()
        if not prompt or prompt.startswith("#"):
            continue
        if IMAGE_TAG in prompt:
            raise DataError(f"{path}, line {number}: leave {IMAGE_TAG} out; the image is placed before the prompt.")
        if prompt in found:
            raise DataError(f"{path}, line {number}: the prompt of line {found[prompt]} again; leave one out.")
        found[prompt] = number
    if not found:
        raise DataError(f"{path}: no line holds a prompt.")
    return list(found)
