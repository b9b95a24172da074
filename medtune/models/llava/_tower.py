"""CLIP's vision transformer as LLaVA reads it: the patches before the last layer."""

from torch import Tensor, nn
from torchtune.modules import VisionTransformer


class KeptTensors(nn.Module):
    """The tensors of a module as buffers under the same names: read, kept and written, never computed with.

    Args:
        source: the module; what it computes is lost.
    """

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        for name, tensor in source.named_parameters(recurse=False):
            self.register_buffer(name, tensor.detach())
        for name, child in source.named_children():
            self.add_module(name, KeptTensors(child))


class ClipTower(nn.Module):
    """Pictures -> one feature per patch, from the last layer but one of CLIP, as LLaVA-1.5's code takes them.

    The published last layer and the norm after it have no part in this, so no gradient could reach them: they are
    buffers under ``unused``. An export holds them, and they are no part that could be trained.

    Args:
        clip: torchtune's vision transformer without the last layer.
        last: the last layer.
    """

    def __init__(self, clip: VisionTransformer, last: nn.Module) -> None:
        super().__init__()
        self.conv = clip.conv
        self.cls_token_embedding = clip.cls_token_embedding
        self.token_pos_embedding = clip.token_pos_embedding
        self.ln_pre = clip.ln_pre
        self.layers = clip.layers
        self.unused = nn.ModuleDict({"layer": KeptTensors(last), "ln_post": KeptTensors(clip.ln_post)})

    def forward(self, images: Tensor) -> Tensor:
        """Features [n, patches, d] of pictures [n, 3, h, w]."""
        x = self.conv(images.to(self.conv.weight.dtype)).flatten(2).transpose(1, 2)
        x = self.token_pos_embedding(self.cls_token_embedding(x.unsqueeze(1))).squeeze(1)
        x = self.ln_pre(x)
        for layer in self.layers:
            x = layer(x)
        return x[:, 1:]
