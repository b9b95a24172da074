"""Features of images and texts for groups: stored ones, timm with a sentence encoder, or a CLIP model of open_clip.

Every encoder returns image and text features of length 1 each, side by side with the text first, as BioMed-VITAL's code
has them. Weights are read from local files; nothing is downloaded.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from medtune.curation.figures import Figure
from medtune.data.writing import file_sha256
from medtune.errors import ConfigError, DataError, ModelError

Rows = NDArray[np.float32]
LOCAL = "local-dir:"
"""Begins the name of a model of open_clip in a folder."""


class Features(Protocol):
    """Makes the features of figures."""

    @property
    def looks(self) -> bool:
        """Whether the images are opened."""
        ...

    def check(self, count: int) -> None:
        """Refuse to be asked about another number of figures than the features are of.

        Args:
            count: Number of all figures of the run.

        Raises:
            DataError: If the features are stored, and without ids.
        """
        return None

    def identity(self) -> dict[str, Any]:
        """Return what the features depend on, as plain values."""
        ...

    def of(self, figures: Sequence[Figure], images: Sequence[Image.Image], rows: Sequence[int]) -> Rows:
        """Return features ``[N, D]``.

        Args:
            figures: N figures.
            images: Their images in RGB; none if ``looks`` is false.
            rows: Their places among all figures of the run.
        """
        ...


@dataclass(frozen=True)
class StoredFeatures(Features):
    """Features that another program has made.

    Attributes:
        path: ``.npy``, or ``.safetensors`` with one tensor ``features``: ``[N, D]``.
        ids: Text file with the id of each row, one a line; null if the rows are those of the figures, in order.

    Raises:
        DataError: The file cannot be read, or its sizes do not fit.
    """

    path: str
    ids: str | None = None

    @property
    def looks(self) -> bool:
        """No image is opened."""
        return False

    def check(self, count: int) -> None:
        """Refuse a table without ids that has another number of rows, which would be rows of other figures."""
        if self._places is None and len(self._table) != count:
            raise DataError(
                f"{self.path} has {len(self._table)} rows, and there are {count} figures; give 'ids', a text file with "
                "the id of each row (needed where 'modalities' or 'limit' leaves figures out), or make it anew."
            )

    def identity(self) -> dict[str, Any]:
        """Return the file's SHA-256."""
        self._table.shape  # noqa: B018 - a file that cannot be read is said before its hash
        ids = None if self.ids is None else file_sha256(Path(self.ids).expanduser())
        return {"name": "stored", "sha256": file_sha256(Path(self.path).expanduser()), "ids": ids}

    def of(self, figures: Sequence[Figure], images: Sequence[Image.Image], rows: Sequence[int]) -> Rows:
        """Return the rows of the figures."""
        places = self._places
        if places is None:
            return np.asarray(self._table[list(rows)], dtype=np.float32)
        absent = [figure.id for figure in figures if figure.id not in places]
        if absent:
            raise DataError(f"{self.path} has no features of the figure {absent[0]!r}; add them, or leave it out.")
        return np.asarray(self._table[[places[figure.id] for figure in figures]], dtype=np.float32)

    @cached_property
    def _table(self) -> NDArray[Any]:
        path = Path(self.path).expanduser()
        try:
            if path.suffix == ".safetensors":
                from safetensors.numpy import load_file

                table = load_file(path)["features"]
            else:
                table = np.load(path, mmap_mode="r", allow_pickle=False)
        except KeyError:
            raise DataError(f"{path} has no tensor 'features'; save it under this name.") from None
        except Exception as error:
            raise DataError(
                f"{path} cannot be read as features ({type(error).__name__}); give .npy or .safetensors."
            ) from None
        if table.ndim != 2 or not np.issubdtype(table.dtype, np.floating):
            raise DataError(f"{path} must hold one table of decimal numbers, rows by features.")
        return table

    @cached_property
    def _places(self) -> dict[str, int] | None:
        if self.ids is None:
            return None
        path = Path(self.ids).expanduser()
        try:
            names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError):
            raise DataError(f"{path} cannot be read; give a UTF-8 text file with one id a line.") from None
        if len(names) != len(self._table) or len(set(names)) != len(names):
            raise DataError(
                f"{path} has {len(names)} ids ({len(set(names))} different), {self.path} has {len(self._table)} rows; "
                "give one id for each row"
            )
        return {name: place for place, name in enumerate(names)}


