"""Small models that read and draw, with random weights that say something, for tests."""

from functools import cache

import torch
from toklip_mllm.model import ImageHeadSettings, add_image_head
from torch import nn

from tests.support.mean_colour import SEVERAL, mean_colour, several
from tests.support.small_mllms import PLAIN, small_mllm

#: One id per position, four that are independent, four that are residual, and one of 28 bits.
TOKENIZERS = ["mean-colour", *SEVERAL]
HEAD = ImageHeadSettings(guidance=3.0)
COUNT = 64


def vq_of(kind):
    return mean_colour() if kind == "mean-colour" else several(kind)


def small_unified(kind="residual-greys", family="llama", features="concat", head=HEAD, template=PLAIN, seed=0):
    """Model and processor, 8 x 8 positions of a picture; without head the same model that reads alone."""
    model, processor = small_mllm(family, features, template, seed, vq=vq_of(kind))
    if head is not None:
        add_image_head(model, processor, head)
    if model.image_head is not None:
        torch.manual_seed(seed + 1)
        for name, weight in model.image_head.named_parameters():
            if weight.ndim > 1 and "pos_embed" not in name:
                nn.init.normal_(weight, std=2 * weight.shape[1] ** -0.5)
    return model, processor


@cache
def unified(kind="residual-greys", family="llama", features="concat"):
    """The same model and processor for tests that change neither."""
    return small_unified(kind, family, features)


def some_ids(kind="residual-greys", count=1, seed=0):
    """Ids of pictures, (count, 8, 8, Q)."""
    draw = torch.Generator().manual_seed(seed)
    sizes = vq_of(kind).codebook_sizes
    return torch.stack([torch.randint(size, (count, 8, 8), generator=draw) for size in sizes], dim=-1)


def to_draw(processor, *texts, **options):
    """Inputs of prompts that end in the begin token."""
    return dict(processor(text=list(texts), generation_mode="image", return_tensors="pt", **options))


def drawn(processor, *texts, image_ids, **options):
    """Inputs of texts, in which <begin_image><image> is a picture that was drawn."""
    return dict(processor(text=list(texts), image_ids=image_ids, return_tensors="pt", **options))
