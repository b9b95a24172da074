"""CLIP's vision transformer as LLaVA uses it: the patch features before the last layer."""

from torch import Tensor, nn
from torchtune.modules import VisionTransformer

from medtune.modules.kept_tensors import KeptTensors


class ClipTower(nn.Module):
    """Images -> one feature per patch, from the second-to-last layer of CLIP, as in LLaVA-1.5's code.

    The published last layer and the norm after it are not used, so no gradient could reach them. They are buffers under
    ``unused``: an export holds them, but they cannot be trained.

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
        """Features [n, patches, d] of images [n, 3, h, w]."""
        x = self.conv(images.to(self.conv.weight.dtype)).flatten(2).transpose(1, 2)
        x = self.token_pos_embedding(self.cls_token_embedding(x.unsqueeze(1))).squeeze(1)
        x = self.ln_pre(x)
        for layer in self.layers:
            x = layer(x)
        return x[:, 1:]
