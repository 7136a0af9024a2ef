"""Laws of windows with generators: the pictures are those of a window of 1, whatever is drawn at once."""

import random
import shutil
from functools import partial

import pytest
import torch
from toklip_core.drawing import Guidance, Sampler, choose_ids
from toklip_core.drawing.noise import UniformNoise
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

EAGER = partial(torch.compile, backend="eager")
NO_GUIDANCE, SCHEDULE = Guidance(1.0), Guidance(3.0, first=5, last=40, power=1.5)


def drawn(generator, inputs, condition, window, *, seeds, prefix=None, compiler=None, **settings):
    """Return the ids, and the number of calls."""
    how = {} if compiler is None else {"compiler": compiler}
    sampler = Sampler(IdPredictor(generator, inputs), window=window, **how)
    compiled = compiler is not None
    found = sampler.draw(condition, seeds=seeds, drawing=asked(**settings), prefix=prefix, compiled=compiled)
    return found.ids, found.calls


@pytest.mark.slow
@pytest.mark.parametrize("case", range(12))
def test_a_window_changes_no_picture_of_a_small_generator(case):
    """Cases are chosen at random, by their number."""
    pick = random.Random(case)
    vq, features, condition = TOKENIZERS[case % len(TOKENIZERS)], pick.choice(FEATURES), pick.choice(["class", "text"])
    window, known, seed = pick.choice([2, 7, 16, 64, "auto"]), pick.randint(0, 64), pick.randint(0, 2**32)
    guidance = pick.choice([NO_GUIDANCE, Guidance(2.0), SCHEDULE])
    choice = pick.choice([{}, {"top_k": 8, "top_p": 0.9}, {"temperature": 0.0}, {"noise": "gumbel"}])
    generator = small_generator(features, condition, vq).double()
    inputs = small_inputs(features, vq, neighbours=pick.choice([0, 1]))
    if inputs.encoder is not None:
        inputs.encoder.double()
    what = some_condition(condition, count=2)
    options = {"seeds": (seed, seed + 1), "prefix": some_ids(2, vq=vq).flatten(1, 2)[:, :known], "guidance": guidance}
    compiler = pick.choice([None, EAGER])
    ids, calls = drawn(generator, inputs, what, window, compiler=compiler, **options, **choice)
    expected, steps = drawn(generator, inputs, what, 1, **options, **choice)
    assert torch.equal(ids, expected) and calls <= steps == 64 - known
    torch.compiler.reset()


@pytest.fixture(scope="module")
def shipped():
    """Return the generator in the package, in float64."""
    return load_generator("toklip-gen-tiny", dtype=torch.float64)


CASES = {
    "guidance": {},
    "no guidance": {"guidance": NO_GUIDANCE},
    "prefix and schedule": {"known": 20, "guidance": SCHEDULE},
    "compiled with a prefix": {"known": 40, "compiled": True},
}
MORE_CASES = {
    "prefix": {"known": 40},
    "compiled": {"compiled": True},
    "compiled without guidance": {"compiled": True, "guidance": NO_GUIDANCE},
}


def few_and_many(cases, more):
    """Return cases of 4 seeds drawn in a batch, and of 64 drawn one by one, whose drafts fit more often."""
    few = [pytest.param(case, range(4), 4, id=f"{name}, 4 seeds") for name, case in cases.items()]
    many = [
        pytest.param(case, range(64), 1, id=f"{name}, 64 seeds", marks=pytest.mark.windows)
        for name, case in (cases | more).items()
    ]
    return few + many


def pictures_of(
    pictures, seeds, *, batch, window, prefix=None, compiled=False, guidance=None, compiler=EAGER
):
    """Return the ids (B, N, Q) of one picture per seed, drawn ``batch`` at once, and the calls of each batch."""
    sampler = Sampler(IdPredictor(pictures.generator, pictures.inputs), compiler=compiler)
    ids, calls = [], []
    for start in range(0, len(seeds), batch):
        own = seeds[start : start + batch]
        drawn = sampler.draw(
            pictures.conditions(["two yellow triangles"] * len(own)),
            seeds=own,
            drawing=asked(guidance=guidance),
            prefix=None if prefix is None else prefix.expand(len(own), -1, -1),
            window=window,
            compiled=compiled,
        )
        ids.append(drawn.ids.flatten(1, 2))
        calls.append(drawn.calls)
    return torch.cat(ids), calls


