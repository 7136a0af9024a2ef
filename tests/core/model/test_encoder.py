"""The laws of the semantic encoder: exactly causal, the same however it is run, with the original towers' numbers."""

from __future__ import annotations

import copy
import math

import pytest
import timm.layers
import torch
from open_clip.model import _build_vision_tower
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from toklip_core.model import (
    EncoderConfig,
    SemanticEncoder,
    TrunkConfig,
    activation_of,
    encoder_from_tower,
    resized_encoder,
)
from torch import nn

from tests.support.kept_activations import kept_by
from tests.support.random_weights import randomised

GRID = (3, 5)
TRUNKS = {
    "attention": TrunkConfig(width=32, depth=3, heads=4, mlp_ratio=3.7),
    "class token": TrunkConfig(
        width=32, depth=3, heads=4, activation="quick_gelu", pooling="class_token", pre_norm=True, output_dim=24
    ),
}
#: The projector of this one reads codes of neighbours.
TRUNKS["neighbours"] = TRUNKS["attention"]


def encoder(trunk="attention", *, grid=GRID, codebook_dim=6):
    config = EncoderConfig(
        codebook_dim=codebook_dim, grid=grid, trunk=TRUNKS[trunk], neighbours=int(trunk == "neighbours")
    )
    return randomised(SemanticEncoder(config)).eval()


def codes(batch=2, *, grid=GRID, codebook_dim=6, seed=1):
    return torch.randn(batch, *grid, codebook_dim, generator=torch.Generator().manual_seed(seed))


def siglip(**changes):
    """A tower of SigLIP's kind on pictures of 32 x 32: 16 tokens."""
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 0}
    kind = {"class_token": False, "global_pool": "map", "act_layer": "gelu_tanh", "mlp_ratio": 3.7}
    return randomised(VisionTransformer(**sizes | kind | changes)).eval()


def clip(**changes):
    """A tower of CLIP's kind, as timm has it."""
    kind = {"class_token": True, "global_pool": "token", "act_layer": "quick_gelu", "pre_norm": True, "num_classes": 24}
    return siglip(**kind | changes)


def open_clip_tower(*, quick_gelu=True, **changes):
    """CLIP's tower as open_clip has it."""
    sizes = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 8}
    return randomised(_build_vision_tower(24, sizes | changes, quick_gelu)).eval()


def pixels(batch=2):
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def from_tower(vision, **changes):
    """The encoder of a tower with the tower's own first layer for its projector: it takes embedded patches."""
    result = encoder_from_tower(vision, codebook_dim=32, grid=(4, 4), **changes).eval()
    result.projector = nn.Identity()
    return result


@pytest.fixture
def unfused():
    """Attention as timm runs it for TIMM_FUSED_ATTN=0."""
    timm.layers.set_fused_attn(enable=False)
    yield
    timm.layers.set_fused_attn(enable=True)


@torch.no_grad()
def check_causality(model, given):
    count = GRID[0] * GRID[1]
    seen = model(given)
    for i in range(count - 1):
        other = given.flatten(1, 2).clone()
        other[:, i + 1 :] = 100 * torch.randn(other[:, i + 1 :].shape, generator=torch.Generator().manual_seed(i))
        changed = model(other.view_as(given))
        assert torch.equal(changed.tokens[:, : i + 1], seen.tokens[:, : i + 1])
        assert not torch.equal(changed.tokens[:, i + 1], seen.tokens[:, i + 1])
        assert not torch.equal(changed.pooled, seen.pooled)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trunk", TRUNKS)
def test_a_token_is_bit_equal_whatever_comes_after_it(trunk, dtype):
    check_causality(encoder(trunk).to(dtype), codes())


@pytest.mark.parametrize("trunk", TRUNKS)
def test_a_token_is_bit_equal_whatever_comes_after_it_under_autocast(trunk):
    with torch.autocast("cpu", torch.bfloat16):
        check_causality(encoder(trunk), codes())


