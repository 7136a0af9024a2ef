"""What encoding costs besides the tokenizer: reading pictures, and the size and the reading of a store.

    python benchmarks/tokens.py PHOTOGRAPH

Times are CPU seconds of one core, so that what else the machine does changes little. Ids are random, which no
compression makes smaller: a store of real ids is at most as large. The work of the published tokenizers is counted, not
timed: benchmarks/vq.py times it.
"""

from __future__ import annotations

import argparse
import io
import tarfile
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from toklip_core.data import entries, find_pictures, open_picture, resized
from toklip_core.parts import FeatureInfo, PartWriter, StoreInfo
from toklip_core.store import TokenStore
from toklip_vq.llamagen import CONFIGS
from toklip_vq.vqgan import VQGANTokenizer, build_vqgan
from torch.utils.flop_counter import FlopCounterMode

PICTURES = 100
ROWS = 10_000


def main() -> None:
    """Print the figures, one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photograph", type=Path)
    photograph = open_picture(parser.parse_args().photograph)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for side in (256, 512, 1024):
            reading(photograph, side, Path(folder, f"{side}.tar"))
        for name, codebook_size, side in (("VQ-16", 2**14, 16), ("VQ-8", 2**14, 32), ("IBQ-262144", 2**18, 16)):
            storing(name, codebook_size, side, Path(folder, name))
        storing("VQ-16", 2**14, 16, Path(folder, "teacher"), width=1152)
    for size in ("VQ-16", "VQ-8"):
        counting(size)


def reading(photograph: Image.Image, side: int, path: Path) -> None:
    """Read a tar of JPEG files whose short side is ``side``, to squares of 256."""
    buffer = io.BytesIO()
    photograph.resize((side * 4 // 3, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    with tarfile.open(path, "w") as file:
        for number in range(PICTURES):
            member = tarfile.TarInfo(f"{number}.jpg")
            member.size = len(buffer.getvalue())
            file.addfile(member, io.BytesIO(buffer.getvalue()))
    began = time.process_time()
    for entry in entries(find_pictures([path])):
        resized(entry.image(), 256)
    rate = PICTURES / (time.process_time() - began)
    print(
        f"read JPEG {side * 4 // 3} x {side}, {len(buffer.getvalue()) / 1000:.0f} kB: {rate:.0f} pictures a CPU second"
    )


def storing(name: str, codebook_size: int, side: int, path: Path, width: int = 0) -> None:
    """Write a part of random ids, and of a teacher's features if it has a width; read it in order and at random."""
    teacher = FeatureInfo(model="teacher", weights_checksum="", width=width) if width else None
    info = StoreInfo(
        tokenizer=name.lower(),
        weights_checksum="",
        codebook_size=codebook_size,
        downsample_factor=256 // side,
        image_size=256,
        resize="crop",
        dtype="float32",
        teacher=teacher,
    )
    writer = PartWriter(path, info)
    keys = [f"{number // 1000:05d}.tar/{number:09d}.jpg" for number in range(ROWS)]
    features = {"teacher": F.normalize(torch.randn(ROWS, width), dim=-1)} if width else {}
    writer.add(keys, torch.randint(0, codebook_size, (ROWS, side, side)), [None] * ROWS, features)
    writer.flush()
    size = next(path.glob("part-*")).stat().st_size / ROWS
    store = TokenStore(path)
    began = time.process_time()
    for _ in store:
        pass
    in_order = ROWS / (time.process_time() - began)
    began = time.process_time()
    for number in range(100):
        store[number * 997 * 11 % ROWS]
    at_random = (time.process_time() - began) * 10
    beside = f", a teacher of width {width}" if width else ""
    print(f"store {name} 256 px{beside}: {size:.0f} bytes a picture")
    print(f"    {in_order:.0f} rows a CPU second in order, {at_random:.1f} CPU milliseconds a row at random")


def counting(size: str) -> None:
    """Count the multiplications and additions of one picture."""
    tokenizer = VQGANTokenizer(build_vqgan(CONFIGS[size]))
    pixels = torch.zeros(1, 3, 256, 256)
    with FlopCounterMode(display=False) as encode:
        ids = tokenizer.encode(pixels)
    with FlopCounterMode(display=False) as decode:
        tokenizer.decode(ids)
    flops = [counter.get_total_flops() / 1e9 for counter in (encode, decode)]
    print(f"work {size} 256 px: encode {flops[0]:.0f} GFLOP, decode {flops[1]:.0f} GFLOP")


if __name__ == "__main__":
    main()
