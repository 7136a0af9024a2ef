"""What encoding costs besides the tokenizer: reading pictures, and the size and the reading of a store.

Times are CPU seconds of one core, so that what else the machine does changes little. Ids are random, which no
compression makes smaller: a store of real ids is at most as large. The peers are open_clip's preprocessing, and a file
.npy for each picture, as LlamaGen keeps its ids.
"""

from __future__ import annotations

import io
import math
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from open_clip import image_transform
from PIL import Image
from toklip_core.pictures import entries, find_pictures, open_picture, resized
from toklip_core.store import FeatureInfo, PartWriter, StoreInfo, TokenStore
from toklip_core.tokenizer import TokenizerRecord

from benchmarks._race import Figure, Options, Row, race

#: Tokenizer -> codebook size of each level, and side of the grid of a picture of 256 px.
STORES = {
    "VQ-16": ((2**14,), 16),
    "VQ-8": ((2**14,), 32),
    "IBQ-262144": ((2**18,), 16),
    "UniTok": ((2**12,) * 8, 16),
    "QLIP-B-16": ((2**28,), 16),
}
PHOTOGRAPH = Path(__file__).parents[1] / "docs" / "examples" / "photographs" / "astronaut.jpg"


def rows(options: Options) -> Iterator[Row]:
    """Yield what reading and storing take."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for side in (256, 512, 1024):
            yield reading_row(side, Path(folder, f"{side}.tar"), options)
        for name, (codebook_sizes, side) in STORES.items():
            yield from store_rows(name, codebook_sizes, side, Path(folder, name), options)
        yield from store_rows("VQ-16", (2**14,), 16, Path(folder, "teacher"), options, width=1152)


def reading_row(side: int, path: Path, options: Options) -> Row:
    """Read a tar of JPEG files whose short side is ``side``, to squares of 256."""
    count = 2 if options.quick else 100
    nbytes = write_tar(path, side, count)
    transform: Any = image_transform(256, is_train=False)

    def ours() -> None:
        for entry in entries(find_pictures([path])):
            resized(entry.image(), 256)

    def theirs() -> None:
        with tarfile.open(path) as file:
            for member in file:
                transform(Image.open(file.extractfile(member)))  # type: ignore[arg-type]

    seconds, _ = race({"ours": ours, "peer": theirs}, options.repeats, time.process_time)
    what = f"read JPEG {side * 4 // 3} x {side}, {nbytes / 1000:.0f} kB"
    each = {who: figure * (1000 / count) for who, figure in seconds.items()}
    note = f"{1000 / each['ours'].median:.0f} pictures a CPU second"
    return Row(what, "ms", each["ours"], each["peer"], "open_clip, to float32", note=note)


def write_tar(path: Path, side: int, count: int) -> int:
    """Write a tar of copies of a JPEG file whose short side is ``side``; return the bytes of one of them."""
    buffer = io.BytesIO()
    photograph = open_picture(PHOTOGRAPH).resize((side * 4 // 3, side), Image.Resampling.BICUBIC)
    photograph.save(buffer, "JPEG", quality=90)
    with tarfile.open(path, "w") as file:
        for number in range(count):
            member = tarfile.TarInfo(f"{number}.jpg")
            member.size = len(buffer.getvalue())
            file.addfile(member, io.BytesIO(buffer.getvalue()))
    return len(buffer.getvalue())


def store_rows(
    name: str, codebook_sizes: tuple[int, ...], side: int, path: Path, options: Options, width: int = 0
) -> Iterator[Row]:
    """Write a part of random ids, and of a teacher's features if it has a width; read it in order and at random."""
    count = 50 if options.quick else 10_000
    teacher = FeatureInfo(model="teacher", weights_checksum="", width=width) if width else None
    info = StoreInfo(
        tokenizer=TokenizerRecord(name=name.lower()),
        codebook_sizes=codebook_sizes,
        grid=(side, side),
        image_size=256,
        resize="crop",
        dtype="float32",
        teacher=teacher,
    )
    writer = PartWriter(path, info)
    keys = [f"{number // 1000:05d}.tar/{number:09d}.jpg" for number in range(count)]
    ids = torch.stack([torch.randint(0, size, (count, side, side)) for size in codebook_sizes], dim=-1)
    teachers = F.normalize(torch.randn(count, width), dim=-1)
    writer.add(keys, ids, [None] * count, {"teacher": teachers} if width else {})
    writer.flush()
    size = next(path.glob("part-*")).stat().st_size / count
    what = f"store of {name}, 256 px" + (f", with a teacher of width {width}" if width else "")
    kinds = {"ids": ids.flatten(1), "teacher": teachers} if width else {"ids": ids.flatten(1)}
    few = range(min(count, 1000))
    for kind, numbers in kinds.items():
        for row in few:
            np.save(path / f"{row}.{kind}.npy", numbers[row].numpy())
    theirs = sum((path / f"0.{kind}.npy").stat().st_size for kind in kinds)
    # What compression can make of the features' random numbers is not known.
    least = None if width else side**2 * sum(map(math.log2, codebook_sizes)) / 8
    yield Row(f"{what}, a picture", "bytes", Figure((size,)), Figure((theirs,)), ".npy, int64 and float32", least)

    store = TokenStore(path)
    some = [number * 997 * 11 % count for number in range(min(count, 100))]

    def load(row: int) -> list[torch.Tensor]:
        return [torch.from_numpy(np.load(path / f"{row}.{kind}.npy")) for kind in kinds]

    contestants: dict[str, Callable[[], Any]] = {
        "in order": lambda: [row.ids for row in store],
        ".npy": lambda: [load(row) for row in few],
        "at random": lambda: [store[number].ids for number in some],
    }
    seconds, _ = race(contestants, options.repeats, time.process_time)
    times = {"in order": count, ".npy": len(few), "at random": len(some)}
    each = {who: figure * (1000 / times[who]) for who, figure in seconds.items()}
    for order in ("in order", "at random"):
        yield Row(f"{what}, a row {order}", "ms", each[order], each[".npy"], ".npy")
