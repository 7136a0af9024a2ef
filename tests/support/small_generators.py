"""Small generators of random weights over the tokenizer and the small TokLIP of the core's tests."""

import torch
from toklip_core.drawing import Drawing, Guidance, Sampler
from toklip_core.tokenizer import TokenizerRecord
from toklip_gen.generator import (
    ClassCondition,
    Condition,
    Generator,
    GeneratorConfig,
    IdPredictor,
    Inputs,
    TextCondition,
)
from torch import nn

from tests.support.mean_colour import LEVELS, mean_colour
from tests.support.small_models import small_toklip

FEATURES = ["ids", "codes", "concat"]
CLASSES, LENGTH, TEXT_WIDTH = 5, 6, 32
#: Of the small TokLIP.
GRID = (8, 8)


def small_inputs(features="ids"):
    """What a small generator reads."""
    toklip = small_toklip()
    return Inputs(features, tokenizer=mean_colour(), encoder=toklip.encoder)


def small_config(features="ids", condition="class", **changes):
    """Two blocks of width 32."""
    width = {"ids": None, "codes": 1, "concat": 33}[features]
    text = TextCondition(encoder="toklip", length=LENGTH, width=TEXT_WIDTH)
    needs = features == "concat" or condition == "text"
    fields = {
        "tokenizer": TokenizerRecord(name="mean-colour"),
        "toklip": "small" if needs else None,
        "codebook_size": LEVELS,
        "grid": GRID,
        "width": 32,
        "depth": 2,
        "heads": 4,
        "features": features,
        "feature_width": width,
        "condition": ClassCondition(classes=CLASSES) if condition == "class" else text,
    }
    return GeneratorConfig(**fields | changes)


def small_generator(features="ids", condition="class", **changes):
    """With weights so large that what it says depends on all that it reads."""
    torch.manual_seed(1)
    generator = Generator(small_config(features, condition, **changes))
    for name, tensor in generator.named_parameters():
        if tensor.ndim > 1:
            nn.init.normal_(tensor, std=3 * tensor.shape[1] ** -0.5 if "head" not in name else 0.5)
    return generator.eval()


def some_condition(condition="class", count=3):
    """Classes, or texts of 1, 2 and so on words, padded on the left."""
    if condition == "class":
        return Condition(torch.arange(count) % CLASSES)
    values = torch.randn(count, LENGTH, TEXT_WIDTH, generator=torch.Generator().manual_seed(3))
    mask = torch.arange(LENGTH) >= LENGTH - 1 - torch.arange(count)[:, None]
    return Condition(values * mask[:, :, None], mask)


def some_ids(count=3, seed=0):
    """Ids of whole pictures, (count, h, w)."""
    return torch.randint(LEVELS, (count, *GRID), generator=torch.Generator().manual_seed(seed))


def asked(guidance=None, **settings):
    """Settings of drawing; guidance may be the scale alone, or all of its fields."""
    if isinstance(guidance, dict):
        guidance = Guidance(**guidance)
    elif isinstance(guidance, int | float):
        guidance = Guidance(guidance)
    return Drawing(guidance, **settings)


def sample(generator, inputs, condition, *, seeds, prefix=None, compiler=None, **settings):
    """Draw with a new sampler; compiled, if a compiler is given."""
    how = {} if compiler is None else {"compiler": compiler}
    sampler = Sampler(IdPredictor(generator, inputs), **how)
    drawing = asked(**settings)
    return sampler.draw(condition, seeds=seeds, drawing=drawing, prefix=prefix, compiled=compiler is not None)
