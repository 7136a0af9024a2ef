"""Laws of drawing with a generator: seeds, levels, guidance, prefix, ranges; the same packed and compiled."""

import math
from functools import partial

import pytest
import torch
from toklip_core.drawing import Guidance, Sampler
from toklip_gen.generator import IdPredictor, PackedLinear, pack_linears, predictor

from tests.support.small_generators import (
    FEATURES,
    TOKENIZERS,
    asked,
    sample,
    small_generator,
    small_inputs,
    some_condition,
    some_ids,
    whole_pass,
)

#: Pairs of features and tokenizer, for laws that take long.
PAIRS = [*((features, "mean-colour") for features in FEATURES), *zip(FEATURES, TOKENIZERS[1:], strict=True)]


def drawn(features="ids", condition="class", vq="mean-colour", seeds=(7, 8, 9), **options):
    generator, inputs = small_generator(features, condition, vq), small_inputs(features, vq)
    return sample(generator, inputs, some_condition(condition), seeds=seeds, **options)


@pytest.mark.slow
@pytest.mark.parametrize("condition", ["class", "text"])
@pytest.mark.parametrize(("features", "vq"), PAIRS)
def test_a_batch_is_its_pictures_one_by_one(features, condition, vq):
    generator, inputs = small_generator(features, condition, vq), small_inputs(features, vq)
    what = some_condition(condition)
    batch = sample(generator, inputs, what, seeds=[7, 8, 9], guidance=2.0)
    for i in range(3):
        alone = what._make(None if x is None else x[i : i + 1] for x in what)
        assert torch.equal(sample(generator, inputs, alone, seeds=[7 + i], guidance=2.0)[0], batch[i])
    assert not torch.equal(batch[0], batch[1])


@pytest.mark.parametrize("vq", TOKENIZERS)
@pytest.mark.parametrize("features", FEATURES)
@torch.no_grad()
def test_the_likeliest_ids_are_those_of_the_whole_pass_with_guidance(features, vq):
    generator, inputs, what = small_generator(features, vq=vq), small_inputs(features, vq), some_condition()
    ids = sample(generator, inputs, what, seeds=[0, 0, 0], guidance=3.0, temperature=0)
    read, nothing = inputs(ids)[:, :-1], torch.ones(3, dtype=torch.bool)
    with_it, without = whole_pass(generator, read, ids, what), whole_pass(generator, read, ids, what, nothing)
    by_level = (without + 3 * (with_it - without)).split(generator.levels.sizes, dim=-1)
    likeliest = torch.stack([logits.argmax(-1) for logits in by_level], dim=-1)
    assert torch.equal(generator.levels.join(likeliest), ids.flatten(1, 2))


def test_guidance_1_is_no_guidance():
    generator, what = small_generator(), some_condition()
    nothing = generator.drop_condition
    generator.drop_condition = None  # nobody asks for the rows without the condition
    ids = sample(generator, small_inputs(), what, seeds=[7, 8, 9], guidance=1.0)
    generator.drop_condition = nothing
    both_rows = Guidance(scale=2.0, first=63)
    assert torch.equal(sample(generator, small_inputs(), what, seeds=[7, 8, 9], guidance=both_rows)[:, :7], ids[:, :7])


def test_guidance_0_draws_without_the_condition():
    ids = drawn(guidance=0.0, seeds=(5, 5, 5))
    assert torch.equal(ids[0], ids[1])
    assert not torch.equal(*drawn(guidance=1.0, seeds=(5, 5, 5))[:2])


def test_guidance_ends_and_the_ids_before_are_as_with_it():
    ids, always = drawn(guidance=Guidance(3.0, last=19)).flatten(1), drawn(guidance=3.0).flatten(1)
    assert torch.equal(ids[:, :20], always[:, :20])
    assert not torch.equal(ids, always)
    tail = drawn(guidance=1.0, prefix=ids[:, :20, None]).flatten(1)
    assert torch.equal(tail, ids)


@pytest.mark.parametrize("vq", TOKENIZERS)
@pytest.mark.parametrize("known", [0, 1, 30, 64])
def test_a_prefix_is_kept_to_the_last_id(known, vq):
    prefix = some_ids(vq=vq).flatten(1, 2)[:, :known]
    assert torch.equal(drawn("concat", vq=vq, prefix=prefix).flatten(1, 2)[:, :known], prefix)


@pytest.mark.parametrize("vq", TOKENIZERS)
def test_a_picture_goes_on_from_its_own_beginning_as_it_did(vq):
    whole = drawn("concat", vq=vq)
    assert torch.equal(drawn("concat", vq=vq, prefix=whole.flatten(1, 2)[:, :25]), whole)


@pytest.mark.slow
@pytest.mark.parametrize(("features", "vq"), PAIRS)
def test_compiled_it_draws_the_same(features, vq):
    prefix = some_ids(vq=vq).flatten(1, 2)[:, :58]
    options = {"vq": vq, "guidance": Guidance(2.0, last=61), "prefix": prefix, "top_k": 8, "top_p": 0.9}
    eagerly = partial(torch.compile, backend="eager")
    assert torch.equal(drawn(features, compiler=eagerly, **options), drawn(features, **options))
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize(("features", "condition"), [("ids", "class"), ("concat", "text")])
def test_a_second_batch_is_not_compiled_again_and_draws_the_same(features, condition):
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    generator = small_generator(features, condition)
    inputs = small_inputs(features, neighbours=int(features == "concat"))
    sampler = Sampler(IdPredictor(generator, inputs), compiler=partial(torch.compile, backend=counting))
    prefix = some_ids().flatten(1, 2)[:, :60]
    for seeds, guidance in (((7, 8, 9), 2.0), ((1, 2, 3), Guidance(3.0, power=2.0))):
        what = some_condition(condition)
        options = {"seeds": seeds, "prefix": prefix}
        ids = sampler.draw(what, drawing=asked(guidance=guidance), compiled=True, **options).ids
        assert torch.equal(ids, sample(generator, inputs, what, guidance=guidance, **options))
    assert len(graphs) == 1
    torch.compiler.reset()