@pytest.mark.parametrize("trunk", TRUNKS)
def test_attention_that_is_not_fused_is_as_causal(trunk, unfused):
    model = encoder(trunk)
    assert not model.blocks[0].attn.fused_attn
    check_causality(model, codes())


@pytest.mark.parametrize("trunk", TRUNKS)
def test_attention_that_is_not_fused_gives_the_same_numbers(trunk, monkeypatch):
    fused = encoder(trunk)(codes())
    with monkeypatch.context() as patched:
        patched.setattr(timm.layers.config, "_USE_FUSED_ATTN", 0)
        unfused = encoder(trunk)(codes())
    torch.testing.assert_close(unfused.tokens, fused.tokens)
    torch.testing.assert_close(unfused.pooled, fused.pooled)


@torch.no_grad()
def test_a_projector_with_neighbours_reads_the_codes_around_that_come_before():
    model, read = encoder("neighbours"), []
    model.projector.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    given = codes()
    model(given)
    around = read[0].view(2, *GRID, 5, 6)
    for row in range(GRID[0]):
        for column in range(GRID[1]):
            for place, (down, right) in enumerate([(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 0)]):
                y, x = row + down, column + right
                inside = y >= 0 and 0 <= x < GRID[1]
                wanted = given[:, y, x] if inside else torch.zeros(2, 6)
                assert torch.equal(around[:, row, column, place], wanted), (row, column, place)


def test_equals_timm_when_the_projector_is_its_patch_embedding():
    """Ours differs from timm's causal ViT in the first layer only: put that back, and nothing differs."""
    vit = siglip()
    theirs = vit.forward_features(pixels(), is_causal=True)
    mine = from_tower(vit)(vit.patch_embed(pixels()).unflatten(1, (4, 4)))
    torch.testing.assert_close(mine.tokens, theirs, rtol=0, atol=0)
    torch.testing.assert_close(mine.pooled, vit.forward_head(theirs), rtol=0, atol=0)


@pytest.mark.parametrize("vit", [siglip(), siglip(num_classes=24), clip(), clip(pre_norm=False)], ids=str)
@torch.no_grad()
def test_a_tower_of_timm_gives_its_own_numbers_when_it_is_not_causal(vit):
    """With full attention the order of tokens means nothing, so a class token that moved last changes no number."""
    model = from_tower(vit, causal=False)
    mine = model(vit.patch_embed(pixels()).unflatten(1, (4, 4)))
    torch.testing.assert_close(mine.tokens, vit.forward_features(pixels())[:, vit.num_prefix_tokens :])
    torch.testing.assert_close(mine.pooled, vit(pixels()))


@pytest.mark.parametrize(
    "changes",
    [{}, {"quick_gelu": False}, {"quick_gelu": False, "act_kwargs": {"approximate": "tanh"}}, {"no_ln_pre": True}],
    ids=str,
)
@torch.no_grad()
def test_a_tower_of_open_clip_gives_its_own_numbers_when_it_is_not_causal(changes):
    vision = open_clip_tower(output_tokens=True, **changes)
    model = from_tower(vision, causal=False)
    pooled, tokens = vision(pixels())
    mine = model(vision.conv1(pixels()).movedim(1, -1))
    torch.testing.assert_close(mine.tokens, tokens)
    torch.testing.assert_close(mine.pooled, pooled)


def test_the_class_token_and_its_position_move_to_the_end_once():
    vit = clip()
    model = encoder_from_tower(vit, codebook_dim=6, grid=(4, 4))
    assert torch.equal(model.class_token, vit.cls_token)
    assert torch.equal(model.pos_embed, torch.cat([vit.pos_embed[:, 1:], vit.pos_embed[:, :1]], dim=1))
    with pytest.raises(ValueError, match=r"got a toklip_core\.model\.encoder\.SemanticEncoder; wanted a vision"):
        encoder_from_tower(model, codebook_dim=6, grid=(4, 4))


