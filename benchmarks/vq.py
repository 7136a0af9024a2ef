"""Speed and memory of LlamaGen VQ-16 and IBQ-262144, beside the official modules where a path to their code is given.

    python benchmarks/vq.py --llamagen PATH/LlamaGen --ibq PATH/SEED-Voken --json vq.json

Weights are random, of the published shapes, and the same on both sides; pictures are noise. The two sides take turns
in one process, and each figure is the smallest of the repeats. The floor is what the multiplications of ours would
take at the rate of a large matrix product measured in the same run. Memory is the peak of the resident set while one
picture is encoded, above its size when the weights are loaded and a picture of 64 x 64 has been encoded, in a process
of its own.
The official IBQ modules import einops.
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _race import PRODUCT, Row, machine_name, operation_count, product, race, table, write_json
from toklip_vq.ibq import ibq_config, taming_name
from toklip_vq.llamagen import CONFIGS, llamagen_name
from toklip_vq.vqgan import VQGAN, Codebook, VQGANTokenizer, build_vqgan
from torch import Tensor, nn

MIB = 2**20


def main() -> None:
    """Print the table; write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llamagen", type=Path, help="a checkout of FoundationVision/LlamaGen to compare with")
    parser.add_argument("--ibq", type=Path, help="a checkout of TencentARC/SEED-Voken to compare with")
    parser.add_argument("--json", type=Path, help="the file to write")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-of", choices=["ours", "official"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    if options.memory_of:
        print(encoding_peak(options.ibq if options.memory_of == "official" else None))
        return
    machine = machine_name(options.threads)
    print(machine)
    rows = [*llamagen_rows(options.llamagen, options.repeats), *ibq_rows(options.ibq, options.repeats, options.threads)]
    print(table(rows))
    if options.json:
        write_json(options.json, machine, rows)


def llamagen_rows(path: Path | None, repeats: int) -> list[Row]:
    """Encode and decode 4 pictures of 256 px with VQ-16."""
    vqgan = build_vqgan(CONFIGS["VQ-16"])
    official: Any = official_llamagen(path, vqgan) if path else None
    ours = VQGANTokenizer(vqgan)
    half = copy.deepcopy(ours).to(torch.bfloat16)
    pixels = torch.rand(4, 3, 256, 256) * 2 - 1
    ids = ours.encode(pixels)

    contestants: dict[str, Callable[[], Any]] = {
        "encode float32": lambda: ours.encode(pixels),
        "encode bfloat16": lambda: half.encode(pixels),
        "decode float32": lambda: ours.decode(ids),
        "decode bfloat16": lambda: half.decode(ids),
    }
    contestants |= {f"product {dtype}": product(dtype) for dtype in (torch.float32, torch.bfloat16)}
    if official:
        contestants["official encode"] = lambda: official.encode(pixels)[2][2]
        contestants["official decode"] = lambda: official.decode_code(ids.flatten(), (4, 8, 16, 16))
    seconds, results = race(contestants, repeats)
    changed = (results["encode bfloat16"] != ids).float().mean().item()
    notes = {"encode bfloat16": f"{changed:.1%} of the ids change"}
    if official:
        differ = (results["official encode"].view_as(ids) != ids).sum().item()
        notes["encode float32"] = f"{differ} of {ids.numel()} ids differ from the official ones"
    targets = {"encode float32": "1.2x", "encode bfloat16": "2.5x", "decode float32": "1x", "decode bfloat16": ""}
    operations = {name: operation_count(contestants[f"{name} float32"]) for name in ("encode", "decode")}
    return [
        Row(
            what=f"VQ-16, 4 x 256 px, {name}",
            unit="s",
            ours=seconds[name],
            official=seconds.get(f"official {name.split()[0]}"),
            floor=operations[name.split()[0]] / PRODUCT * seconds[f"product torch.{name.split()[1]}"],
            target=target,
            note=notes.get(name, ""),
        )
        for name, target in targets.items()
    ]


