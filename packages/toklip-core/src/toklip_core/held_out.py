"""What a training run is evaluated on, and the figures: zero-shot accuracy, and retrieval."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, Sequence

import numpy as np
import torch
from torch import Tensor

from toklip_core.data import Resize, normalized
from toklip_core.scenes import CLASSES, scene
from toklip_core.settings import HeldOut
from toklip_core.training import Evaluation


class HeldOutSet:
    def __init__(self, config: HeldOut, *, image_size: int, resize: Resize) -> None:
        n = config.scenes
        one = [scene(i, split="held-out", size=image_size, objects=1) for i in range(n)]
        many = [scene(i, split="held-out", size=image_size, seed=1) for i in range(n)]
        self.one = torch.from_numpy(np.stack([s.pixels for s in one])).permute(0, 3, 1, 2)
        self.labels = torch.tensor([s.label for s in one])
        self.many = torch.from_numpy(np.stack([s.pixels for s in many])).permute(0, 3, 1, 2)
        self.captions = [c for s in many for c in s.captions]


def evaluated(model, held_out, *, batch_size):
    device = model.logit_scale.device
    def feats(levels):
        return torch.cat([model.image_features(normalized(x.to(device))) for x in levels.split(batch_size)])
    classes = model.text_features([f"a {c}" for c in CLASSES])
    top1 = ((feats(held_out.one) @ classes.T).argmax(1).cpu() == held_out.labels).float().mean()
    sim = feats(held_out.many) @ model.text_features(held_out.captions).T
    own = torch.arange(sim.shape[1]) // 4
    i2t = (own[sim.argmax(1)] == torch.arange(len(sim))).float().mean()
    t2i = (sim.argmax(0) == own).float().mean()
    return Evaluation({"zero_shot_top1": float(top1), "image_to_text_r1": float(i2t), "text_to_image_r1": float(t2i)})
