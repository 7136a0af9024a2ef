"""The vision transformer that SigLIP, CLIP and TokLIP share: its sizes, blocks and pooling.

A vision tower on pixels (:func:`build_vision_tower`) and the semantic encoder on codes differ in their first layer, and
the encoder's blocks are causal. All other tensors can be copied from one to the other.

The blocks are timm's. Weights of open_clip's own towers (CLIP, with a class token) are renamed to timm's names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from toklip_core.config import LARGEST_RATIO, LARGEST_SIDE, LARGEST_WIDTH, MOST_LAYERS, Config
from toklip_core.weights import without_values

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]

_Spread = Annotated[float, Field(gt=0)]

#: Number of channels of a stem that are normalised together.
_GROUP = 8


class TrunkConfig(Config):
    """The sizes of a vision transformer without its patch embedding."""

    width: int = Field(gt=0, le=LARGEST_WIDTH, description="Width D of a token.")
    depth: int = Field(gt=0, le=MOST_LAYERS, description="Number of transformer blocks.")
    heads: int = Field(gt=0, le=LARGEST_WIDTH, description="Number of attention heads; must divide the width.")
    mlp_ratio: float = Field(
        default=4.0, gt=0, le=LARGEST_RATIO, description="Hidden width of the MLPs as a multiple of the width."
    )
    activation: Activation = Field(default="gelu_tanh", description="Activation of the MLPs; SigLIP2 uses gelu_tanh.")
    norm_eps: float = Field(default=1e-6, gt=0, description="Epsilon of the layer norms.")
    pooling: Literal["attention", "class_token"] = Field(
        default="attention", description="Pooling: attention over all tokens as in SigLIP, or a class token as in CLIP."
    )
    pre_norm: bool = Field(default=False, description="Add a layer norm before the first block, as in CLIP.")
    output_dim: int | None = Field(
        default=None,
        gt=0,
        le=LARGEST_WIDTH,
        description="Width E of a last linear layer; by default there is no such layer, and E = D.",
    )

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be a multiple of heads ({self.heads})")
        return self

    @property
    def joint_dim(self) -> int:
        """Width E of the space that pictures and texts share."""
        return self.output_dim or self.width


class VisionConfig(Config):
    """A vision transformer on pixels."""

    trunk: TrunkConfig
    patch_size: int = Field(gt=0, le=LARGEST_SIDE, description="Side of a patch in pixels.")
    stem: tuple[Annotated[int, Field(gt=0, le=LARGEST_WIDTH)], ...] = Field(
        default=(),
        description="Channels of a convolutional stem, one number per halving of the resolution, below 16 or a "
        "multiple of 8, in place of the linear patch embedding. A small tower needs one to learn shapes within "
        "minutes; SigLIP and CLIP have none.",
    )
    stem_blocks: int = Field(
        default=0, ge=0, le=MOST_LAYERS, description="Number of residual blocks after each halving of the stem."
    )
    mean: tuple[float, float, float] = Field(
        default=(0.5, 0.5, 0.5), description="Mean of red, green and blue that is subtracted from pixels in [0, 1]."
    )
    std: tuple[_Spread, _Spread, _Spread] = Field(
        default=(0.5, 0.5, 0.5), description="Standard deviation of red, green and blue that pixels are divided by."
    )

    @model_validator(mode="after")
    def _stem_makes_patches(self) -> Self:
        if self.stem and 2 ** len(self.stem) != self.patch_size:
            raise ValueError(f"a stem of {len(self.stem)} halvings makes patches of {2 ** len(self.stem)} pixels")
        for channels in self.stem:
            if channels >= 2 * _GROUP and channels % _GROUP:
                wanted = f"a number below {2 * _GROUP}, or a multiple of {_GROUP}"
                raise ValueError(f"a stem has {channels} channels; wanted {wanted}")
        if self.stem_blocks and not self.stem:
            raise ValueError("stem_blocks has no effect without a stem")
        return self


def build_blocks(config: TrunkConfig) -> nn.ModuleList:
    """Return the blocks of a trunk, with big_vision's initial values (timm's "jax")."""
    from timm.models.vision_transformer import Block, init_weights_vit_jax

    return nn.ModuleList(
        Block(
            config.width,
            config.heads,
            mlp_ratio=config.mlp_ratio,
            qkv_bias=True,
            act_layer=_activation(config.activation),
            norm_layer=norm_layer(config),
        )
        for _ in range(config.depth)
    ).apply(init_weights_vit_jax)


def build_attention_pool(config: TrunkConfig) -> nn.Module:
    """Return SigLIP's pooling (B, N, D) -> (B, D): one learnt query over all tokens, then an MLP."""
    from timm.layers import AttentionPoolLatent
    from timm.models.vision_transformer import init_weights_vit_jax

    pool: nn.Module = AttentionPoolLatent(
        config.width,
        num_heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        norm_layer=norm_layer(config),
        act_layer=_activation(config.activation),
    )
    return pool.apply(init_weights_vit_jax)


