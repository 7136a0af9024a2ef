"""Small generators of random weights over the tokenizers and the small TokLIP of the core's tests."""

import torch
from toklip_core.drawing import Drawing, Guidance, IdLevels, Sampler
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

from tests.support.mean_colour import SEVERAL, mean_colour, several
from tests.support.small_models import small_toklip, toklip_config

FEATURES = ["ids", "codes", "concat"]
#: One id per position, four that are independent, four that are residual, and one of 28 bits.
TOKENIZERS = ["mean-colour", *SEVERAL]
CLASSES, LENGTH, TEXT_WIDTH = 5, 6, 32
#: Of the small TokLIP.
GRID = (8, 8)


def named(vq):
    """Return a tokenizer of the tests."""
    return mean_colour() if vq == "mean-colour" else several(vq)


def small_inputs(features="ids", vq="mean-colour", neighbours=0):
    """What a small generator reads."""
    encoder = toklip_config(named(vq)).encoder.model_copy(update={"neighbours": neighbours})
    toklip = small_toklip(tokenizer=named(vq), encoder=encoder)
    return Inputs(features, tokenizer=toklip.tokenizer, encoder=toklip.encoder)


def small_config(features="ids", condition="class", vq="mean-colour", **changes):
    """Two blocks of width 32; one block over levels that are residual."""
    embedding = named(vq).embedding
    width = {"ids": None, "codes": embedding.codebook_dim, "concat": embedding.codebook_dim + 32}[features]
    levels = IdLevels.of_embedding(embedding)
    text = TextCondition(encoder="toklip", length=LENGTH, width=TEXT_WIDTH)
    needs = features == "concat" or condition == "text"
    fields = {
        "tokenizer": TokenizerRecord(name=vq),
        "toklip": "small" if needs else None,
        "codebook_sizes": levels.codebook_sizes,
        "levels": levels.sizes,
        "level_blocks": int(embedding.levels_are_residual),
        "image_size": (32, 32),
        "grid": GRID,
        "width": 32,
        "depth": 2,
        "heads": 4,
        "features": features,
        "feature_width": width,
        "condition": ClassCondition(classes=CLASSES) if condition == "class" else text,
    }
    return GeneratorConfig(**fields | changes)


def small_generator(features="ids", condition="class", vq="mean-colour", **changes):
    """With weights so large that what it says depends on all that it reads."""
    torch.manual_seed(1)
    generator = Generator(small_config(features, condition, vq, **changes))
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


def some_ids(count=3, seed=0, vq="mean-colour"):
    """Ids of whole pictures, (count, h, w, Q)."""
    draw = torch.Generator().manual_seed(seed)
    sizes = named(vq).codebook_sizes
    return torch.stack([torch.randint(size, (count, *GRID), generator=draw) for size in sizes], dim=-1)


def whole_pass(generator, read, ids, condition, drop=None):
    """Logits of all levels of the first n + 1 positions, beside each other, for inputs (B, n, Q) or (B, n, F)."""
    levels = generator.levels.split(ids.flatten(1, -2))[:, : read.shape[1] + 1]
    return torch.cat(generator(read, levels, condition, drop), dim=-1)


def of_states(generator, states, ids):
    """Logits of all levels of a position, beside each other, level by level, for its states and its ids (R, Q)."""
    levels = generator.levels.split(ids)
    return torch.cat([generator.logits(states, levels[:, :level]) for level in range(levels.shape[1])], dim=-1)


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
    return sampler.draw(condition, seeds=seeds, drawing=drawing, prefix=prefix, compiled=compiler is not None).ids
