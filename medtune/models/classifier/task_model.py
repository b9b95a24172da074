"""The task-specific model (TSM) of VITask: an image classifier of timm over the classes of several sets.

One model may serve several sets: its head has a logit for every class of every set, and an image is classified among
the classes of its own set.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medtune.errors import ConfigError, ModelError
from medtune.models.classifier import timm_models
from medtune.models.classifier.sets import LabelledSet
from medtune.models.classifier.timm_models import some
from medtune.models.classifier.transform import PixelTransform
from medtune.models.common.family import ModelFamily, StateDict
from medtune.models.common.interface import BatchShape

Tokens = Literal["cls", "all"]
MODEL_TYPE = "medtune_tsm"
_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)


class TaskModel(nn.Module):
    """A timm classifier over the classes of one set or several.

    Batch normalisation keeps the statistics of the loaded weights, in training too. The output for an image then does
    not depend on the other images of its batch, and training on one process equals training on two.

    Args:
        architecture: name of any timm model.
        sets: name -> classes.
        image_size: side of its images in pixels.
        mean: per channel, subtracted from pixels.
        std: per channel, divided by.
        arguments: further arguments of timm's model.

    Attributes:
        transform: turns images into its pixels.
        family: how its weights are written: under timm's names, with everything else in ``config.json``.
        missing: what the model needs and was not found; only on the meta device, when a run is planned.

    Raises:
        ConfigError: if timm does not know the name, the model rejects the arguments, images cannot be cut into its
            patches, or there is no set.
    """

    missing: tuple[str, ...] = ()
    reads_text = False
    images_as_tokens = False
    vocab_size = 0
    longest_text = 0

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
        classes = sum(len(labelled.classes) for labelled in self.sets.values())
        return timm_models.build(self.architecture, classes, self.transform.image_size, self.arguments)

    def train(self, mode: bool = True) -> "TaskModel":
        """Set the mode as every module does, but keep batch normalisation in evaluation mode."""
        super().train(mode)
        for module in self._batch_norms():
            module.eval()
        return self

    def _batch_norms(self) -> Iterator[nn.Module]:
        return (module for module in self.modules() if isinstance(module, _BATCH_NORMS))

    def check_trainable(self) -> None:
        """Reject a model with batch normalisation for which no statistics were loaded.

        Raises:
            ModelError: if so; the message names the remedy.
        """
        means = [module.running_mean for module in self._batch_norms() if isinstance(module.running_mean, Tensor)]
        if means and not any(bool(mean.any()) for mean in means):
            raise ModelError(
                f"{self.architecture} has {len(means)} batch normalisations, whose statistics are kept as loaded, and "
                "nothing was loaded: give pretrained weights, or choose a model with another normalisation (resnet18 "
                "takes norm_layer: groupnorm; convnext and vit have none)"
            )

    def rope_init(self) -> None:
        """Fill buffers that no weight file holds, after a build on the meta device. The name is torchtune's."""
        tables = {name for name, _ in self.encoder.named_buffers()} - self.encoder.state_dict().keys()
        if tables:
            fresh = dict(self._encoder().named_buffers())
            for name in tables:
                owner, _, own_name = name.rpartition(".")
                self.encoder.get_submodule(owner).register_buffer(own_name, fresh[name], persistent=False)

    @property
    def embed_dim(self) -> int:
        """Width of a CLS feature, as the trainer's interface asks for it."""
        return self.feature_dim("cls")

    @property
    def image_size(self) -> int:
        """Side of its images in pixels."""
        return self.transform.image_size

    def output_head(self) -> nn.Module | None:
        """None: the model has too few logits to need a separate output head."""
        return None

    def image_tokens(self, shape: BatchShape) -> int:
        """0: the model reads no tokens."""
        return 0

    def meta_forward(self, shape: BatchShape, embeds_gradient: bool) -> None:
        """Classify dummy images on the meta device; see :class:`medtune.models.common.interface.Trainable`."""
        self.logits(torch.empty(shape.batch, 3, shape.size, shape.size, device="meta"))

    def slice(self, name: str) -> slice:
        """Position of a set's logits.

        Raises:
            ModelError: if the model does not know the set.
        """
        start = 0
        for known, labelled in self.sets.items():
            if known == name:
                return slice(start, start + len(labelled.classes))
            start += len(labelled.classes)
        raise ModelError(f"the task-specific model does not know the set {name!r}; it was trained on {some(self.sets)}")

    def check(self, name: str, classes: tuple[str, ...]) -> None:
        """Reject data of an unknown set, or of a set with other classes.

        Raises:
            ModelError: if the set is unknown or the classes differ; the message names both.
        """
        self.slice(name)
        if self.sets[name].classes != tuple(classes):
            raise ModelError(
                f"the set {name!r} has the {len(classes)} classes {some(classes)}, but the task-specific model was "
                f"trained on {len(self.sets[name].classes)}: {some(self.sets[name].classes)}"
            )

    def logits(self, pixels: Tensor) -> Tensor:
        """Logits [b, classes of all sets] of images [b, 3, h, w], in fp32."""
        return self.encoder(pixels).float()

    def feature_dim(self, tokens: Tokens = "cls") -> int:
        """Width of :meth:`features`."""
        return self.encoder.head_hidden_size if tokens == "cls" else self.encoder.num_features

    def features(self, pixels: Tensor, tokens: Tokens = "cls") -> Tensor:
        """Features of images before the head (VITask, section 3.2).

        Args:
            pixels: [b, 3, h, w].
            tokens: ``cls`` is the single vector that the head reads: for a ViT the CLS token after the last norm, for a
                convolutional network the pooled feature map. ``all`` is the patch tokens, or the positions of the
                feature map row by row.

        Returns:
            [b, 1, d] or [b, n, d].

        Raises:
            ModelError: if the model has no patch tokens.
        """
        features = self.encoder.forward_features(pixels)
        if tokens == "cls":
            return self.encoder.forward_head(features, pre_logits=True).unsqueeze(1)
        if features.dim() == 3:
            return features[:, getattr(self.encoder, "num_prefix_tokens", 0) :]
        if features.dim() != 4:
            raise ModelError(f"{self.architecture} has no patch tokens ({features.dim() - 1} dimensions); use cls")
        channels_last = str(getattr(self.encoder, "output_fmt", "NCHW")).endswith("NHWC")
        return features.flatten(1, 2) if channels_last else features.flatten(2).transpose(1, 2)

    def parts(self) -> dict[str, list[str]]:
        """All parameters belong to ``vision``."""
        return {"vision": [name for name, _ in self.named_parameters()]}

    def compute(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Call ``fn(self, *args)``; see :meth:`medtune.models.common.early_fusion.EarlyFusionVLM.compute`."""
        return fn(self, *args)

    def _family(self) -> ModelFamily:
        config = {
            "model_type": MODEL_TYPE,
            "architecture": self.architecture,
            "arguments": self.arguments,
            # A list, because the logits have this order and the keys of a JSON object are sorted when it is written.
            "sets": [
                {"name": name, "task": labelled.task, "classes": list(labelled.classes)}
                for name, labelled in self.sets.items()
            ],
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


def _with_prefix(state: StateDict) -> StateDict:
    return {name if name.startswith("encoder.") else f"encoder.{name}": value for name, value in state.items()}


def _without_prefix(state: StateDict) -> StateDict:
    return {name.removeprefix("encoder."): value for name, value in state.items()}