@dataclass(frozen=True)
class PlainFeatures(Features):
    """Small thumbnails and counts of words: no weights are needed, and no more is seen than colours and words.

    Attributes:
        side: Pixels of a thumbnail's side.
        words: Cells that words and pairs of words are hashed to.
    """

    side: int = 8
    words: int = 256

    @property
    def looks(self) -> bool:
        """Images are opened."""
        return True

    def identity(self) -> dict[str, Any]:
        """Return the sizes."""
        return {"name": "plain", "side": self.side, "words": self.words}

    def of(self, figures: Sequence[Figure], images: Sequence[Image.Image], rows: Sequence[int]) -> Rows:
        """Return counts of words and pixels."""
        from sklearn.feature_extraction.text import HashingVectorizer

        counted = HashingVectorizer(n_features=self.words, ngram_range=(1, 2)).transform([one.text for one in figures])
        small = [np.asarray(image.resize((self.side, self.side), Image.Resampling.BOX)) / 255 - 0.5 for image in images]
        pixels = np.stack(small).reshape(len(images), -1).astype(np.float32)
        return beside(torch.from_numpy(counted.toarray().astype(np.float32)), torch.from_numpy(pixels))


@dataclass(frozen=True)
class TimmFeatures(Features):
    """An image model of timm, and a sentence encoder of transformers (extra ``transformers``).

    Attributes:
        model: Name of the image model, such as ``vit_base_patch16_224``.
        weights: Its ``.safetensors`` file.
        text_encoder: Folder of the sentence encoder with its tokenizer; tokens are averaged.
        device: ``cpu`` or ``cuda``.
        max_length: Most tokens of a text.
    """

    model: str
    weights: str
    text_encoder: str
    device: str = "cpu"
    max_length: int = 256

    @property
    def looks(self) -> bool:
        """Images are opened."""
        return True

    def identity(self) -> dict[str, Any]:
        """Return names, weights and lengths."""
        return {
            "name": "timm",
            "model": self.model,
            "weights": _sha256(self.weights),
            "text": _folder_sha256(self.text_encoder),
            "max_length": self.max_length,
        }

    def of(self, figures: Sequence[Figure], images: Sequence[Image.Image], rows: Sequence[int]) -> Rows:
        """Encode images and texts."""
        network, transform = self._image_model
        tokenizer, encoder = self._text_model
        with torch.inference_mode():
            pixels = torch.stack([transform(image) for image in images]).to(self.device)
            seen = network(pixels)
            words = tokenizer(
                [figure.text for figure in figures],
                padding=True,
                truncation=True,
                max_length=self.max_length,
                return_tensors="pt",
            ).to(self.device)
            hidden, mask = encoder(**words).last_hidden_state, words["attention_mask"].unsqueeze(-1)
            read = (hidden * mask).sum(1) / mask.sum(1)
        return beside(read, seen)

    @cached_property
    def _image_model(self) -> tuple[Any, Any]:
        import timm
        from safetensors.torch import load_file

        try:
            network = timm.create_model(self.model, pretrained=False)
            network.load_state_dict(load_file(Path(self.weights).expanduser()))
            network.reset_classifier(0)
        except RuntimeError as error:
            raise ModelError(f"{self.weights} does not fit timm's {self.model}: {str(error).splitlines()[0]}") from None
        except Exception as error:
            raise ModelError(f"{self.model} with {self.weights} cannot be opened ({type(error).__name__}).") from None
        settings = timm.data.resolve_model_data_config(network)
        return network.eval().to(self.device), timm.data.create_transform(**settings, is_training=False)

    @cached_property
    def _text_model(self) -> tuple[Any, Any]:
        try:
            from transformers import AutoModel, AutoTokenizer
        except ImportError:
            raise ConfigError("a sentence encoder needs transformers: pip install 'medtune[transformers]'") from None
        options = {"local_files_only": True, "trust_remote_code": False}
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.text_encoder, **options)
            encoder = AutoModel.from_pretrained(self.text_encoder, use_safetensors=True, **options)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{self.text_encoder} is no sentence encoder ({type(error).__name__}); give its folder."
            ) from None
        return tokenizer, encoder.eval().to(self.device)