@pytest.fixture(scope="module")
def beginning(shipped):
    """Return the ids (1, N, Q) of another picture."""
    return shipped.draw(["a red circle"], seeds=[11], window=16).ids.flatten(1, 2)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "seeds", "batch"), few_and_many(CASES, MORE_CASES))
def test_a_window_changes_no_picture_of_the_shipped_generator_and_needs_fewer_calls(
    shipped, beginning, case, seeds, batch
):
    known, compiled = case.get("known", 0), case.get("compiled", False)
    how = {"prefix": beginning[:, :known], "guidance": case.get("guidance")}
    expected, _ = pictures_of(shipped, seeds, batch=len(seeds), window=1, **how)
    for window in (1, 4, 16, 64) if compiled else (4, 16, 64):
        ids, calls = pictures_of(shipped, seeds, batch=batch, window=window, compiled=compiled, **how)
        assert torch.equal(ids, expected)
        each = sum(calls) / len(calls)
        assert each == 64 - known if window == 1 else each < 0.9 * (64 - known)
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.windows
@pytest.mark.skipif(shutil.which("c++") is None, reason="inductor needs a C++ compiler")
def test_steps_that_inductor_compiles_change_no_picture_of_the_shipped_generator(shipped):
    expected, _ = pictures_of(shipped, range(8), batch=8, window=1)
    for window in (1, 4):
        ids, _ = pictures_of(shipped, range(8), batch=8, window=window, compiled=True, compiler=torch.compile)
        assert torch.equal(ids, expected)
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "seeds", "batch"),
    few_and_many({"guidance": {}}, {"no guidance": {"guidance": NO_GUIDANCE}, "prefix": {"known": 20}}),
)
def test_in_float32_ids_differ_first_where_the_random_number_is_within_1e_5_of_a_boundary(
    beginning, case, seeds, batch
):
    pictures, guidance = load_generator("toklip-gen-tiny"), case.get("guidance")
    how = {"prefix": beginning[:, : case.get("known", 0)], "guidance": guidance}
    expected, _ = pictures_of(pictures, seeds, batch=len(seeds), window=1, **how)
    for window in (4, 16, 64):
        ids, _ = pictures_of(pictures, seeds, batch=batch, window=window, **how)
        for seed, own, other in zip(seeds, ids, expected, strict=True):
            differ = (own != other).flatten().nonzero()
            place, level = divmod(int(differ[0]) if len(differ) else own.numel() - 1, own.shape[-1])
            least, most = choices(pictures, other[: place + 1], level, seed, within=1e-5, guidance=guidance)
            pair = [int(some[place, level]) for some in (own, other)]
            assert least <= min(pair) and max(pair) <= most


def choices(pictures, ids, level, seed, *, within, guidance):
    """Return the ids that a seed's random number, a little less or more, chooses for a level of the last of ``ids``.

    Those before them (n - 1, Q), and the levels before that one, are read.
    """
    model = IdPredictor(pictures.generator, pictures.inputs)
    drawing = asked(guidance=guidance).completed(pictures.drawing)
    condition, scale = pictures.conditions(["two yellow triangles"]), drawing.guidance.scale
    states, cache = model.prefill(condition, ids[None, :-1], guided=scale != 1, steps=0)
    logits = model.logits(states, ids[-1:, :level].expand(len(states), -1), cache)
    if scale != 1:
        logits = logits[1:] + scale * (logits[:1] - logits[1:])
    number = UniformNoise([seed], 64, model.levels.sizes, torch.device("cpu")).at(len(ids) - 1, 1)[level][0]
    return [int(choose_ids(logits, number + change, drawing)) for change in (-within, within)]