@pytest.mark.slow
def test_more_graphs_are_compiled_than_torch_keeps_of_a_function():
    """Ten widths for one picture: torch fails at the ninth graph of a function."""
    generator, inputs, what = small_generator(), small_inputs(), some_condition(count=1)
    sampler = Sampler(IdPredictor(generator, inputs), compiler=partial(torch.compile, backend="eager"))
    whole = sample(generator, inputs, what, seeds=[7])
    prefix = whole.flatten(1, 2)[:, :50]
    for width in range(1, 11):
        ids = sampler.draw(what, seeds=[7], prefix=prefix, window=width, compiled=True).ids
        assert torch.equal(ids, whole), width
    torch.compiler.reset()


@pytest.mark.parametrize("vq", TOKENIZERS)
def test_a_step_asks_for_the_codes_of_its_own_ids_alone(vq):
    inputs, asked = small_inputs("codes", vq), []
    inputs.tokenizer.embedding.register_forward_pre_hook(lambda _, ids: asked.append(ids[0].shape))
    sample(small_generator("codes", vq=vq), inputs, some_condition(), seeds=[0, 1, 2])
    levels = len(inputs.tokenizer.codebook_sizes)
    assert asked == [(3, 0, levels), *[(3, 1, levels)] * 63]


@pytest.mark.parametrize("vq", TOKENIZERS)
@pytest.mark.parametrize("features", FEATURES)
def test_in_bfloat16_it_draws_from_whatever_it_reads(features, vq):
    generator, inputs = small_generator(features, vq=vq).to(torch.bfloat16), small_inputs(features, vq)
    if inputs.encoder is not None:
        inputs.encoder.to(torch.bfloat16)
    prefix = some_ids(vq=vq).flatten(1, 2)[:, :50]
    ids = sample(generator, inputs, some_condition(), seeds=[1, 2, 3], prefix=prefix)
    assert torch.equal(ids.flatten(1, 2)[:, :50], prefix) and not (ids.flatten(1, 2)[:, 50:] == ids[0, 0, 0]).all()


def test_weights_are_not_packed_for_a_few_steps(monkeypatch):
    monkeypatch.setattr(predictor, "pack_linears", None)
    drawn(prefix=some_ids().flatten(1, 2)[:, :61])


@pytest.mark.parametrize("vq", TOKENIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_packed_weights_give_the_same_but_for_rounding(dtype, vq):
    generator = small_generator(vq=vq).to(dtype)
    twin, ids = pack_linears(generator), some_ids(vq=vq).flatten(1, 2)
    assert any(isinstance(module, PackedLinear) for module in twin.modules())
    assert not any(isinstance(module, PackedLinear) for module in generator.modules())
    (_, cache), (_, other) = generator.prefill(ids[:, :4], some_condition()), twin.prefill(ids[:, :4], some_condition())
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.3}
    states = generator.step(ids[:, 4:5], cache)
    torch.testing.assert_close(twin.step(ids[:, 4:5], other), states, **tolerance)
    states, levels = states[:, 0], generator.levels.split(ids[:, 5])[:, :-1]
    torch.testing.assert_close(twin.logits(states, levels), generator.logits(states, levels), **tolerance)


@torch.no_grad()
def test_a_packed_layer_gives_few_rows_as_it_gives_them_among_four():
    layer = PackedLinear(torch.nn.Linear(96, 40))
    x = torch.randn(4, 1, 96)
    whole = layer(x)
    for rows in (0, 1, 2, 3):
        assert layer(x[:rows]).shape == (rows, 1, 40) and torch.equal(layer(x[:rows]), whole[:rows])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance": -1.0}, r"got guidance = -1.0; wanted 0 or more; 1 is none"),
        ({"guidance": math.nan}, r"got guidance = nan"),
        ({"guidance": {"scale": 2.0, "first": 5, "last": 4}}, r"last position of guidance = 4; wanted 5, its first"),
        ({"guidance": {"scale": 2.0, "power": 0.0}}, r"got power of guidance = 0.0; wanted more than 0"),
        ({"temperature": -0.1}, r"got temperature = -0.1; wanted 0 \(the likeliest id\) or more"),
        ({"top_k": 301}, r"got top_k = 301; wanted 0 \(all\) to 300"),
        ({"top_p": 0.0}, r"got top_p = 0.0; wanted more than 0, up to 1 \(all\)"),
        ({"top_p": 1.1}, r"got top_p = 1.1"),
        ({"seeds": (1, 2)}, r"got 2 seeds for 3 pictures; wanted one for each"),
        ({"prefix": torch.zeros(3, 65, 1, dtype=torch.int64)}, r"got the prefix \(3, 65, 1\); wanted \(3, n, 1\)"),
        ({"prefix": torch.full((3, 2, 1), 300)}, r"the prefix has ids from 300 to 300; wanted 0 to 299"),
    ],
)
def test_values_out_of_range_are_refused_with_the_range(options, message):
    with pytest.raises(ValueError, match=message):
        drawn(**options)
