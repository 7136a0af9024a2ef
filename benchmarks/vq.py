"""LlamaGen's VQ-16 and VQ-8, IBQ-262144, Open-MAGVIT2, QLIP and UniTok, beside the official modules.

Those of IBQ, Open-MAGVIT2 and QLIP import einops, and those of UniTok pytz and typed-argument-parser.

Memory is the peak of the resident set while one picture is encoded, above its size when the weights are loaded and a
picture of 64 x 64 has been encoded.
"""

from __future__ import annotations

import contextlib
import copy
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from timm.data.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from toklip_vq.autoencoder import AutoencoderTokenizer
from toklip_vq.published import (
    CONFIGS,
    OPEN_MAGVIT2_CONFIGS,
    QLIP,
    OpenMAGVIT2,
    QLIPSizes,
    TrunkSizes,
    UniTok,
    UniTokConfig,
    ibq_config,
    llamagen_name,
    load_unitok,
    open_magvit2_name,
    qlip_name,
    taming_name,
    unitok_name,
)
from toklip_vq.vqgan import VQGAN, Codebook
from torch import Tensor, nn

from benchmarks._race import MIB, Figure, Options, Row, floor, noise, only_from, operation_count, peak_mib, race, vqgan

#: Whether sizes are tiny -> codebook size of IBQ, and side of the picture in pixels.
IBQ_SIZES = {False: (262144, 512), True: (4096, 128)}


@torch.no_grad()
def rows(options: Options) -> Iterator[Row]:
    """Yield the memory and the seconds of each tokenizer, beside those of its official code."""
    yield from ibq_rows(options)
    yield from llamagen_rows(options)
    yield vq8_row(options)
    yield from open_magvit2_rows(options)
    yield from qlip_rows(options)
    yield from unitok_rows(options)