def test_all_of_a_tower_but_its_first_layer_is_copied():
    vit = siglip()
    model = encoder_from_tower(vit, codebook_dim=6, grid=(4, 4))
    for name, tensor in model.state_dict().items():
        if not name.startswith("projector."):
            assert torch.equal(tensor, vit.state_dict()[name])
    vit.pos_embed.data.zero_()
    vit.norm.weight.data.zero_()
    assert model.pos_embed.abs().sum() > 0 and model.norm.weight.abs().sum() > 0


def test_the_projector_starts_with_torchs_initial_values():
    """Uniform, up to 1 / sqrt(inputs of the layer): the largest of many values lies close to that."""
    trunk = TrunkConfig(width=64, depth=1, heads=4)
    tower = siglip(embed_dim=64)
    torch.manual_seed(0)
    plain = SemanticEncoder(EncoderConfig(codebook_dim=8, grid=GRID, trunk=trunk))
    for model in (plain, encoder_from_tower(tower, codebook_dim=8, grid=GRID)):
        for layer, inputs in ((model.projector[0], 8), (model.projector[2], 256)):
            assert layer.in_features == inputs
            for values in (layer.weight, layer.bias):
                assert 0.9 < values.abs().max() * inputs**0.5 <= 1 + 1e-6


@pytest.mark.parametrize("grid", [(4, 4), (8, 8), (3, 5), (2, 8)])
@pytest.mark.parametrize("vit", [siglip(), clip()], ids=["attention", "class token"])
def test_positions_of_another_grid_are_those_of_timm(vit, grid):
    model = encoder_from_tower(vit, codebook_dim=6, grid=grid)
    prefix = vit.num_prefix_tokens
    theirs = resample_abs_pos_embed(vit.pos_embed, list(grid), [4, 4], num_prefix_tokens=prefix)
    count = grid[0] * grid[1]
    torch.testing.assert_close(model.pos_embed[:, :count], theirs[:, prefix:], rtol=0, atol=0)
    assert torch.equal(model.pos_embed[:, count:], vit.pos_embed[:, :prefix])


@pytest.mark.parametrize("trunk", TRUNKS)
def test_a_resized_encoder_has_the_weights_of_the_other_and_its_positions_resampled(trunk):
    model = encoder(trunk, grid=(2, 8)).requires_grad_(False)
    resized = resized_encoder(model, (4, 4))
    assert resized.config.grid == (4, 4) and not resized.training
    assert resized.blocks[0].mlp.fc1.weight.data_ptr() == model.blocks[0].mlp.fc1.weight.data_ptr()
    assert not torch.equal(resized.pos_embed, model.pos_embed)
    with torch.no_grad():
        assert resized(codes(grid=(4, 4))).tokens.shape == (2, 16, 32)
        back = resized_encoder(model, (2, 8))(codes(grid=(2, 8)))
        assert torch.equal(back.pooled, model(codes(grid=(2, 8))).pooled)


