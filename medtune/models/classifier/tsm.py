"""The task-specific model (TSM) of VITask: an image classifier of timm, trained by medtune's own trainer.

One model may serve several sets: its head has a logit for every class of every set, and an image is classified among
the classes of its own set.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from medtune.data.items import Sizes
from medtune.data.labels import LabelTask, classification_target
from medtune.data.sample import Sample
from medtune.data.source import JsonlSource
from medtune.errors import ConfigError, DataError, ModelError
from medtune.models.classifier import timm_models
from medtune.models.classifier.timm_models import some
from medtune.models.common.family import ModelFamily, StateDict
from medtune.models.common.interface import BatchShape
from medtune.models.weights import load_weights

Tokens = Literal["cls", "all"]
MODEL_TYPE = "medtune_tsm"
_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)


@dataclass(frozen=True)
class LabelledSet:
    """The classes of one set.

    Attributes:
        task: ``multi_class``, ``multi_label`` or ``ordinal``.
        classes: by index.
    """

    task: LabelTask
    classes: tuple[str, ...]


def label_sets(source: str) -> dict[str, LabelledSet]:
    """The sets of a prepared file, in the order in which they first appear.

    Args:
        source: JSON Lines of classification questions, as the ``prepare`` recipe writes them.

    Raises:
        DataError: if there is no such file, a row is no classification question, or two rows of a set name other
            classes.
    """
    if not Path(source).expanduser().is_file():
        raise DataError(
            f"The data file {source} does not exist, so the model's classes are not known; run the prepare recipe, or "
            "correct model.sets"
        )
    found: dict[str, LabelledSet] = {}
    samples = JsonlSource(source, None)
    for index in range(len(samples)):
        target = classification_target(samples[index])
        here = LabelledSet(target.task, target.classes)
        if found.setdefault(target.set, here) != here:
            raise DataError(f"{source}, row {index + 1}: the set {target.set!r} has other classes than in rows before")
    return found


class PixelTransform:
    """Pictures as the classifier's pixels: squashed to a square, bicubic, normalised. Picklable; holds no state.

    It gives what timm's own evaluation transform gives with ``crop_pct=1, crop_mode="squash"``. It stands where a
    language model's transform stands in a training run; a sample counts as one token and one tile.

    Args:
        image_size: side in pixels.
        mean: per channel, subtracted.
        std: per channel, divided by.

    Attributes:
        max_seq_len: 1.
        dtype: of the pixels.

    Raises:
        ConfigError: if a side is not positive, or mean and std are not three numbers each, std positive.
    """

    def __init__(
        self, image_size: int = 224, mean: tuple[float, ...] = (0.5,) * 3, std: tuple[float, ...] = (0.5,) * 3
    ) -> None:
        if image_size < 1 or len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ConfigError(
                f"image_size {image_size}, mean {list(mean)}, std {list(std)}: the side must be at least 1, mean and "
                "std have one number for each of three channels, and std is above 0"
            )
        self.image_size, self.mean, self.std = image_size, tuple(mean), tuple(std)
        self.max_seq_len = 1
        self.dtype = torch.float32

    def pixels(self, image: Image.Image) -> Tensor:
        """A picture of any size and mode as [3, image_size, image_size] in ``dtype``."""
        square = image.convert("RGB").resize((self.image_size, self.image_size), Image.Resampling.BICUBIC)
        values = torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255
        mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (self.mean, self.std))
        return ((values - mean) / std).contiguous().to(self.dtype)

    def token_counts(self, sample: Sample, sizes: Sizes | None = None) -> tuple[int, int]:
        """One, whose label is learned: nothing is read."""
        return 1, 1

    def tile_count(self, width: int, height: int) -> int:
        """One."""
        return 1

    def settings(self) -> dict[str, Any]:
        """What decides the pixels."""
        return {"image_size": self.image_size, "mean": list(self.mean), "std": list(self.std)}


class TaskModel(nn.Module):
    """A timm classifier over the classes of one set or several.

    Batch normalisation keeps the statistics that the weights bring along, in training too: what an image gives then
    does not depend on its batch, and one process trains as two do.

    Args:
        architecture: any name of timm.
        sets: name -> classes.
        image_size: side of its pictures.
        mean: per channel, subtracted from pixels.
        std: per channel, divided by.
        arguments: further arguments of timm's model.

    Attributes:
        transform: pictures -> its pixels.
        family: how its weights are written: timm's own names, and a ``config.json`` that says the rest.
        missing: what was not found although the model needs it; only on the meta device, when a run is planned.

    Raises:
        ConfigError: for a name that timm does not know, arguments that the model refuses, pictures that cannot be cut
            into its patches, or no set.
    """

    missing: tuple[str, ...] = ()
    reads_text = False
    images_as_tokens = False
    vocab_size = 0

    def __init__(
        self,
        architecture: str,
        sets: Mapping[str, LabelledSet],
        image_size: int = 224,
        mean: tuple[float, ...] = (0.5,) * 3,
        std: tuple[float, ...] = (0.5,) * 3,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not sets:
            raise ConfigError("a task-specific model needs the classes of at least one set")
        self.architecture, self.sets, self.arguments = architecture, dict(sets), dict(arguments or {})
        self.transform = PixelTransform(image_size, mean, std)
        self.encoder = self._encoder()
        self.family = self._family()

    def _encoder(self) -> Any:
        classes = sum(len(one.classes) for one in self.sets.values())
        return timm_models.build(self.architecture, classes, self.transform.image_size, self.arguments)

    def train(self, mode: bool = True) -> "TaskModel":
        """As every module's, but batch normalisation stays as it is in evaluation."""
        super().train(mode)
        for module in self._batch_norms():
            module.eval()
        return self

    def _batch_norms(self) -> Iterator[nn.Module]:
        return (module for module in self.modules() if isinstance(module, _BATCH_NORMS))

    def check_trainable(self) -> None:
        """Refuse to train a model that needs statistics of batches and has none.

        Raises:
            ModelError: naming what to do.
        """
        means = [module.running_mean for module in self._batch_norms() if isinstance(module.running_mean, Tensor)]
        if means and not any(bool(mean.any()) for mean in means):
            raise ModelError(
                f"{self.architecture} has {len(means)} batch normalisations, whose statistics are kept as loaded, and "
                "nothing was loaded: give pretrained weights, or choose a model with another normalisation (resnet18 "
                "takes norm_layer: groupnorm; convnext and vit have none)"
            )

    def rope_init(self) -> None:
        """Fill tables that no weight file holds, after a build on the meta device; the name is torchtune's."""
        tables = {name for name, _ in self.encoder.named_buffers()} - self.encoder.state_dict().keys()
        if tables:
            fresh = dict(self._encoder().named_buffers())
            for name in tables:
                owner, _, own_name = name.rpartition(".")
                self.encoder.get_submodule(owner).register_buffer(own_name, fresh[name], persistent=False)

    @property
    def embed_dim(self) -> int:
        """Width of a CLS feature; that of the trainer's seam."""
        return self.feature_dim("cls")

    @property
    def image_size(self) -> int:
        """Side of its images in pixels."""
        return self.transform.image_size

    def output_head(self) -> nn.Module | None:
        """None: its logits are few."""
        return None

    def image_tokens(self, shape: BatchShape) -> int:
        """None: nothing is read as tokens."""
        return 0

    def meta_forward(self, shape: BatchShape, embeds_gradient: bool) -> None:
        """Classify made-up images on the meta device; see :class:`medtune.models.common.interface.Trainable`."""
        self.logits(torch.empty(shape.batch, 3, shape.size, shape.size, device="meta"))

    def slice(self, name: str) -> slice:
        """Where the logits of a set stand.

        Raises:
            ModelError: if the model does not know the set.
        """
        start = 0
        for known, one in self.sets.items():
            if known == name:
                return slice(start, start + len(one.classes))
            start += len(one.classes)
        raise ModelError(f"the task-specific model does not know the set {name!r}; it was trained on {some(self.sets)}")

    def check(self, name: str, classes: tuple[str, ...]) -> None:
        """Refuse data of another set, or of other classes.

        Raises:
            ModelError: naming both.
        """
        self.slice(name)
        if self.sets[name].classes != tuple(classes):
            raise ModelError(
                f"the set {name!r} has the {len(classes)} classes {some(classes)}, but the task-specific model was "
                f"trained on {len(self.sets[name].classes)}: {some(self.sets[name].classes)}"
            )

    def logits(self, pixels: Tensor) -> Tensor:
        """Logits [b, classes of all sets] of pictures [b, 3, h, w], in fp32."""
        return self.encoder(pixels).float()

    def feature_dim(self, tokens: Tokens = "cls") -> int:
        """Width of :meth:`features`."""
        return self.encoder.head_hidden_size if tokens == "cls" else self.encoder.num_features

    def features(self, pixels: Tensor, tokens: Tokens = "cls") -> Tensor:
        """What the classifier makes of pictures before its head (VITask, 3.2).

        Args:
            pixels: [b, 3, h, w].
            tokens: ``cls`` is the one vector that the head reads (of a ViT its CLS token after the last norm, of a
                convolutional network the pooled map), ``all`` the patch tokens or the places of the map, row by row.

        Returns:
            [b, 1, d] or [b, n, d].

        Raises:
            ModelError: if the model has no patch tokens.
        """
        found = self.encoder.forward_features(pixels)
        if tokens == "cls":
            return self.encoder.forward_head(found, pre_logits=True).unsqueeze(1)
        if found.dim() == 3:
            return found[:, getattr(self.encoder, "num_prefix_tokens", 0) :]
        if found.dim() != 4:
            raise ModelError(f"{self.architecture} has no patch tokens ({found.dim() - 1} dimensions); use cls")
        channels_last = str(getattr(self.encoder, "output_fmt", "NCHW")).endswith("NHWC")
        return found.flatten(1, 2) if channels_last else found.flatten(2).transpose(1, 2)

    def parts(self) -> dict[str, list[str]]:
        """All of it is ``vision``."""
        return {"vision": [name for name, _ in self.named_parameters()]}

    def compute(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Call ``fn(self, *args)``; see :meth:`medtune.models.common.early_fusion.EarlyFusionVLM.compute`."""
        return fn(self, *args)

    def _family(self) -> ModelFamily:
        config = {
            "model_type": MODEL_TYPE,
            "architecture": self.architecture,
            "arguments": self.arguments,
            # A list: the logits stand in this order, and the keys of a JSON object are sorted when it is written.
            "sets": [{"name": name, "task": one.task, "classes": list(one.classes)} for name, one in self.sets.items()],
            **self.transform.settings(),
        }
        return ModelFamily(
            name=f"the task-specific model {self.architecture}",
            model_type=MODEL_TYPE,
            hf_to_tune=_with_prefix,
            tune_to_hf=_without_prefix,
            hf_config=lambda: config,
            tensors=frozenset(self.state_dict()),
            copies_config=False,
        )


def task_model(
    sets: str,
    architecture: str = "vit_base_patch16_224",
    image_size: int = 224,
    mean: tuple[float, ...] = (0.5,) * 3,
    std: tuple[float, ...] = (0.5,) * 3,
    pretrained: str | None = None,
    download: bool = False,
    **arguments: Any,
) -> TaskModel:
    """A classifier for the sets of a prepared file.

    Args:
        sets: JSON Lines of classification questions, whose classes the head shall have.
        architecture: any name of timm.
        image_size: side of its pictures; models that timm builds for one size are built for it.
        mean: per channel, subtracted from pixels.
        std: per channel, divided by.
        pretrained: a local safetensors file of timm; its head is left out where it has other classes.
        download: fetch timm's own pretrained weights from the Hugging Face hub. The only thing here that opens a
            connection.
        arguments: further arguments of timm's model, for example ``depth: 4``.

    Raises:
        ConfigError: for a model that timm does not have or does not build so.
        DataError: if the classes cannot be read.
        ModelError: if the pretrained weights are not there or do not fit.
    """
    if pretrained is not None and download:
        raise ConfigError("pretrained names a file and download asks for another; leave one out")
    planned = torch.empty(0).is_meta
    missing = []
    try:
        known = label_sets(sets)
    except DataError as error:
        if not planned:
            raise
        missing.append(str(error))
        known = {"unknown": LabelledSet("multi_class", ("unknown", "unknown too"))}
    model = TaskModel(architecture, known, image_size, mean, std, arguments)
    if pretrained is not None and not Path(pretrained).is_file():
        missing.append(f"the pretrained weights are not here: {pretrained} (the config's header has the download line)")
    model.missing = tuple(missing)
    if planned:
        return model
    if model.missing:
        raise ModelError(model.missing[0])
    if pretrained is not None:
        print(timm_models.take_up(model.encoder, timm_models.read(pretrained), pretrained))
    elif download:
        state = timm_models.download(architecture, image_size, arguments)
        print(timm_models.take_up(model.encoder, state, f"timm's {architecture}"))
    return model


def load_tsm(path: str | Path) -> TaskModel:
    """Read a trained task-specific model, frozen and in evaluation mode.

    Args:
        path: the ``weights`` folder of a ``tsm`` run.

    Raises:
        ModelError: if the folder does not hold one, or its weights are torn.
    """
    file = Path(path) / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        sets = {one["name"]: LabelledSet(one["task"], tuple(one["classes"])) for one in config["sets"]}
        built = TaskModel(
            config["architecture"], sets, config["image_size"], config["mean"], config["std"], config["arguments"]
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else error
        raise ModelError(
            f"{path} holds no task-specific model ({what}); name the weights folder of a tsm run"
        ) from error
    built.load_state_dict(load_weights(path, built))
    return built.eval().requires_grad_(False)


def _with_prefix(state: StateDict) -> StateDict:
    return {name if name.startswith("encoder.") else f"encoder.{name}": value for name, value in state.items()}


def _without_prefix(state: StateDict) -> StateDict:
    return {name.removeprefix("encoder."): value for name, value in state.items()}
