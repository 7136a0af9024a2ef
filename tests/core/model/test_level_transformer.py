"""Laws of the transformer over levels: what a level sees, and that one by one gives what all at once gives."""

import pytest
import torch
from toklip_core.model import LevelTransformer, TrunkConfig, level_transformer, sample_ids
from torch import nn

from tests.support.deterministic import arrays, small_weights

SIZES = (7, 5, 9, 4)


@pytest.fixture
def levels():
    """With weights so large that every logit depends on all that it reads."""
    torch.manual_seed(0)
    config = TrunkConfig(width=16, depth=2, heads=2, activation="gelu", norm_eps=1e-5)
    module = LevelTransformer(SIZES, state_width=12, config=config)
    for tensor in module.parameters():
        if tensor.ndim > 1:
            nn.init.normal_(tensor, std=0.5)
    return module.eval()


def some(*shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    ids = [torch.randint(size, shape, generator=draw) for size in SIZES]
    return torch.randn(*shape, 12, generator=draw), torch.stack(ids, dim=-1)


@torch.no_grad()
def test_one_by_one_gives_what_all_at_once_gives(levels):
    states, ids = some(6)
    whole = levels(states, ids)
    assert [logits.shape for logits in whole] == [(6, size) for size in SIZES]
    for level, logits in enumerate(whole):
        torch.testing.assert_close(levels.logits(states, ids[:, :level]), logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("changed", range(4))
@torch.no_grad()
def test_a_level_sees_the_levels_before_it_and_no_other(levels, changed):
    states, ids = some(6)
    other = ids.clone()
    other[:, changed] = (ids[:, changed] + 1) % SIZES[changed]
    for level, (first, second) in enumerate(zip(levels(states, ids), levels(states, other), strict=True)):
        assert torch.allclose(first, second) is (level <= changed)


@torch.no_grad()
def test_every_level_sees_the_state(levels):
    (states, ids), (others, _) = some(6), some(6, seed=1)
    for first, second in zip(levels(states, ids), levels(others, ids), strict=True):
        assert not torch.isclose(first, second).all(-1).any()


@torch.no_grad()
def test_positions_do_not_see_each_other(levels, monkeypatch):
    states, ids = some(3, 5)
    whole = levels(states, ids)
    alone = levels(states[1, 2], ids[1, 2])
    monkeypatch.setattr(level_transformer, "_AT_ONCE", 4)
    parted = levels(states, ids)
    for logits, one, part in zip(whole, alone, parted, strict=True):
        torch.testing.assert_close(logits[1, 2], one, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(logits, part, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_sampled_levels_have_the_chances_of_the_logits(levels):
    """The chance of all levels is the product of their chances, each after the levels before it."""
    torch.manual_seed(0)
    states, _ = some(1)
    few = 6000
    sampled = torch.stack(levels(states.expand(few, 1, 12), None), dim=-1)
    assert sampled.shape == (few, 1, 4) and sampled.dtype == torch.int64
    rows, counts = sampled[:, 0].unique(dim=0, return_counts=True)
    logits = levels(states.expand(len(rows), 12), rows)
    chances = torch.stack([a.softmax(-1).gather(-1, rows[:, q, None]) for q, a in enumerate(logits)]).prod(0)[:, 0]
    spread = (few * chances * (1 - chances)).sqrt() + 1
    assert ((counts - few * chances).abs() < 5 * spread).all() and counts.max() > 20


def test_ids_are_sampled_with_the_chances_of_their_logits_and_a_logit_that_is_no_number_stops_nothing():
    torch.manual_seed(0)
    chances = torch.tensor([0.5, 0.3, 0.2, 0.0])
    counts = sample_ids(chances.log().expand(20_000, 4)).bincount(minlength=4)
    torch.testing.assert_close(counts / 20_000, chances, rtol=0, atol=0.02)
    assert counts[3] == 0
    assert sample_ids(torch.full((2, 3), torch.nan)).shape == (2,)


def test_half_precision_is_in_products_alone(levels):
    states, ids = some(6)
    with torch.autocast("cpu", torch.bfloat16):
        half = levels(states, ids)
    for logits, exact in zip(half, levels(states, ids), strict=True):
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, exact, rtol=0.1, atol=0.5)


@torch.no_grad()
def test_it_can_be_the_depth_transformer_of_vila_u():
    """Golden: mit-han-lab/vila-u, width 80, 2 blocks, 5 heads, on states of width 40.

    Its head has a bias, and ours none. It projects the sum of the codes so far; a table of projected codes for each
    level, the bias of the projection in the first, gives the same.
    """
    golden, weights = arrays("vila_u"), small_weights("vila_u")
    own = {name.removeprefix("rqtransformer."): t for name, t in weights.items() if name.startswith("rqtransformer.")}
    config = TrunkConfig(width=80, depth=2, heads=5, activation="gelu", norm_eps=1e-5)
    module = LevelTransformer((2048,) * 4, state_width=40, config=config)
    projected = weights["rqvaesiglip.quantizer.codebooks.0.weight"][:-1] @ own["in_mlp_1.weight"].T
    state = {f"tables.{level}.weight": projected + own["in_mlp_1.bias"] * (level == 0) for level in range(3)}
    state |= {f"heads.{level}.weight": own["classifier_mlp.linear.weight"] for level in range(4)}
    state["pos_embed"] = own["pos_emb_d"][0]
    for part in ("weight", "bias"):
        state |= {f"project.{part}": own[f"in_mlp_2.{part}"], f"norm.{part}": own[f"classifier_mlp.layer_norm.{part}"]}
        for block in range(2):
            theirs = {name: own[f"head_transformer.blocks.{block}.{name}.{part}"] for name in VILA_U_BLOCK}
            packed = torch.cat([theirs[f"attn.{name}"] for name in ("query", "key", "value")])
            state[f"blocks.{block}.attn.qkv.{part}"] = packed
            state |= {f"blocks.{block}.{ours}.{part}": theirs[name] for name, ours in VILA_U_BLOCK.items() if ours}
    module.load_state_dict(state)
    ids = golden["ids"][0].flatten(0, 1)[:3]
    logits = torch.stack(module.eval()(golden["depth_body"][0], ids), dim=1) + own["classifier_mlp.linear.bias"]
    torch.testing.assert_close(logits, golden["depth_logits"][0], rtol=0, atol=5e-5)


#: Layers of a block of VILA-U -> ours.
VILA_U_BLOCK = {
    "ln1": "norm1",
    "ln2": "norm2",
    "attn.query": "",
    "attn.key": "",
    "attn.value": "",
    "attn.proj": "attn.proj",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}
