"""What a method adds to prompts, as the generator and the engine see it: exemplars now, a bank of adapters later."""

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from medtune.generation.requests import Request

if TYPE_CHECKING:
    from medtune.generation.engine.batches import PromptBatch


class PromptExtension(Protocol):
    """A method's own part of a prompt. A class that inherits from this one needs to write only what it does."""

    def prepare(self, request: Request, images: list[Image.Image], prompt: dict[str, Any]) -> Any:
        """Make what a prompt needs beside its tokens; runs in a thread, on the CPU, and touches no model.

        Args:
            request: What is asked.
            images: The images of its sample.
            prompt: What the transform made of both.

        Returns:
            Anything; it comes back as one item of ``PromptBatch.prepared``.

        Raises:
            DataError: If the request cannot be answered.
        """
        return None

    def extend(self, batch: "PromptBatch") -> "PromptBatch":
        """The batch as the model shall read it; called once per batch, before its prompts are read.

        Args:
            batch: Left-padded prompts on the model's device, with one item of ``prepared`` per row.
        """
        return batch

    def group_key(self, request: Request) -> Hashable:
        """Requests may share a batch if their keys are equal."""
        return None

    def prefix_key(self, request: Request) -> Hashable:
        """Requests on the same images may share what was read of a common beginning if their keys are equal.

        It must differ where keys and values of equal tokens and images differ, as they do under two adapters.
        """
        return None

    def before_forward(self, requests: Sequence[Request]) -> None:
        """Called before each forward pass of the decoder with the requests of its rows, in order."""
        return None


class NoExtension(PromptExtension):
    """Leaves prompts as they are."""
