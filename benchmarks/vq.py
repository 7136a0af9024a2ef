"""LlamaGen's VQ-16 and VQ-8, and IBQ-262144, beside the official modules. The official IBQ modules import einops.

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
from pathlib import Path
from typing import Any

import torch
from toklip_vq.published import CONFIGS, ibq_config, llamagen_name, taming_name
from toklip_vq.vqgan import VQGAN, Codebook
from torch import Tensor, nn

from benchmarks._race import MIB, Options, Row, floor, noise, operation_count, peak_mib, race, vqgan


@torch.no_grad()
def rows(options: Options) -> Iterator[Row]:
    """Yield what memory and seconds they take."""
    yield from ibq_rows(options)  # first: memory that somebody else has given back would hide what they need
    yield from llamagen_rows(options)
    yield vq8_row(options)


def ibq_rows(options: Options) -> Iterator[Row]:
    """Encode one picture of 512 px, and search 262144 codes for it."""
    size, side = (4096, 128) if options.quick else (262144, 512)
    model = vqgan(ibq_config(size), options)
    encode: dict[str, Callable[[Tensor], Tensor]] = {"ours": copy.deepcopy(model).tokenizer().encode}
    if options.ibq:
        encode["official"] = official_ibq(options.ibq, model)
    peaks = {}
    for who, run in encode.items():
        run(torch.zeros(1, 3, 64, 64, device=options.device))
        pixels = noise(1, side, options)
        peaks[who] = peak_mib(lambda run=run, pixels=pixels: run(pixels), options)  # type: ignore[misc]
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