UNFIT = {
    "register tokens": (lambda: clip(reg_tokens=2), "pos_embed|reg_token have no place"),
    "layer scale": (lambda: siglip(init_values=1e-5), r"blocks.0.ls1.gamma, .* have no place"),
    "normalised queries": (lambda: siglip(qk_norm=True, norm_layer=nn.LayerNorm), r"blocks.0.attn.k_norm.* no place"),
    "another order of norms": (lambda: siglip(block_fn=ResPostBlock), "blocks of its own kind"),
    "a gated MLP": (lambda: siglip(mlp_layer=timm.layers.SwiGLU), "blocks of its own kind"),
    "mean pooling": (lambda: siglip(global_pool="avg"), "pooled by 'avg'; wanted 'map'"),
    "a class token, pooled by the mean": (lambda: clip(global_pool="avg", fc_norm=False), "pooled by 'avg'"),
    "a class token without a position": (lambda: clip(no_embed_class=True), "pos_embed are of another shape"),
    "no positions": (lambda: siglip(pos_embed="none"), "pos_embed have no place"),
    "another activation": (lambda: siglip(act_layer="silu"), "got the activation SiLU; known are gelu, gelu_tanh"),
    "attentional pooling": (lambda: open_clip_tower(attentional_pool=True), "without a class token"),
    "mean pooling of open_clip": (lambda: open_clip_tower(pool_type="avg"), "without a class token"),
    "layer scale of open_clip": (lambda: open_clip_tower(ls_init_value=1e-5), r"blocks.0.ls_1.gamma, .* no place"),
    "a ResNet": (lambda: _build_vision_tower(24, {"layers": (1, 1, 1, 1), "width": 8}), "got a .*ModifiedResNet"),
    "NaFlex": (lambda: timm.create_model("test_vit3", pretrained=False), "have no place|wanted a vision transformer"),
    "a linear layer": (lambda: nn.Linear(2, 2), "got a torch.nn.modules.linear.Linear; wanted a vision transformer"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_a_tower_of_another_kind_is_refused_in_one_line(kind):
    build, match = UNFIT[kind]
    with pytest.raises(ValueError, match=match) as raised:
        encoder_from_tower(build(), codebook_dim=6, grid=(4, 4))
    assert "\n" not in str(raised.value)


def test_a_tower_that_open_clip_projects_is_refused():
    settings = {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear", "image_size": 160}
    with pytest.raises(ValueError, match="got a timm tower that open_clip projects; wanted one with timm_proj 'none'"):
        encoder_from_tower(_build_vision_tower(24, settings), codebook_dim=6, grid=(4, 4))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("trunk", TRUNKS)
def test_gradient_checkpointing_keeps_fewer_activations_and_changes_no_number(trunk, causal):
    """Neither an output nor a gradient."""
    results, kept = [], []
    for checkpointing in (False, True):
        model = encoder(trunk).train()
        model.config = model.config.model_copy(update={"causal": causal})
        model.grad_checkpointing = checkpointing
        seen, numbers = kept_by(model, codes())
        kept.append(numbers)
        (seen.tokens.square().sum() + seen.pooled.sum()).backward()
        results.append([seen.tokens, seen.pooled, *(p.grad for p in model.parameters())])
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=0, atol=0)
    assert kept[1] < 0.4 * kept[0]


def test_a_resized_encoder_checkpoints_as_the_other_does():
    kept = []
    for checkpointing in (False, True):
        model = encoder(grid=(2, 8)).train()
        model.grad_checkpointing = checkpointing
        kept.append(kept_by(resized_encoder(model, (4, 4)), codes(grid=(4, 4)))[1])
    assert kept[1] < 0.4 * kept[0]


@pytest.mark.parametrize("trunk", TRUNKS)
def test_every_parameter_gets_a_gradient(trunk):
    model = encoder(trunk)
    model(codes()).pooled.square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("trunk", TRUNKS)
@torch.no_grad()
def test_a_batch_of_one_is_a_row_of_a_batch_within_rounding(trunk):
    model = encoder(trunk)
    batch = model(codes(5))
    for row in range(5):
        alone = model(codes(5)[row : row + 1])
        torch.testing.assert_close(alone.tokens[0], batch.tokens[row])
        torch.testing.assert_close(alone.pooled[0], batch.pooled[row])


@pytest.mark.parametrize("trunk", TRUNKS)
@torch.no_grad()
def test_pooled_features_in_bfloat16_point_where_those_in_float32_do(trunk):
    model = encoder(trunk)
    seen = model(codes(8)).pooled
    half = copy.deepcopy(model).to(torch.bfloat16)(codes(8)).pooled.float()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(codes(8)).pooled.float()
    for other in (half, mixed):
        assert torch.cosine_similarity(seen, other).min() > 0.999


@pytest.mark.slow
@pytest.mark.parametrize("grid", [GRID, (1, 7), (4, 4)])
@pytest.mark.parametrize("trunk", TRUNKS)
@torch.no_grad()
def test_prefill_and_steps_give_what_the_full_pass_gives(trunk, grid):
    model = encoder(trunk, grid=grid)
    given, whole = codes(3, grid=grid).flatten(1, 2), model(codes(3, grid=grid)).tokens
    count = given.shape[1]
    for split in range(count + 1):
        first, cache = model.prefill(given[:, :split])
        assert first.shape == (3, split, 32) and cache.length == split
        rest = [model.step(given[:, i : i + 1], cache) for i in range(split, count)]
        torch.testing.assert_close(torch.cat([first, *rest], dim=1), whole)
        assert cache.length == count


@pytest.mark.parametrize("trunk", ["attention", "neighbours"])
@torch.no_grad()
def test_steps_of_several_codes_give_what_the_full_pass_gives_also_after_codes_that_are_cut_off(trunk):
    model = encoder(trunk)
    given, whole = codes().flatten(1, 2), model(codes()).tokens
    first, cache = model.prefill(given[:, :2])
    model.step(given[:, :4], cache)  # other codes than those that follow
    cache.cut(2)
    rest = [model.step(given[:, 2:5], cache), model.step(given[:, 5:], cache)]
    torch.testing.assert_close(torch.cat([first, *rest], dim=1), whole)
    assert cache.length == given.shape[1]


@pytest.mark.parametrize("trunk", ["attention", "neighbours"])
@pytest.mark.slow
@torch.no_grad()
def test_a_step_at_a_position_that_is_a_tensor_compiles_and_gives_the_same(trunk):
    model = encoder(trunk)
    given, whole = codes().flatten(1, 2), model(codes()).tokens
    _, cache = model.prefill(given[:, :2])
    step = torch.compile(model.step_at, backend="eager", fullgraph=True)
    rest = [step(given[:, i : i + 1], cache, torch.tensor([i])) for i in range(2, given.shape[1])]
    torch.testing.assert_close(torch.cat(rest, dim=1), whole[:, 2:])
    torch.compiler.reset()


@pytest.mark.parametrize("trunk", ["attention", "neighbours"])
@torch.no_grad()
def test_steps_under_autocast_give_what_the_full_pass_gives(trunk):
    model = encoder(trunk)
    given = codes().flatten(1, 2)
    with torch.autocast("cpu", torch.bfloat16):
        first, cache = model.prefill(given[:, :4])
        rest = [model.step(given[:, i : i + 1], cache) for i in range(4, given.shape[1])]
        whole = model(codes()).tokens
    torch.testing.assert_close(torch.cat([first, *rest], dim=1), whole, rtol=0.05, atol=0.05)


def test_prefill_and_step_keep_no_graph():
    model = encoder()
    first, cache = model.prefill(codes().flatten(1, 2)[:, :3])
    after = model.step(codes()[:, 1, :1], cache)
    assert not (first.requires_grad or after.requires_grad or cache.keys[0].requires_grad)


def test_a_cache_refuses_what_does_not_fit_and_stays_as_it_is():
    model = encoder()
    given = codes().flatten(1, 2)
    with pytest.raises(ValueError, match=r"got 16 codes, but the grid \(3, 5\) has 15"):
        model.prefill(torch.cat([given, given[:, :1]], dim=1))
    with pytest.raises(ValueError, match=r"got codes \(2, 3, 5, 6\); wanted \(B, n, 6\), flat"):
        model.prefill(codes())
    with pytest.raises(ValueError, match="got codes of width 7; wanted 6"):
        model.prefill(torch.zeros(2, 3, 7))
    _, cache = model.prefill(given)
    with pytest.raises(ValueError, match=r"got 16 codes, but the grid \(3, 5\) has 15"):
        model.step(given[:, :1], cache)
    with pytest.raises(ValueError, match=r"got codes \(1, 1, 6\); wanted \(2, n, 6\), those of each picture of the"):
        model.step(given[:1, :1], cache)
    with pytest.raises(ValueError, match=r"got codes \(2, 6\); wanted \(2, n, 6\)"):
        model.step(given[:, 0], cache)
    assert cache.length == 15


def test_an_encoder_that_is_not_causal_refuses_steps_and_prefill():
    model = encoder()
    _, cache = model.prefill(codes().flatten(1, 2)[:, :3])
    model.config = model.config.model_copy(update={"causal": False})
    for call in (lambda: model.prefill(torch.zeros(2, 0, 6)), lambda: model.step(torch.zeros(2, 1, 6), cache)):
        with pytest.raises(ValueError, match=r"not causal .* wanted one that is trained with causal = true"):
            call()


@torch.no_grad()
def test_an_encoder_that_is_not_causal_is_the_same_function_in_bfloat16_with_gradients_and_without():
    model = SemanticEncoder(encoder().config.model_copy(update={"causal": False})).to(torch.bfloat16)
    without = model(codes()).tokens
    with torch.enable_grad():
        torch.testing.assert_close(model(codes()).tokens, without, rtol=0, atol=0)


def test_a_resized_encoder_that_is_not_causal_stays_so():
    model = SemanticEncoder(encoder().config.model_copy(update={"causal": False}))
    assert not resized_encoder(model, (4, 4)).config.causal


def test_codes_of_another_grid_or_width_are_refused():
    with pytest.raises(ValueError, match=r"got a grid of 5 x 3 codes, but the position embedding is of 3 x 5; resize"):
        encoder()(codes(grid=(5, 3)))
    with pytest.raises(ValueError, match=r"got codes \(2, 3, 5, 7\); wanted \(B, h, w, 6\)"):
        encoder()(codes(codebook_dim=7))
    with pytest.raises(ValueError, match=r"got codes \(2, 15, 6\); wanted \(B, h, w, 6\)"):
        encoder()(codes().flatten(1, 2))


@pytest.mark.parametrize("trunk", TRUNKS)
@torch.no_grad()
def test_each_token_is_pooled_as_a_picture_of_that_token_alone_is(trunk):
    model = encoder(trunk, grid=(1, 1))
    seen = model(codes(4, grid=(1, 1)))
    apart = model.pool_each(seen.tokens.transpose(0, 1))
    assert apart.shape == (1, 4, seen.pooled.shape[1])
    # A class token is placed there by the head alone.
    torch.testing.assert_close(apart[0], model.head(seen.tokens[:, 0]) if trunk == "class token" else seen.pooled)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"width": 30}, r"width \(30\) must be a multiple of heads \(4\)"),
        ({"depth": 0}, "greater than 0"),
        ({"mlp_ratio": 0}, "greater than 0"),
        ({"pooling": "mean"}, "attention"),
    ],
)
def test_sizes_that_cannot_be_are_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        TrunkConfig(**{"width": 32, "depth": 1, "heads": 4} | changes)
    with pytest.raises(ValueError, match="greater than 0"):
        EncoderConfig(codebook_dim=6, grid=(0, 3), trunk=TRUNKS["attention"])


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [4304, 1, 31, 32, 33, 119])
@pytest.mark.parametrize("width", [32, 1152])
def test_the_hidden_width_of_a_tower_survives_its_ratio(width, hidden):
    """SO400M's 4304 is 3.7361 times its width, which timm rounds down."""
    vit = VisionTransformer(
        img_size=8, patch_size=8, embed_dim=width, depth=1, num_heads=4, class_token=False, global_pool="map",
        num_classes=0, mlp_ratio=(hidden + 0.5) / width, device="meta",
    )  # fmt: skip
    assert vit.blocks[0].mlp.fc1.out_features == hidden
    with torch.device("meta"):
        model = encoder_from_tower(vit, codebook_dim=6, grid=(1, 1))
    assert model.blocks[0].mlp.fc1.out_features == hidden
    assert math.isclose(model.config.trunk.mlp_ratio, hidden / width, rel_tol=0, abs_tol=0.501 / width)


@pytest.mark.parametrize("module", [nn.GELU("tanh"), timm.layers.get_act_layer("gelu_tanh")()])
def test_activations_go_by_what_they_compute(module):
    assert activation_of(module) == "gelu_tanh"
