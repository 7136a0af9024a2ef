"""The vision tower of SigLIP without its last layer, whose states VILA-U and TokenFlow quantise; from transformers.

Shape letters: B batch, S picture side, N patches, D width.

Source: Zhai et al., Sigmoid Loss for Language Image Pre-Training, https://arxiv.org/abs/2303.15343.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from toklip_vq.onednn import OneDNNLinear, replace_modules

if TYPE_CHECKING:
    from transformers import SiglipVisionConfig


@dataclass(frozen=True, kw_only=True)
class SiglipSizes:
    """The sizes of a whole vision tower of SigLIP."""

    width: int
    #: Number of layers, with the last one, which is not used.
    layers: int
    heads: int
    #: Hidden width of the MLPs.
    hidden: int
    image_size: int
    patch_size: int

    @property
    def side(self) -> int:
        """Number of patches along a side; pixels that fill no patch are left out."""
        return self.image_size // self.patch_size

    def vision_config(self) -> SiglipVisionConfig:
        """Return these sizes as transformers' config; LookupError if transformers is not installed."""
        try:
            from transformers import SiglipVisionConfig
        except ModuleNotFoundError as error:
            raise LookupError(f"{error.name} is not installed: pip install 'toklip-vq[transformers]'") from error
        return SiglipVisionConfig(
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=self.hidden,
            image_size=self.image_size,
            patch_size=self.patch_size,
        )


#: SigLIP-L/16-256 and SigLIP-SO400M/14-384.
LARGE_256 = SiglipSizes(width=1024, layers=24, heads=16, hidden=4096, image_size=256, patch_size=16)
SO400M_384 = SiglipSizes(width=1152, layers=27, heads=16, hidden=4304, image_size=384, patch_size=14)


class SiglipStates(nn.Module):
    """SigLIP's states before its last layer, to which no norm is applied.

    Args:
        sizes: sizes of the whole tower.
    """

    def __init__(self, sizes: SiglipSizes) -> None:
        config = sizes.vision_config()  # first, because it reports that transformers is missing
        from transformers import SiglipVisionModel

        super().__init__()
        model = SiglipVisionModel(config)
        tower = getattr(model, "vision_model", model)  # earlier releases of transformers have one more level
        self.patch_embedding = tower.embeddings.patch_embedding
        self.position_embedding = tower.embeddings.position_embedding
        self.layers = tower.encoder.layers[:-1]
        replace_modules(self, nn.Linear, OneDNNLinear.of)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the states (B, N, D), in raster order, of pixels (B, 3, S, S) in [-1, 1]."""
        x_BDhw = self.patch_embedding(pixels.to(self.patch_embedding.weight.dtype))
        x_BND: Tensor = x_BDhw.flatten(2).mT + self.position_embedding.weight
        for layer in self.layers:
            x_BND = layer(x_BND, attention_mask=None)
        return x_BND


def siglip_name(name: str) -> str:
    """Return the name that transformers' SiglipVisionModel has for a tensor of :class:`SiglipStates`.

    >>> siglip_name("layers.0.layer_norm1.bias"), siglip_name("patch_embedding.bias")
    ('encoder.layers.0.layer_norm1.bias', 'embeddings.patch_embedding.bias')
    """
    return re.sub(
        r"^(patch|position)_embedding\.", r"embeddings.\1_embedding.", re.sub("^layers", "encoder.layers", name)
    )


def unused_names(prefix: str, sizes: SiglipSizes) -> dict[str, str]:
    """Return the names of a file, as regular expressions, that :class:`SiglipStates` leaves out -> the reason."""
    vision = re.escape(prefix)
    return {
        rf"{vision}encoder\.layers\.{sizes.layers - 1}\..+": "the last layer; the states before it are quantised",
        rf"{vision}(post_layernorm|head)\..+": "the norm and the pooling after the last layer",
    }
