"""Laws of windows with generators: the pictures are those of a window of 1, whatever is drawn at once."""

import random
from functools import partial

import pytest
import torch
from toklip_core.drawing import Guidance, Sampler
from toklip_gen import load_generator
from toklip_gen.generator import IdPredictor

from tests.support.small_generators import (
    FEATURES,
    TOKENIZERS,
    asked,
    small_generator,
    small_inputs,
    some_condition,
    some_ids,
)

NO_GUIDANCE, SCHEDULE = Guidance(1.0), Guidance(3.0, first=5, last=40, power=1.5)


def drawn(generator, inputs, condition, window, *, seeds, prefix=None, compiler=None, **settings):
    """Return the ids, and the number of calls."""
    how = {} if compiler is None else {"compiler": compiler}
    sampler = Sampler(IdPredictor(generator, inputs), window=window, **how)
    compiled = compiler is not None
    return sampler.draw(condition, seeds=seeds, drawing=asked(**settings), prefix=prefix, compiled=compiled)


@pytest.mark.slow
@pytest.mark.parametrize("case", range(12))
def test_a_window_changes_no_picture_of_a_small_generator(case):
    """Cases are chosen at random, by their number."""
    pick = random.Random(case)
    vq, features, condition = TOKENIZERS[case % len(TOKENIZERS)], pick.choice(FEATURES), pick.choice(["class", "text"])
    window, known, seed = pick.choice([2, 7, 16, 64, "auto"]), pick.randint(0, 64), pick.randint(0, 2**32)
    guidance = pick.choice([NO_GUIDANCE, Guidance(2.0), SCHEDULE])
    choice = pick.choice([{}, {"top_k": 8, "top_p": 0.9}, {"temperature": 0.0}, {"noise": "gumbel"}])
    generator, inputs = small_generator(features, condition, vq).double(), small_inputs(features, vq)
    if inputs.encoder is not None:
        inputs.encoder.double()
    what = some_condition(condition, count=2)
    options = {"seeds": (seed, seed + 1), "prefix": some_ids(2, vq=vq).flatten(1, 2)[:, :known], "guidance": guidance}
    ids, calls = drawn(generator, inputs, what, window, **options, **choice)
    expected, steps = drawn(generator, inputs, what, 1, **options, **choice)
    assert torch.equal(ids, expected) and calls <= steps == 64 - known


@pytest.fixture(scope="module")
def shipped():
    """Return the generator in the package, in float64."""
    return load_generator("toklip-gen-tiny", dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("window", [4, 16, 64])
@pytest.mark.parametrize(
    "options",
    [{}, {"guidance": NO_GUIDANCE}, {"known": 20, "guidance": SCHEDULE}, {"known": 40, "compiled": True}],
    ids=["guidance", "no guidance", "prefix and schedule", "compiled"],
)
def test_a_window_changes_no_picture_of_the_shipped_generator_and_needs_fewer_calls(shipped, window, options):
    known, compiled = options.get("known", 0), options.get("compiled", False)
    whole = shipped.draw(["a red circle"], seeds=[11]).ids.flatten(1, 2)
    compiler = partial(torch.compile, backend="eager") if compiled else None
    what = {"seeds": [3], "prefix": whole[:, :known], "guidance": options.get("guidance")}
    condition = shipped.conditions(["two yellow triangles"])
    ids, calls = drawn(shipped.generator, shipped.inputs, condition, window, compiler=compiler, **what)
    expected, steps = drawn(shipped.generator, shipped.inputs, condition, 1, **what)
    assert torch.equal(ids, expected) and calls < 0.9 * steps
    torch.compiler.reset()