def ibq_rows(options: Options) -> Iterator[Row]:
    """Encode one picture of 512 px, and search 262144 codes for it."""
    size, side = IBQ_SIZES[options.quick]
    model = vqgan(ibq_config(size), options)
    sides = ["ours", *(["official"] if options.ibq else [])]
    # Memory that somebody else has given back would hide what they need.
    turns = [{who: only_from(ibq_memory, who, options) for who in sides} for _ in range(options.repeats)]
    peaks = {who: Figure(tuple(turn[who] for turn in turns)) for who in sides}
    name = f"IBQ-{size}, one picture of {side} px"
    # A convolution at full resolution reads a map of its channels, and writes another.
    least = 2 * model.encoder.conv_in.out_channels * side**2 * 4 / MIB
    yield Row(f"{name}, memory of encode", "MiB", peaks["ours"], peaks.get("official"), "IBQ", least, "< 300 MiB")

    book = model.codebook
    latents = torch.randn(1, 256, side // 16, side // 16, device=options.device)
    contestants: dict[str, Callable[[], Any]] = {"ours": lambda: book.nearest(latents.movedim(1, -1))}
    if options.ibq:
        official = official_ibq_search(options.ibq, book)
        contestants["official"] = lambda: official(latents)[2][2]
    seconds, ids = race(contestants, options.repeats)
    differ = (ids["ours"].flatten() != ids["official"]).sum().item() if options.ibq else 0
    yield Row(
        what=f"{name}, search",
        unit="s",
        ours=seconds["ours"],
        peer=seconds.get("official"),
        peer_name="IBQ",
        floor=floor(options, operation_count(contestants["ours"])),
        wanted="1x",
        note=f"{differ} of {ids['ours'].numel()} ids differ" if options.ibq else "",
    )


@torch.no_grad()
def ibq_memory(who: str, options: Options) -> Iterator[float]:
    """Yield the MiB that one side takes to encode a picture."""
    torch.set_num_threads(options.threads)
    size, side = IBQ_SIZES[options.quick]
    model = vqgan(ibq_config(size), options)
    run = official_ibq(options.ibq, model) if options.ibq and who == "official" else model.tokenizer().encode
    run(torch.zeros(1, 3, 64, 64, device=options.device))
    pixels = noise(1, side, options)
    yield peak_mib(lambda: run(pixels), options)


def llamagen_rows(options: Options) -> Iterator[Row]:
    """Encode and decode 4 pictures of 256 px with VQ-16."""
    batch, side = (1, 64) if options.quick else (4, 256)
    model = vqgan(CONFIGS["VQ-16"], options)
    ours = copy.deepcopy(model).tokenizer()
    half = copy.deepcopy(ours).to(torch.bfloat16)
    pixels = noise(batch, side, options)
    ids = ours.encode(pixels)
    contestants: dict[str, Callable[[], Any]] = {
        "encode, float32": lambda: ours.encode(pixels),
        "encode, bfloat16": lambda: half.encode(pixels),
        "decode, float32": lambda: ours.decode(ids),
        "decode, bfloat16": lambda: half.decode(ids),
    }
    operations = {name: operation_count(contestants[f"{name}, float32"]) for name in ("encode", "decode")}
    if options.llamagen:
        official: Any = official_llamagen(options.llamagen, model)
        contestants["official encode"] = lambda: official.encode(pixels)[2][2]
        contestants["official decode"] = lambda: official.decode_code(ids.flatten(), (batch, 8, *ids.shape[1:3]))
    seconds, results = race(contestants, options.repeats)
    changed = (results["encode, bfloat16"] != ids).float().mean().item()
    notes = {"encode, bfloat16": f"{changed:.1%} of the ids change"}
    if options.llamagen:
        differ = (results["official encode"].view_as(ids) != ids).sum().item()
        notes["encode, float32"] = f"{differ} of {ids.numel()} ids differ from the official ones"
    wanted = {"encode, float32": "1.2x", "encode, bfloat16": "2.5x", "decode, float32": "1x"}
    for name in list(contestants)[:4]:
        what, dtype = name.split(", ")
        yield Row(
            what=f"VQ-16, {batch} x {side} px, {name}",
            unit="s",
            ours=seconds[name],
            peer=seconds.get(f"official {what}"),
            peer_name="LlamaGen, float32",
            floor=floor(options, operations[what], getattr(torch, dtype)),
            wanted=wanted.get(name, ""),
            note=f"{operations[what] / batch / 1e9:.0f} GFLOP a picture; {notes.get(name, '')}".rstrip("; "),
        )


def vq8_row(options: Options) -> Row:
    """Encode one picture of 256 px with VQ-8."""
    tokenizer = vqgan(CONFIGS["VQ-8"], options).tokenizer()
    pixels = noise(1, 64 if options.quick else 256, options)
    seconds, _ = race({"ours": lambda: tokenizer.encode(pixels)}, options.repeats)
    operations = operation_count(lambda: tokenizer.encode(pixels))
    what = f"VQ-8, 1 x {pixels.shape[-1]} px, encode, float32"
    note = f"{operations / 1e9:.0f} GFLOP a picture"
    return Row(what, "s", seconds["ours"], floor=floor(options, operations), note=note)


def open_magvit2_rows(options: Options) -> Iterator[Row]:
    """Encode and decode 2 pictures of 256 px with Open-MAGVIT2's tokenizer of 18 bits."""
    batch, side = (1, 64) if options.quick else (2, 256)
    ours = OpenMAGVIT2(OPEN_MAGVIT2_CONFIGS["256"]).to(options.device).tokenizer()
    pixels = noise(batch, side, options)
    ids = ours.encode(pixels)
    contestants: dict[str, Callable[[], Any]] = {
        "encode": lambda: ours.encode(pixels),
        "decode": lambda: ours.decode(ids),
    }
    operations = {what: operation_count(run) for what, run in contestants.items()}
    if options.ibq:
        encode, decode = official_open_magvit2(options.ibq, ours)
        codes = ours.embedding(ids).movedim(-1, 1).contiguous()
        contestants["official encode"] = lambda: encode(pixels)
        contestants["official decode"] = lambda: decode(codes)
    seconds, results = race(contestants, options.repeats)
    notes = {}
    if options.ibq:
        differ = (results["official encode"].view_as(ids) != ids).sum().item()
        notes["encode"] = f"; {differ} of {ids.numel()} ids differ from the official ones"
        apart = (results["decode"] - results["official decode"]).abs().max().item()
        notes["decode"] = f"; pictures differ by {apart:.0e} at most"
    for what, wanted in (("encode", "1.1x"), ("decode", "1x")):
        yield Row(
            what=f"Open-MAGVIT2, {batch} x {side} px, {what}, float32",
            unit="s",
            ours=seconds[what],
            peer=seconds.get(f"official {what}"),
            peer_name="Open-MAGVIT2",
            floor=floor(options, operations[what]),
            wanted=wanted,
            note=f"{operations[what] / batch / 1e9:.0f} GFLOP a picture{notes.get(what, '')}",
        )


def official_open_magvit2(
    path: Path, tokenizer: AutoencoderTokenizer
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Return Open-MAGVIT2's own ways from pixels to ids and from codes to pixels, with our weights."""
    sys.path.insert(0, str(path))
    from src.Open_MAGVIT2.modules.diffusionmodules import improved_model  # type: ignore[import-not-found]
    from src.Open_MAGVIT2.modules.vqvae.lookup_free_quantize import LFQ  # type: ignore[import-not-found]

    config = OPEN_MAGVIT2_CONFIGS["256"]
    sizes = {
        "ch": config.channels, "out_ch": 3, "ch_mult": config.channel_multipliers, "in_channels": 3, "resolution": 128,
        "num_res_blocks": config.blocks_per_resolution, "z_channels": config.bits, "double_z": False,
    }  # fmt: skip
    state = {open_magvit2_name(name, 5): tensor for name, tensor in tokenizer.autoencoder.state_dict().items()}
    device = tokenizer.autoencoder.encoder.conv_in.weight.device  # type: ignore[attr-defined]
    towers: dict[str, nn.Module] = {}
    for name, kind in (("encoder", improved_model.Encoder), ("decoder", improved_model.Decoder)):
        own = {key.removeprefix(f"{name}."): tensor for key, tensor in state.items() if key.startswith(f"{name}.")}
        # Copied into a fresh module, its weights are laid out as the official ones are.
        towers[name] = kind(**sizes)
        towers[name].load_state_dict(own)
        towers[name].to(device).eval()
    quantizer = LFQ(dim=config.bits, codebook_size=2**config.bits).to(device).eval()
    return lambda pixels: quantizer(towers["encoder"](pixels))[2], towers["decoder"]


def qlip_rows(options: Options) -> Iterator[Row]:
    """Encode and decode 4 pictures of 256 px with QLIP-B-16-256, and one with QLIP-B-8-256."""
    for patch, batch in ((16, 4), (8, 1)):
        side, depth = (64, 1) if options.quick else (256, 12)
        trunk = TrunkSizes(width=768, depth=depth, heads=12, hidden=2048)
        sizes = QLIPSizes(patch_size=patch, grid=side // patch, bits=28, encoder=trunk, decoder=trunk)
        tokenizer = QLIP(sizes).to(options.device).tokenizer()
        pixels = noise(batch, side, options)
        ids = tokenizer.encode(pixels)
        contestants: dict[str, Callable[[], Any]] = {
            "encode": lambda tokenizer=tokenizer, pixels=pixels: tokenizer.encode(pixels),  # type: ignore[misc]
            "decode": lambda tokenizer=tokenizer, ids=ids: tokenizer.decode(ids),  # type: ignore[misc]
        }
        operations = {what: operation_count(run) for what, run in contestants.items()}
        if options.qlip:
            contestants |= official_qlip(options.qlip, tokenizer, pixels, ids)
        seconds, results = race(contestants, options.repeats)
        notes = {}
        if options.qlip:
            bits = tokenizer.embedding(ids).flatten(1, 2) > 0
            differ = ((results["official encode"] > 0) != bits).sum().item()
            notes["encode"] = f"{differ} of {bits.numel()} bits differ from the official ones"
            apart = (clip_normalised(results["decode"]) - results["official decode"]).abs().max().item()
            notes["decode"] = f"pictures differ by {apart:.0e} at most"
        for what, wanted in (("encode", "1.1x"), ("decode", "1x")):
            yield Row(
                what=f"QLIP-B-{patch}-256, {batch} x {side} px, {what}, float32",
                unit="s",
                ours=seconds[what],
                peer=seconds.get(f"official {what}"),
                peer_name="QLIP",
                floor=floor(options, operations[what]),
                wanted=wanted,
                note=notes.get(what, ""),
            )


def official_qlip(
    path: Path, tokenizer: AutoencoderTokenizer, pixels: Tensor, ids: Tensor
) -> dict[str, Callable[[], Any]]:
    """Return QLIP's own ways from pixels to quantized latents, and from codes to pictures in CLIP's units.

    Its code is for transformers 4.37. Two modules that it imports, for masks of texts and for ONNX, are gone since.
    """
    masks = {"_create_4d_causal_attention_mask": None, "_prepare_4d_attention_mask": None}
    for name, imported in {"modeling_attn_mask_utils": masks, "onnx": {"OnnxConfig": object}}.items():
        sys.modules[f"transformers.{name}"] = SimpleNamespace(**imported)  # type: ignore[assignment]
    sys.path.insert(0, str(path / "QLIP"))
    import configuration_qlip  # type: ignore[import-not-found]
    import modeling_qlip  # type: ignore[import-not-found]

    model: Any = tokenizer.autoencoder
    sizes, trunk = model.sizes, model.sizes.encoder
    tower = {
        "image_size": sizes.image_size, "patch_size": sizes.patch_size, "hidden_size": trunk.width,
        "num_hidden_layers": trunk.depth, "num_attention_heads": trunk.heads, "intermediate_size": trunk.hidden,
        "layer_norm_eps": 1e-6, "k_bias": False, "rope": True, "subln": True, "swiglu": True,
    }  # fmt: skip
    quantizer = {"embed_dim": 28, "group_size": 1, "input_format": "blc", "inv_temperature": 1.0, "l2_norm": True}
    settings = configuration_qlip.QLIPVisionConfig(
        **tower, quantizer="bsq", quantizer_l2_norm=True, quantizer_embed_type="mlp", quantizer_cfg=quantizer
    )
    encoder = modeling_qlip.QLIPVisionTransformer(settings)
    decoder = modeling_qlip.QLIPVisionTransformerDecoder(configuration_qlip.QLIPDecoderConfig(**tower))
    state = {qlip_name(name): tensor for name, tensor in model.state_dict().items()}
    for module, prefix in ((encoder, "vision_model."), (decoder, "vision_decoder.")):
        own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        left = [name for name in module.load_state_dict(own, strict=False).missing_keys if "rope" not in name]
        assert all(name.startswith("post_layernorm.") for name in left), left
        module.to(pixels.device).eval()
    quantized: list[Tensor] = []
    encoder.quantizer.register_forward_hook(lambda module, inputs, outputs: quantized.append(outputs[0]))
    fed, codes = clip_normalised(pixels), tokenizer.embedding(ids).flatten(1, 2)

    def encode() -> Tensor:
        encoder(fed)
        return quantized.pop()

    return {"official encode": encode, "official decode": lambda: decoder(encoder.quant_embed_post(codes))}


def clip_normalised(pixels: Tensor) -> Tensor:
    """Return pixels in [-1, 1] as QLIP's network reads and writes them."""
    mean, std = (pixels.new_tensor(values)[:, None, None] for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (pixels / 2 + 0.5 - mean) / std


def unitok_rows(options: Options) -> Iterator[Row]:
    """Encode and decode one picture, and four of them."""
    side = 64 if options.quick else 256
    config = UniTokConfig(depth=2) if options.quick and not options.unitok else UniTokConfig()
    with torch.device("meta"):
        shapes = {unitok_name(name): tensor.shape for name, tensor in UniTok(config).state_dict().items()}
    weights = {name: random_weight(name, shape, options) for name, shape in shapes.items()}
    ours = load_unitok(weights, config).to(options.device)
    official: Any = official_unitok(options.unitok, weights) if options.unitok else None
    for batch in (1, 4):
        pixels = noise(batch, side, options)
        ids = ours.encode(pixels)
        row = ids.flatten(1, 2).transpose(1, 2).contiguous()
        contestants: dict[str, Callable[[], Any]] = {
            "encode": partial(ours.encode, pixels),
            "decode": partial(ours.decode, ids),
        }
        operations = {name: operation_count(run) for name, run in contestants.items()}
        if official:
            contestants["official encode"] = partial(official.img_to_idx, pixels)
            contestants["official decode"] = partial(official.idx_to_img, row)
        seconds, results = race(contestants, options.repeats)
        differ = (results["official encode"] != row).sum().item() if official else 0
        for name, wanted in {"encode": "1.1x", "decode": "1x"}.items():
            yield Row(
                what=f"UniTok, {batch} x {side} px, {name}, float32",
                unit="s",
                ours=seconds[name],
                peer=seconds.get(f"official {name}"),
                peer_name="UniTok",
                floor=floor(options, operations[name]),
                wanted=wanted,
                note=f"{differ} of {ids.numel()} ids differ" if official and name == "encode" else "",
            )


def random_weight(name: str, shape: torch.Size, options: Options) -> Tensor:
    """Return a matrix that keeps the size of what it multiplies, a scale of 1 or a bias of 0."""
    if len(shape) > 1:
        return torch.randn(shape, device=options.device) / shape[1:].numel() ** 0.5
    return torch.full(shape, float(not name.endswith("bias")), device=options.device)


def official_unitok(path: Path, weights: dict[str, Tensor]) -> nn.Module:
    """Return UniTok's own model without its text tower.

    It was written for timm 1.0.8, whose transformer passes fewer arguments to its parts.
    """
    sys.path.insert(0, str(path))
    from models import unitok, vitamin  # type: ignore[import-not-found]
    from utils.config import Args  # type: ignore[import-not-found]

    mlp, embed = vitamin.GeGluMlp, vitamin.HybridEmbed
    unitok.GeGluMlp = vitamin.GeGluMlp = lambda in_features, hidden_features, **_: mlp(in_features, hidden_features)
    vitamin.HybridEmbed = lambda device=None, dtype=None, **known: embed(**known)
    settings = Args()
    settings.grad_ckpt = False
    with torch.device("meta"):
        official: nn.Module = unitok.UniTok(settings)
    del official.text_encoder
    device = next(iter(weights.values())).device
    shapes = {name: tensor.shape for name, tensor in official.state_dict().items()}
    missing = {name: torch.zeros(shape, device=device) for name, shape in shapes.items() if name not in weights}
    official.load_state_dict(missing | weights, assign=True)
    return official.eval()


def official_llamagen(path: Path, model: VQGAN) -> nn.Module:
    """Return LlamaGen's own VQ-16 with our weights."""
    sys.path.insert(0, str(path))
    from tokenizer.tokenizer_image.vq_model import VQ_models  # type: ignore[import-not-found]

    official: nn.Module = VQ_models["VQ-16"](codebook_size=16384, codebook_embed_dim=8)
    state = {llamagen_name(name): tensor for name, tensor in model.state_dict().items()}
    state["quantize.codebook_used"] = official.state_dict()["quantize.codebook_used"]
    official.load_state_dict(state)
    return official.to(model.quant_conv.weight.device).eval()


@contextlib.contextmanager
def tokenizer_in_place(model: VQGAN) -> Iterator[None]:
    """Be, in silence, in a folder where the official TokLIP finds its tokenizer: else its constructors download it."""
    state = {llamagen_name(name): tensor for name, tensor in model.state_dict().items()}
    state["quantize.codebook_used"] = torch.zeros(65536)
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
        Path(os.devnull).open("w") as silence,
        contextlib.redirect_stdout(silence),
    ):
        file = Path("tokenizer", "pretrained_models", "vq_ds16_t2i.pt")
        file.parent.mkdir(parents=True)
        torch.save({"model": state}, file)
        del model, state  # the caller may measure memory
        yield


def official_ibq(path: Path, model: VQGAN) -> Callable[[Tensor], Tensor]:
    """Return IBQ's own way from pixels to ids, with our weights."""
    sys.path.insert(0, str(path))
    from src.IBQ.modules.diffusionmodules.model import Encoder  # type: ignore[import-not-found]

    encoder: nn.Module = Encoder(
        ch=128, out_ch=3, ch_mult=(1, 1, 2, 2, 4), num_res_blocks=4, attn_resolutions=[16], in_channels=3,
        resolution=256, z_channels=256, double_z=False,
    )  # fmt: skip
    state = {taming_name(f"encoder.{name}"): tensor for name, tensor in model.encoder.state_dict().items()}
    encoder.load_state_dict({name.removeprefix("encoder."): tensor for name, tensor in state.items()})
    encoder.to(model.quant_conv.weight.device).eval()
    search = official_ibq_search(path, model.codebook)
    return lambda pixels: search(model.quant_conv(encoder(pixels)))[2][2]


def official_ibq_search(path: Path, book: Codebook) -> Callable[[Tensor], Any]:
    """Return IBQ's own quantizer with our codebook: it returns codes, losses, and (None, None, ids)."""
    sys.path.insert(0, str(path))
    from src.IBQ.modules.vqvae.quantize import IndexPropagationQuantize  # type: ignore[import-not-found]

    with torch.device("meta"):
        quantizer: nn.Module = IndexPropagationQuantize(*book.weight.shape)
    quantizer.load_state_dict({"embedding.weight": book.weight}, assign=True)
    return quantizer.eval()