def build_vision_tower(config: VisionConfig, image_size: int) -> VisionTransformer:
    """Return timm's vision transformer on pixels (B, 3, image_size, image_size), normalised by mean and std.

    Its initial values are big_vision's (timm's "jax", Xavier). timm's usual ones, normal with a deviation of 0.02, suit
    widths around 1000; at 128 the blocks start almost silent, and a tower of 64 px learned no shapes in 90,000
    pictures. If the width is a multiple of 4, positions start as sines and cosines of row and column, for which a
    neighbour is a rotation.
    """
    from timm.layers import PatchEmbed, build_sincos2d_pos_embed
    from timm.models.vision_transformer import VisionTransformer

    trunk = config.trunk
    tower = VisionTransformer(
        img_size=image_size,
        patch_size=config.patch_size,
        num_classes=trunk.output_dim or 0,
        global_pool="map" if trunk.pooling == "attention" else "token",
        class_token=trunk.pooling == "class_token",
        embed_dim=trunk.width,
        depth=trunk.depth,
        num_heads=trunk.heads,
        mlp_ratio=trunk.mlp_ratio,
        pre_norm=trunk.pre_norm,
        act_layer=_activation(trunk.activation),
        norm_layer=norm_layer(trunk),
        embed_layer=partial(ConvStem, channels=config.stem, blocks=config.stem_blocks) if config.stem else PatchEmbed,
        weight_init="jax",
    )
    if trunk.width % 4:
        return tower  # no multiple of 4: two axes need a sine and a cosine each
    grid = [image_size // config.patch_size] * 2
    # Wavelengths from 6 cells to 32 times that, because grids have tens of cells per side, not thousands as texts do.
    positions = build_sincos2d_pos_embed(grid, trunk.width, temperature=32)
    with torch.no_grad():
        tower.pos_embed[:, -len(positions) :] = positions
    return tower


class ConvStem(nn.Module):
    """Convolutions from pixels (B, 3, S, S) to patches (B, N, D), in place of timm's PatchEmbed.

    Each entry of ``channels`` stands for two 3 x 3 convolutions, the first with stride 2, with group norm of groups
    of 8 channels (one group for less than 16), which treats each picture alone, and ``blocks`` residual blocks of two
    such convolutions. A linear layer follows.

    Source: Xiao et al., Early Convolutions Help Transformers See Better, https://arxiv.org/abs/2106.14881.
    """

    def __init__(  # noqa: PLR0913 - the signature by which timm builds a patch embedding
        self,
        img_size: int,
        patch_size: int,
        in_chans: int,
        embed_dim: int,
        *,
        channels: Sequence[int],
        blocks: int = 0,
        bias: bool = True,
        dynamic_img_pad: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        assert not dynamic_img_pad
        assert device is None and dtype is None  # in timm's signature; torch.device as a context is used instead
        self.img_size, self.patch_size = (img_size, img_size), (patch_size, patch_size)
        self.num_patches = (img_size // patch_size) ** 2
        layers: list[nn.Module] = []
        for narrow, wide in pairwise((in_chans, *channels)):
            for inputs, stride in ((narrow, 2), (wide, 1)):
                layers += _convolution(inputs, wide, stride)
            layers += [_ResidualBlock(*_convolution(wide, wide), *_convolution(wide, wide)) for _ in range(blocks)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels[-1], embed_dim, 1, bias=bias))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return patches (B, N, D), in raster order, of pixels (B, 3, S, S)."""
        patches: Tensor = self.layers(pixels).flatten(2).transpose(1, 2)
        return patches


class _ResidualBlock(nn.Sequential):
    """Layers whose result is added to their input."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)  # type: ignore[no-any-return, no-untyped-call]  # torch ships no types here


def _convolution(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    """Return the layers of a 3 x 3 convolution with its norm and activation."""
    return [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.GroupNorm(max(outputs // _GROUP, 1), outputs), nn.GELU()]


def norm_layer(config: TrunkConfig) -> Callable[[int], nn.Module]:
    """Return the function that makes a layer norm of a width."""
    return partial(nn.LayerNorm, eps=config.norm_eps)


def described_tower(vision: nn.Module) -> tuple[TrunkConfig, int, dict[str, Tensor]]:
    """Return the trunk, patch size and tensors, by timm's names, of a vision tower that was built elsewhere.

    Args:
        vision: timm's VisionTransformer (SigLIP, SigLIP2, CLIP), open_clip's VisionTransformer, or open_clip's wrapper
            of a timm model without a further head.

    Raises:
        ValueError: the tower is of another kind, or has modules that are not supported (register tokens, layer scale,
            ...).
    """
    from timm.models.vision_transformer import VisionTransformer

    if isinstance(vision, VisionTransformer):
        return _of_timm(vision)
    kind = f"{type(vision).__module__}.{type(vision).__name__}"
    if kind == "open_clip.timm_model.TimmModel":
        inner: Any = vision
        if len(inner.head):
            raise ValueError("got a timm tower that open_clip projects; wanted one with timm_proj 'none'")
        return described_tower(inner.trunk)
    if kind == "open_clip.transformer.VisionTransformer":
        return _of_open_clip(vision)
    raise ValueError(f"got a {kind}; wanted a vision transformer of timm or open_clip, such as SigLIP2's or CLIP's")


def _of_timm(vit: Any) -> tuple[TrunkConfig, int, dict[str, Tensor]]:  # noqa: ANN401 - timm ships no types
    from timm.layers import Mlp
    from timm.models.vision_transformer import Block

    # Other kinds of blocks and poolings may have tensors of the same names, so types are compared.
    if any(type(block) is not Block or type(block.mlp) is not Mlp for block in vit.blocks):
        raise ValueError("got a tower with blocks of its own kind; wanted SigLIP's and CLIP's: timm's Block and Mlp")
    if vit.global_pool not in ("map", "token"):
        raise ValueError(f"got a tower pooled by {vit.global_pool!r}; wanted 'map', as SigLIP's, or 'token', as CLIP's")
    tensors = dict(vit.state_dict())
    block = vit.blocks[0]
    config = TrunkConfig(
        width=vit.embed_dim,
        depth=len(vit.blocks),
        heads=block.attn.num_heads,
        mlp_ratio=_ratio(block.mlp.fc1.out_features, vit.embed_dim),
        activation=activation_of(block.mlp.act),
        norm_eps=block.norm1.eps,
        pooling="class_token" if vit.has_class_token else "attention",
        pre_norm=not isinstance(vit.norm_pre, nn.Identity),
        output_dim=vit.num_classes or None,
    )
    patch = int(vit.patch_embed.patch_size[0])
    if isinstance(vit.patch_embed, ConvStem):  # our own stem, outside the trunk
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("patch_embed.")}
    _refuse_other_parts(config, patch, vit.patch_embed.img_size[0], tensors)
    return config, patch, tensors


def _of_open_clip(vision: Any) -> tuple[TrunkConfig, int, dict[str, Tensor]]:  # noqa: ANN401
    """Return the same for CLIP's own tower, with packed attention weights and a projection without bias."""
    tensors = {_timm_name(name): tensor for name, tensor in vision.state_dict().items()}
    if "proj" not in tensors or vision.attn_pool is not None or vision.pool_type != "tok":
        raise ValueError("got a tower of open_clip without a class token; wanted CLIP's, pooled by its class token")
    projection = tensors.pop("proj")
    tensors["head.weight"] = projection.T.contiguous()
    tensors["head.bias"] = projection.new_zeros(projection.shape[1])
    tensors["cls_token"] = tensors["cls_token"].reshape(1, 1, -1)
    tensors["pos_embed"] = tensors["pos_embed"][None]
    block = vision.transformer.resblocks[0]
    width = projection.shape[0]
    config = TrunkConfig(
        width=width,
        depth=len(vision.transformer.resblocks),
        heads=block.attn.num_heads,
        mlp_ratio=_ratio(block.mlp.c_fc.out_features, width),
        activation=activation_of(block.mlp.gelu),
        norm_eps=block.ln_1.eps,
        pooling="class_token",
        pre_norm=not isinstance(vision.ln_pre, nn.Identity),
        output_dim=projection.shape[1],
    )
    if not config.pre_norm:  # in this case timm's patch embedding has a bias
        tensors["patch_embed.proj.bias"] = projection.new_zeros(width)
    _refuse_other_parts(config, vision.patch_size[0], vision.image_size[0], tensors)
    return config, int(vision.patch_size[0]), tensors


#: open_clip's names in CLIP's vision tower -> timm's, applied in this order.
_TIMM_NAMES = (
    (r"^class_embedding$", "cls_token"),
    (r"^positional_embedding$", "pos_embed"),
    (r"^conv1\.", "patch_embed.proj."),
    (r"^ln_pre\.", "norm_pre."),
    (r"^ln_post\.", "norm."),
    (r"^transformer\.resblocks\.", "blocks."),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)


def _timm_name(name: str) -> str:
    for pattern, replacement in _TIMM_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _refuse_other_parts(config: TrunkConfig, patch: int, size: int, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless a tower of this config has the same names and shapes of tensors."""
    with without_values():
        like = build_vision_tower(VisionConfig(trunk=config, patch_size=patch), size).state_dict()
    if not any(name.startswith("patch_embed.") for name in tensors):
        like = {name: tensor for name, tensor in like.items() if not name.startswith("patch_embed.")}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wrong := [name for name in sorted({*like} | {*shapes}) if name not in like or name not in shapes]:
        raise ValueError(f"the tower is not a plain vision transformer: {', '.join(wrong[:5])} have no place in one")
    if wrong := [name for name in sorted(like) if tuple(like[name].shape) != shapes[name]]:
        raise ValueError(f"the tower is not a plain vision transformer: {', '.join(wrong[:5])} are of another shape")


def _ratio(hidden: int, width: int) -> float:
    """Return the ratio that gives this hidden width in timm, which rounds down."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def _activation(name: Activation) -> Any:  # noqa: ANN401 - a class
    from timm.layers import get_act_layer

    return get_act_layer(name)


def activation_of(module: nn.Module) -> Activation:
    """Return the name of an activation of timm's, open_clip's or torch's."""
    if type(module).__name__ == "QuickGELU":
        return "quick_gelu"
    tanh = type(module).__name__ == "GELUTanh" or getattr(module, "approximate", "none") == "tanh"
    if not tanh and not isinstance(module, nn.GELU) and type(module).__name__ != "GELU":
        raise ValueError(f"got the activation {type(module).__name__}; known are gelu, gelu_tanh and quick_gelu")
    return "gelu_tanh" if tanh else "gelu"
