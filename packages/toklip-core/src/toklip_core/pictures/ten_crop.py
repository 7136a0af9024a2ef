"""Ten crops of a picture at two sizes each: the augmentation that LlamaGen's generators were trained on, stored as ids.

A picture is resized to 1.1 and to 1.05 times the side; of each, the four corners and the centre are cut, and each of
these ten is mirrored: 20 views. LlamaGen draws one of the two sizes, and then one of its ten crops, with each visit.

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

#: Sides, over that of the crop, that a picture is resized to.
RANGES = (1.1, 1.05)
#: Views of a picture: five crops and their mirror images, of each range.
VIEWS = 10 * len(RANGES)
#: Those that are not mirrored: captions say left and right.
UPRIGHT = tuple(view for view in range(VIEWS) if view % 10 < 5)


def upright_crops(image: Image.Image, size: int, resize: Resize) -> np.ndarray[Any, Any]:
    """Return the views that are not mirrored, (VIEWS / 2, size, size, 3) uint8, of an RGB picture.

    Args:
        image: of any size.
        size: side of a crop.
        resize: how the picture becomes a square; see :func:`toklip_core.pictures.resized`.
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
    """Return all views, (B, VIEWS, 3, S, S), of upright crops (B, VIEWS / 2, 3, S, S): each five, then their mirrors.

    torchvision mirrors the picture before it cuts, so that its second centre lies one pixel aside if the margin is odd.
    """
    fives = torch.split(crops, 5, dim=1)
    return torch.cat([view for five in fives for view in (five, five.flip(-1))], dim=1)
