"""Laws of the generator: causality, levels, cache, padding, rows of guidance, dropped conditions, compiling."""

import pytest
import torch
from pydantic import ValidationError
from toklip_core.embeddings import MOST_BITS
from toklip_gen.generator import SIZES, ClassCondition, Condition, Generator, Inputs, TextCondition
from toklip_gen.generator.blocks import TextEmbedding

from tests.support.kept_activations import kept_by
from tests.support.mean_colour import mean_colour
from tests.support.small_generators import (
    FEATURES,
    LENGTH,
    TEXT_WIDTH,
    TOKENIZERS,
    of_states,
    small_config,
    small_generator,
    small_inputs,
    some_condition,
    some_ids,
    whole_pass,
)
from tests.support.small_models import small_toklip

EXACT = {"rtol": 0, "atol": 0}


@pytest.mark.parametrize("vq", TOKENIZERS)
@pytest.mark.parametrize("condition", ["class", "text"])
@pytest.mark.parametrize("features", FEATURES)
@torch.no_grad()
def test_no_position_sees_ids_after_it(features, condition, vq):
    generator, inputs = small_generator(features, condition, vq), small_inputs(features, vq)
    ids, other = some_ids(vq=vq), some_ids(vq=vq)
    other.flatten(1, 2)[:, 20:] = some_ids(seed=1, vq=vq).flatten(1, 2)[:, 20:]
    first, second = (whole_pass(generator, inputs(x)[:, :-1], x, some_condition(condition)) for x in (ids, other))
    torch.testing.assert_close(first[:, :20], second[:, :20], rtol=1e-5, atol=1e-5)
    first_level = generator.levels.sizes[0]  # levels after the first see those before, which are others at 20
    torch.testing.assert_close(first[:, 20, :first_level], second[:, 20, :first_level], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(first[:, 21:], second[:, 21:])


@pytest.mark.parametrize(("vq", "blocks"), [*((vq, None) for vq in TOKENIZERS[1:]), ("colour-bits", 1)])
@torch.no_grad()
def test_no_level_sees_a_later_one_and_residual_levels_see_those_before(vq, blocks):
    generator = small_generator(vq=vq, **{} if blocks is None else {"level_blocks": blocks})
    inputs, ids = small_inputs(vq=vq), some_ids(vq=vq)
    read, levels = inputs(ids)[:, :-1], generator.levels.split(ids.flatten(1, 2))
    before = generator(read, levels, some_condition())
    for changed, size in enumerate(generator.levels.sizes):
        other = levels.clone()
        other[..., changed] = (levels[..., changed] + 1) % size
        after = generator(read, other, some_condition())
        same = [torch.allclose(one, two, rtol=1e-5, atol=1e-5) for one, two in zip(before, after, strict=True)]
        sees = bool(blocks) or vq == "residual-greys"
        assert same == [not (sees and level > changed) for level in range(len(same))]


@pytest.mark.slow
@pytest.mark.parametrize("vq", TOKENIZERS)
@pytest.mark.parametrize("condition", ["class", "text"])
@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("known", [0, 5])
@torch.no_grad()
def test_steps_with_a_cache_give_the_logits_of_the_whole_pass(features, condition, known, vq):
    generator, inputs = small_generator(features, condition, vq), small_inputs(features, vq)
    what, ids = some_condition(condition), some_ids(vq=vq)
    flat = ids.flatten(1, 2)
    whole = whole_pass(generator, inputs(ids)[:, :-1], ids, what)
    read, stream = inputs.stream(flat[:, :known])
    states, cache = generator.prefill(read, what)
    steps = [of_states(generator, states, flat[:, known])]
    for i in range(known, flat.shape[1] - 1):
        steps.append(of_states(generator, generator.step(stream.step(flat[:, i : i + 1]), cache)[:, 0], flat[:, i + 1]))
    torch.testing.assert_close(torch.stack(steps, dim=1), whole[:, known:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("condition", ["class", "text"])
@torch.no_grad()
def test_steps_of_several_positions_give_the_logits_of_the_whole_pass_also_after_drafts_that_are_cut_off(condition):
    generator, inputs = small_generator("concat", condition), small_inputs("concat")
    what, ids = some_condition(condition), some_ids()
    flat, whole = ids.flatten(1, 2), whole_pass(generator, inputs(ids)[:, :-1], ids, what)
    read, stream = inputs.stream(flat[:, :5])
    _, cache = generator.prefill(read, what)
    generator.step(stream.step(flat[:, :9]), cache)  # other ids than those that follow
    cache.cut(cache.length - 9)
    stream.cut(5)
    steps = [generator.step(stream.step(part), cache) for part in (flat[:, 5:12], flat[:, 12:13], flat[:, 13:-1])]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole[:, 6:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("vq", TOKENIZERS)
@pytest.mark.parametrize("features", FEATURES)
@torch.no_grad()
def test_a_stream_sees_what_the_whole_pass_sees(features, vq):
    inputs, ids = small_inputs(features, vq), some_ids(vq=vq)
    flat = ids.flatten(1, 2)
    read, stream = inputs.stream(flat[:, :7])
    steps = [stream.step(flat[:, i : i + 1]) for i in range(7, flat.shape[1])]
    torch.testing.assert_close(torch.cat([read, *steps], dim=1), inputs(ids), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("vq", TOKENIZERS)
@pytest.mark.parametrize("features", FEATURES)
@torch.no_grad()
def test_a_step_at_a_position_that_is_a_tensor_compiles_and_gives_the_same(features, vq):
    generator, inputs = small_generator(features, "text", vq), small_inputs(features, vq)
    what, ids = some_condition("text"), some_ids(vq=vq).flatten(1, 2)
    (read, stream), (_, twin) = inputs.stream(ids[:, :3]), inputs.stream(ids[:, :3])
    (_, cache), (_, static) = generator.prefill(read, what), generator.prefill(read, what)

    def step(ids, position):
        return generator.step_at(twin.step_at(ids, position), static, position + LENGTH)

    compiled = torch.compile(step, backend="eager", fullgraph=True)
    for i in range(3, 8):
        expected = generator.step(stream.step(ids[:, i : i + 1]), cache)
        torch.testing.assert_close(compiled(ids[:, i : i + 1], torch.tensor([i])), expected, rtol=1e-4, atol=1e-4)
    torch.compiler.reset()


@pytest.mark.parametrize(("keys", "alike"), [("zero", True), ("rotated", False)])
@torch.no_grad()
def test_words_are_seen_alike_unless_they_have_keys(keys, alike):
    generator = small_generator("ids", "text", condition_keys=keys)
    _, cache = generator.prefill(small_inputs()(some_ids())[:, :3], some_condition("text"))
    for of_block in cache.keys:
        of_words, of_ids = of_block[:, :, :LENGTH], of_block[:, :, LENGTH : LENGTH + 3]
        assert bool((of_words == 0).all()) == alike and of_ids.any()


@torch.no_grad()
def test_a_word_has_another_key_in_another_place_if_keys_are_rotated():
    generator = small_generator("ids", "text", condition_keys="rotated")
    word = torch.randn(1, 1, TEXT_WIDTH).expand(1, LENGTH, -1)
    _, cache = generator.prefill(small_inputs()(some_ids(1))[:, :0], Condition(word))
    keys = cache.keys[0][0, :, :LENGTH]
    assert not torch.isclose(keys[:, :-1], keys[:, 1:], atol=1e-4).all(-1).any()


@pytest.mark.parametrize("condition", ["class", "text"])
@pytest.mark.parametrize("features", ["ids", "codes", "concat"])
@pytest.mark.parametrize(("vq", "level_blocks"), [("mean-colour", 0), ("quarter-greys", 0), ("residual-greys", 1)])
@torch.no_grad()
def test_without_levels_a_pass_samples_those_that_its_logits_name(features, condition, vq, level_blocks):
    """With weights of the head so large that one id has all the chance."""
    generator = small_generator(features, condition, vq, level_blocks=level_blocks)
    last = generator.head.heads if level_blocks else [generator.head]
    for layer in last:
        torch.nn.init.normal_(layer.weight, std=1e5)
    read = small_inputs(features, vq)(some_ids(vq=vq))[:, :-1]
    sampled = torch.stack(generator(read, None, some_condition(condition)), dim=-1)
    logits = generator(read, sampled, some_condition(condition))
    assert torch.equal(torch.stack([one.argmax(-1) for one in logits], dim=-1), sampled)
    assert sampled.dtype == torch.int64 and len(sampled.unique()) > 1


@torch.no_grad()
def test_with_rotated_keys_a_cache_gives_the_logits_of_the_whole_pass():
    generator, inputs = small_generator("concat", "text", condition_keys="rotated"), small_inputs("concat")
    flat = some_ids().flatten(1, 2)
    read, stream = inputs.stream(flat[:, :5])
    logits, cache = generator.prefill(read, some_condition("text"))
    after = generator.step(stream.step(flat[:, 5:6]), cache)[:, 0]
    whole = whole_pass(generator, inputs(some_ids())[:, :-1], some_ids(), some_condition("text"))
    torch.testing.assert_close(torch.stack([logits, after], dim=1), whole[:, 5:7], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("condition", ["class", "text"])
@pytest.mark.parametrize("features", FEATURES)
def test_with_normalized_keys_the_inputs_begin_larger_and_scores_do_not_depend_on_their_size(features, condition):
    torch.manual_seed(0)
    plain = Generator(small_config(features, condition))
    torch.manual_seed(0)
    generator = Generator(small_config(features, condition, qk_norm=True))
    width = generator.config.width
    for one, other in zip(plain._embedding_weights(), generator._embedding_weights(), strict=True):
        torch.testing.assert_close(other, one * width**0.5)
    block = generator.blocks[0]
    assert plain.state_dict().keys() < generator.state_dict().keys()
    seen = []
    x = torch.randn(1, 3, width)
    cos, sin = (table[:3] for table in generator._rotation_on(x.device))
    for scale in (10, 4):  # larger at once, so that the epsilon of the norms is nothing beside them
        with torch.no_grad():
            block.qkv.weight.mul_(scale)
            block(x, cos, sin, lambda q, k, v: seen.append(q @ k.mT) or v)
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_padding_of_a_text_changes_nothing():
    generator, inputs = small_generator("ids", "text"), small_inputs()
    values, mask = some_condition("text")
    noise = torch.where(mask[:, :, None], values, torch.full_like(values, 7.0))
    read, ids = inputs(some_ids())[:, :-1], some_ids()
    first, second = (whole_pass(generator, read, ids, Condition(x, mask)) for x in (values, noise))
    torch.testing.assert_close(first, second, **EXACT)
    assert not torch.allclose(whole_pass(generator, read, ids, Condition(noise)), first)


@torch.no_grad()
def test_two_rows_of_one_picture_are_two_pictures_with_the_same_ids():
    generator, ids = small_generator(), some_ids().flatten(1, 2)
    both = Condition(torch.tensor([0, 1, 2, 5, 5, 5]))
    logits, cache = generator.prefill(ids[:, :4], both)
    again, apart = generator.prefill(ids[:, :4].repeat(2, 1, 1), both)
    torch.testing.assert_close(logits, again)
    torch.testing.assert_close(generator.step(ids[:, 4:5], cache), generator.step(ids[:, 4:5].repeat(2, 1, 1), apart))


@pytest.mark.parametrize("condition", ["class", "text"])
@torch.no_grad()
def test_a_dropped_condition_says_nothing_and_the_others_stay(condition):
    generator, ids, what = small_generator("ids", condition), some_ids(), some_condition(condition)
    drop, read = torch.tensor([True, False, True]), small_inputs()(ids)[:, :-1]
    logits = whole_pass(generator, read, ids, what, drop)
    other = what._replace(values=what.values.flip(0) if condition == "class" else what.values * 2)
    torch.testing.assert_close(logits[drop], whole_pass(generator, read, ids, other, drop)[drop], **EXACT)
    torch.testing.assert_close(logits[1], whole_pass(generator, read, ids, what)[1])
    assert not torch.allclose(logits[drop], whole_pass(generator, read, ids, what)[drop])


@torch.no_grad()
def test_a_grid_that_is_no_square_knows_rows_from_columns():
    wide, tall = (small_generator(grid=grid) for grid in [(2, 8), (8, 2)])
    ids = some_ids().flatten(1, 2)[:, :16]
    assert not torch.allclose(*(whole_pass(one, ids[:, :-1], ids, some_condition()) for one in (wide, tall)))


@pytest.mark.parametrize("changes", [{"kv_heads": 2}, {"qk_norm": True}, {"kv_heads": 2, "qk_norm": True}])
@torch.no_grad()
def test_fewer_heads_of_keys_than_heads_and_normalized_keys_agree_with_the_cache(changes):
    generator, ids = small_generator(**changes), some_ids().flatten(1, 2)[:, :7]
    logits, cache = generator.prefill(ids[:, :5], some_condition())
    whole = whole_pass(generator, ids[:, :6], ids, some_condition())
    torch.testing.assert_close(torch.cat([logits[:, None], generator.step(ids[:, 5:6], cache)], 1), whole[:, 5:])


@pytest.mark.parametrize("vq", ["mean-colour", "residual-greys"])
def test_checkpointing_keeps_fewer_activations_and_changes_no_gradient(vq):
    gradients, kept, ids = [], [], some_ids(vq=vq)
    for checkpointing in (False, True):
        generator = small_generator("ids", "text", vq).train()
        generator.grad_checkpointing = checkpointing
        read = ids.flatten(1, 2)[:, :-1]
        logits, numbers = kept_by(whole_pass, generator, read, ids, some_condition("text"))
        kept.append(numbers)
        logits.square().mean().backward()
        gradients.append([x.grad for x in generator.parameters()])
    torch.testing.assert_close(*gradients)
    assert kept[1] < 0.15 * kept[0], "both the blocks and a transformer over levels are computed anew"


@pytest.mark.parametrize(("training", "share"), [(True, 0.25), (False, 0.0)])
@torch.no_grad()
def test_dropout_is_after_the_embeddings_and_both_halves_of_every_block_in_training_alone(training, share):
    torch.manual_seed(0)
    generator = Generator(small_config(), dropout=0.25).train(training)
    x = generator._embedded(small_inputs()(some_ids())[:, :-1], some_condition())
    dropped = [x == 0]
    tables = [table[: x.shape[1]] for table in generator._rotation_on(x.device)]
    for block in generator.blocks:
        for other in (block.proj, block.down):  # the last layers of the halves
            weight = other.weight.clone()
            torch.nn.init.zeros_(other.weight)
            dropped.append(block(x, *tables, lambda q, k, v: v) == x)
            other.weight.copy_(weight)
    assert [float(places.float().mean()) for places in dropped] == pytest.approx([share] * 5, abs=0.03)


def test_a_cache_that_is_full_and_inputs_of_another_shape_are_refused():
    generator, ids = small_generator(), some_ids().flatten(1, 2)
    _, cache = generator.prefill(ids, some_condition())
    with pytest.raises(ValueError, match="got 3 inputs for position 65 of a cache of 3 rows and 65 positions"):
        generator.step(ids[:, :1], cache)
    with pytest.raises(ValueError, match=r"got inputs \(3, 65, 1\); wanted \(B, n <= 64, 1\), of features = 'ids'"):
        generator(torch.zeros(3, 65, 1, dtype=torch.int64), ids, some_condition())
    with pytest.raises(ValueError, match=r"got inputs \(3, 64, 1\); wanted \(B, n <= 64, 33\), of features = 'concat'"):
        small_generator("concat")(ids, ids, some_condition())
    with pytest.raises(ValueError, match=r"got levels \(3, 64, 1\) with inputs \(3, 64, 1\); wanted \(3, 65, 1\)"):
        generator(ids, ids, some_condition())
    with pytest.raises(ValueError, match=r"got the condition \(2,\); wanted \(3\), a class a picture"):
        generator(ids[:, :-1], ids, some_condition(count=2))
    with pytest.raises(ValueError, match=r"got the mask \(3, 5\); wanted \(3, 6\)"):
        what = some_condition("text")
        small_generator("ids", "text")(ids[:, :-1], ids, what._replace(mask=what.mask[:, 1:]))


def test_an_id_may_have_many_bits_and_its_levels_few():
    """LFQ of 40 bits, as four levels; a head for the id itself would have 10^12 rows."""
    generator = Generator(small_config(codebook_sizes=(2**40,), levels=(2**4, *[2**12] * 3)))
    assert generator.head.weight.shape == (2**4 + 3 * 2**12, 32)
    ids = torch.randint(2**40, (3, 64, 1), generator=torch.Generator().manual_seed(0))
    assert whole_pass(generator, ids[:, :-1], ids, some_condition()).shape == (3, 64, 2**4 + 3 * 2**12)


def test_an_encoder_that_is_not_causal_is_refused_before_anything_is_drawn():
    toklip = small_toklip()
    toklip.encoder.config = toklip.encoder.config.model_copy(update={"causal": False})
    with pytest.raises(ValueError, match=r"not causal .* wanted one that is trained with causal = true"):
        Inputs("concat", tokenizer=mean_colour(), encoder=toklip.encoder)


@pytest.mark.slow
def test_published_sizes_have_the_published_numbers_of_parameters():
    # Of 1000 classes and 16384 ids; LlamaGen's paper, table 2, in millions; 7B of its code.
    published = {"B": 111, "L": 343, "XL": 775, "XXL": 1411, "XXXL": 3893, "1B": 1200, "3B": 3097, "7B": 6615}
    counts = {}
    for name, (width, depth, heads) in SIZES.items():
        sizes = {"width": width, "depth": depth, "heads": heads}
        many = {"codebook_sizes": (16384,), "levels": None, "condition": ClassCondition(classes=1000)}
        config = small_config().model_copy(update=sizes | many)
        with torch.device("meta"):
            counts[name] = round(sum(x.numel() for x in Generator(config).parameters()) / 1e6)
    assert counts == published


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, r"width \(32\) over heads \(3\) must be a multiple of 4"),
        ({"kv_heads": 3}, r"heads \(4\) must be a multiple of kv_heads \(3\)"),
        ({"codebook_sizes": (2**MOST_BITS + 1,)}, f"less than or equal to {2**MOST_BITS}"),
        ({"levels": (299,)}, r"got levels of \(299,\) for codebooks of \(300,\); wanted one level for each id"),
        ({"feature_width": 3}, "feature_width goes with features = 'codes' or 'concat'"),
        ({"toklip": "some"}, "toklip goes with features = 'concat'"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        small_config(**changes)


@torch.no_grad()
def test_a_word_is_read_with_as_many_words_before_and_after_it_as_the_condition_says():
    embedding = TextEmbedding(TextCondition(encoder="toklip", length=9, width=8, neighbours=2), 16)
    words = torch.randn(1, 9, 8)
    changed = words.clone()
    changed[:, 4] += 1
    moved = (embedding(words) != embedding(changed)).any(-1)[0]
    assert moved.tolist() == [abs(place - 4) <= 2 for place in range(9)]
    # Beyond its ends a text has zeros.
    between = torch.zeros(1, 9, 8)
    between[:, 4] = words[:, 4]
    torch.testing.assert_close(embedding(words[:, 4:5])[:, 0], embedding(between)[:, 4])
