"""Interface for a method that adds something to prompts, for example exemplars or a bank of adapters."""

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image
from torch import Tensor

from medtune.generation.requests import Request

if TYPE_CHECKING:
    from medtune.generation.engine.batches import PromptBatch
    from medtune.generation.interfaces import AnswerModel


class PromptExtension(Protocol):
    """The part of a prompt that a method adds. A subclass overrides only the methods that it needs."""

    def prepare(self, request: Request, images: list[Image.Image], prompt: dict[str, Any]) -> Any:
        """Compute the inputs that a prompt needs in addition to its tokens.

        It runs in a thread, on the CPU, and must not use the model.

        Args:
            request: The request.
            images: The images of its sample.
            prompt: The transform's output for request and images.

        Returns:
            Any value; it becomes one item of ``PromptBatch.prepared``.

        Raises:
            DataError: If the request cannot be answered.
        """
        return None

    def extend(self, batch: "PromptBatch") -> "PromptBatch":
        """Return the batch that the model shall read; called once per batch, before the prefill.

        Args:
            batch: Left-padded prompts on the model's device, with one item of ``prepared`` per row.
        """
        return batch

    def group_key(self, request: Request) -> Hashable:
        """Return a key; requests may share a batch if their keys are equal."""
        return None

    def prefix_key(self, request: Request) -> Hashable:
        """Return a key; requests on the same images may share a cached prefix if their keys are equal.

        Keys must differ if equal tokens and images give other keys and values in the cache, as with two adapters.
        """
        return None

    def feature_key(self, request: Request) -> Hashable:
        """Return a key; the embeddings of an image are computed once for all requests with equal keys."""
        return None

    def encode(self, model: "AnswerModel", vision: dict[str, Tensor], requests: Sequence[Request]) -> Tensor:
        """Return the embeddings of images, ``[images, s_e, d]``.

        Args:
            model: The model.
            vision: Inputs of its ``encode``; each row is one image.
            requests: For each row, one of the requests that show the image.
        """
        return model.encode(vision)

    def before_forward(self, requests: Sequence[Request]) -> None:
        """Called before each forward pass of the decoder with the requests of its rows, in order."""
        return None


class NoExtension(PromptExtension):
    """Leaves prompts unchanged."""