@dataclass(frozen=True)
class ClipFeatures(Features):
    """A CLIP model of open_clip (extra ``curation``), such as BiomedCLIP, from a local checkpoint.

    Attributes:
        model: Name of the architecture that open_clip knows, such as ``ViT-B-16``; or ``local-dir:FOLDER`` with the
            ``open_clip_config.json``, the weights and the tokenizer of a downloaded model, and the ``config.json`` of
            its text model where that is one of transformers (BiomedCLIP).
        checkpoint: The ``.safetensors`` file; null with ``local-dir:``.
        device: ``cpu`` or ``cuda``.
    """

    model: str
    checkpoint: str | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.model.startswith("hf-hub:"):
            raise ConfigError("nothing is downloaded; give local-dir:FOLDER, the folder of the downloaded model")
        if self.checkpoint is None and not self.model.startswith(LOCAL):
            raise ConfigError("features.checkpoint is missing; give the .safetensors file of the weights")
        if self.checkpoint is not None and not self.checkpoint.endswith(".safetensors"):
            raise ConfigError("features.checkpoint must be a .safetensors file; other formats can run code")

    @property
    def looks(self) -> bool:
        """Images are opened."""
        return True

    def identity(self) -> dict[str, Any]:
        """Return the architecture and the weights."""
        folder = self.model.removeprefix(LOCAL)
        held = _folder_sha256(folder) if self.checkpoint is None else _sha256(self.checkpoint)
        return {"name": "clip", "model": Path(self.model).name, "weights": held}

    def of(self, figures: Sequence[Figure], images: Sequence[Image.Image], rows: Sequence[int]) -> Rows:
        """Encode images and texts; a text longer than the model's context is cut off."""
        network, transform, tokenizer = self._opened
        with torch.inference_mode():
            seen = network.encode_image(torch.stack([transform(image) for image in images]).to(self.device))
            read = network.encode_text(tokenizer([figure.text for figure in figures]).to(self.device))
        return beside(read, seen)

    @cached_property
    def _opened(self) -> tuple[Any, Any, Any]:
        try:
            import open_clip
        except ImportError:
            raise ConfigError("CLIP models need open_clip: pip install 'medtune[curation]'") from None
        given = None if self.checkpoint is None else str(Path(self.checkpoint).expanduser())
        more = {"text_cfg": _text_config(Path(self.model.removeprefix(LOCAL)))} if self.model.startswith(LOCAL) else {}
        try:
            network, _, transform = open_clip.create_model_and_transforms(
                self.model, pretrained=given, require_pretrained=True, weights_only=True, **more
            )
            tokenizer = open_clip.get_tokenizer(self.model)
        except Exception as error:
            raise ModelError(
                f"{self.model} cannot be opened by open_clip ({type(error).__name__}); check name and files."
            ) from None
        return network.eval().to(self.device), transform, tokenizer


def beside(text: torch.Tensor, image: torch.Tensor) -> Rows:
    """Return text and image features of length 1 each, side by side, ``[N, T + I]``."""
    parts = [torch.nn.functional.normalize(part.float(), dim=-1) for part in (text, image)]
    return torch.cat(parts, dim=-1).cpu().numpy()


def _text_config(folder: Path) -> dict[str, Any]:
    """Return the text model's settings of a model in a folder; open_clip itself would look its architecture up online.

    Raises:
        ConfigError: A file is missing.
    """
    path = folder / "open_clip_config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        text = dict(settings.get("model_cfg", settings)["text_cfg"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(
            f"{path} is missing or no config of open_clip; give the folder of a downloaded model"
        ) from None
    name = text.get("hf_model_name")
    if name is not None:
        if not (folder / "config.json").is_file():
            raise ConfigError(
                f"{folder} has no config.json of its text model: hf download {name} config.json --local-dir {folder}"
            )
        text |= {"hf_model_name": str(folder), "hf_model_pretrained": False}
    return text


def _sha256(path: str) -> str:
    found = Path(path).expanduser()
    if not found.is_file():
        raise ConfigError(f"there is no file {path}; give the weights of the model")
    return file_sha256(found)


def _folder_sha256(path: str) -> dict[str, str]:
    folder = Path(path).expanduser()
    kinds = ("*.safetensors", "*.bin", "*.json")
    files = sorted(file for kind in kinds for file in folder.glob(kind)) if folder.is_dir() else []
    if not files:
        raise ConfigError(f"there is no model in the folder {path}; give the folder with its weights")
    return {file.name: file_sha256(file) for file in files}
