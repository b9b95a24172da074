"""Tensors that a published file holds and no computation uses."""

from torch import nn


class KeptTensors(nn.Module):
    """Holds the tensors of a module as buffers under the same names: loaded and saved, but never used.

    No gradient could reach them, so they are not parameters: they are in no part of the model and in no optimizer.

    Args:
        source: the module; only its tensors are kept, not its computation.
    """

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        for name, tensor in source.named_parameters(recurse=False):
            self.register_buffer(name, tensor.detach())
        for name, child in source.named_children():
            self.add_module(name, KeptTensors(child))