def ibq_rows(path: Path | None, repeats: int, threads: int) -> list[Row]:
    """Search 262144 codes for one picture of 512 px, and encode it."""
    book = Codebook(262144, 256, "dot")
    latents = torch.randn(1, 256, 32, 32)
    contestants: dict[str, Callable[[], Any]] = {
        "search": lambda: book.nearest(latents.movedim(1, -1)),
        "product": product(torch.float32),
    }
    if path:
        official = official_ibq_search(path, book)
        contestants["official search"] = lambda: official(latents)[2][2]
    seconds, results = race(contestants, min(repeats, 3))
    note = ""
    if path:
        note = f"{(results['search'].flatten() != results['official search']).sum().item()} of 1024 ids differ"
    operations = operation_count(contestants["search"])
    search = Row(
        "IBQ-262144, 512 px, search",
        "s",
        seconds["search"],
        seconds.get("official search"),
        operations / PRODUCT * seconds["product"],
        "1x",
        note,
    )
    measure = [sys.executable, __file__, "--threads", str(threads), *(["--ibq", str(path)] if path else [])]
    peaks = {
        side: float(subprocess.run([*measure, "--memory-of", side], check=True, capture_output=True, text=True).stdout)
        for side in ("ours", *(["official"] if path else []))
    }
    memory = Row(
        "IBQ-262144, 512 px, memory of encode", "MiB", peaks["ours"], peaks.get("official"), target="< 300 MiB"
    )
    return [search, memory]


def encoding_peak(path: Path | None) -> float:
    """Return the MiB by which encoding one picture of 512 px raises the resident set: ours, or the official code's."""
    vqgan = build_vqgan(ibq_config(262144))
    encode: Callable[[Tensor], Tensor]
    if path:
        encoder, search = official_ibq_encoder(path, vqgan), official_ibq_search(path, vqgan.codebook)
        quant_conv = vqgan.quant_conv

        def encode(pixels: Tensor) -> Tensor:
            return search(quant_conv(encoder(pixels)))[2][2]  # type: ignore[no-any-return]
    else:
        encode = VQGANTokenizer(vqgan).encode
    encode(torch.zeros(1, 3, 64, 64))
    pixels = torch.rand(1, 3, 512, 512) * 2 - 1
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = resident("VmRSS")
    encode(pixels)
    return (resident("VmHWM") - before) / MIB


def resident(field: str) -> int:
    """Return a field of the kernel's account of this process, in bytes."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(field))


def official_llamagen(path: Path, vqgan: VQGAN) -> nn.Module:
    """Return LlamaGen's own VQ-16 with our weights."""
    sys.path.insert(0, str(path))
    from tokenizer.tokenizer_image.vq_model import VQ_models  # type: ignore[import-not-found]

    official: nn.Module = VQ_models["VQ-16"](codebook_size=16384, codebook_embed_dim=8)
    state = {llamagen_name(name): tensor for name, tensor in vqgan.state_dict().items()}
    state["quantize.codebook_used"] = official.state_dict()["quantize.codebook_used"]
    official.load_state_dict(state)
    return official.eval()


def official_ibq_search(path: Path, book: Codebook) -> Callable[[Tensor], Any]:
    """Return IBQ's own quantizer with our codebook: it returns codes, losses, and (None, None, ids)."""
    sys.path.insert(0, str(path))
    from src.IBQ.modules.vqvae.quantize import IndexPropagationQuantize  # type: ignore[import-not-found]

    with torch.device("meta"):
        quantizer: nn.Module = IndexPropagationQuantize(*book.weight.shape)
    quantizer.load_state_dict({"embedding.weight": book.weight}, assign=True)
    return quantizer.eval()


def official_ibq_encoder(path: Path, vqgan: VQGAN) -> nn.Module:
    """Return IBQ's own encoder with our weights."""
    sys.path.insert(0, str(path))
    from src.IBQ.modules.diffusionmodules.model import Encoder  # type: ignore[import-not-found]

    official: nn.Module = Encoder(
        ch=128, out_ch=3, ch_mult=(1, 1, 2, 2, 4), num_res_blocks=4, attn_resolutions=[16], in_channels=3,
        resolution=256, z_channels=256, double_z=False,
    )  # fmt: skip
    state = {taming_name(f"encoder.{name}"): tensor for name, tensor in vqgan.encoder.state_dict().items()}
    official.load_state_dict({name.removeprefix("encoder."): tensor for name, tensor in state.items()})
    return official.eval()


if __name__ == "__main__":
    main()
