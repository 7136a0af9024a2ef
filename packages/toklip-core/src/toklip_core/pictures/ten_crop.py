"""Ten crops of a picture at each of two sizes: the augmentation of LlamaGen's generators, stored as ids.

A picture is resized to 1.1 and to 1.05 times the side. The four corners and the centre of each are cut out, and each
of these ten crops is mirrored, which gives 20 views. At each visit LlamaGen draws one of the two sizes, then one of its
ten crops.

Source: FoundationVision/LlamaGen, autoregressive/train/extract_codes_c2i.py (--ten-crop, --crop-range) and
dataset/imagenet.py; the order within ten is torchvision's, transforms.TenCrop.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from toklip_core.pictures.pixels import Resize, resized

#: Sides that a picture is resized to, as multiples of the crop's side.
RANGES = (1.1, 1.05)
#: Number of views of a picture: five crops and their mirror images at each size.
VIEWS = 10 * len(RANGES)
#: Views that are not mirrored, for captions that say left and right.
UPRIGHT = tuple(view for view in range(VIEWS) if view % 10 < 5)


def upright_crops(image: Image.Image, size: int, resize: Resize) -> np.ndarray[Any, Any]:
    """Return the views (VIEWS / 2, size, size, 3), uint8, of an RGB picture that are not mirrored.

    Args:
        image: RGB picture of any size.
        size: side of a crop.
        resize: way to make the picture square; see :func:`toklip_core.pictures.resized`.
    """
    found = []
    for share in RANGES:
        side = int(size * share)
        far, middle = side - size, round((side - size) / 2)
        square = resized(image, side, resize)
        for left, top in ((0, 0), (far, 0), (0, far), (far, far), (middle, middle)):
            found.append(np.asarray(square.crop((left, top, left + size, top + size))))
    return np.stack(found)


def all_views(crops: Tensor) -> Tensor:
    """Return all views (B, VIEWS, 3, S, S) of upright crops (B, VIEWS / 2, 3, S, S): five, then their mirror images.

    torchvision mirrors the picture before cutting, so if the margin is odd, its second centre crop is one pixel aside.
    """
    fives = torch.split(crops, 5, dim=1)
    return torch.cat([view for five in fives for view in (five, five.flip(-1))], dim=1)
