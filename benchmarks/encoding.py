"""Pictures per second of `toklip encode` with VQ-16 at 256 px, from a tar of JPEG files to a token store.

It is timed from the end of the first batch until the store is complete, so loading the weights is not in it. The peer
is the networks alone, in one pass over as many pictures as encode has at a time, which are on the device: the ratio
says what reading, storing, and taking pictures one by one cost. The share of the peak is the floor over our time.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from toklip_core.config import Compute, Dtype, default_workers
from toklip_core.store import EncodeSettings, encode_pictures
from toklip_core.weights import save_model_folder
from toklip_vq.autoencoder import AutoencoderTokenizer
from toklip_vq.published import CONFIGS
from torch import Tensor

from benchmarks._race import DTYPES, Figure, Options, Row, floor, noise, operation_count, race, vqgan
from benchmarks.tokens import write_tar


@torch.no_grad()
def rows(options: Options) -> Iterator[Row]:
    """Yield the milliseconds of a picture in both precisions."""
    side, batch = (32, 2) if options.quick else (256, 64 if options.on_gpu else 4)
    model = vqgan(CONFIGS["VQ-16"], options)
    with tempfile.TemporaryDirectory() as folder:
        save_model_folder(Path(folder, "vq"), model.config.model_dump(mode="json"), model)
        settings = EncodeSettings(tokenizer="vqgan", weights=Path(folder, "vq"), image_size=side, resize="crop")
        tar, workers = Path(folder, "pictures.tar"), 0 if options.quick else default_workers()
        write_tar(tar, 512, 3 * batch * max(workers, 1))  # three whole batches for each process that reads
        # On a GPU the precision of large encodes comes first, because it matters most.
        for dtype in reversed(DTYPES) if options.on_gpu else DTYPES:
            compute = Compute(device=options.device, dtype=cast(Dtype, dtype), batch_size=batch, workers=workers)
            tokenizer = copy.deepcopy(model).tokenizer().to(DTYPES[dtype])
            yield encoding_row(tokenizer, tar, settings, compute, options)


def encoding_row(
    tokenizer: AutoencoderTokenizer, tar: Path, settings: EncodeSettings, compute: Compute, options: Options
) -> Row:
    """Encode a tar, each time into a new store beside it, and a batch of pixels."""
    side, batch = settings.image_size, compute.batch_size
    assert side is not None
    pixels = noise(batch, side, options)
    each: list[float] = []

    def encode() -> None:
        ends: list[float] = []

        def ended() -> bool:
            ends.append(time.perf_counter())
            return False

        store = tar.with_name(f"{compute.dtype}-{len(each)}")
        report = encode_pictures([tar], store, settings, compute=compute, stop=ended)
        each.append((time.perf_counter() - ends[0]) / (report.pictures - batch))

    def at_once() -> Tensor:
        return tokenizer.quantizer.search(tokenizer.autoencoder.latents(pixels).movedim(1, -1))[0]

    operations = operation_count(at_once) / batch
    seconds, _ = race({"encode": encode, "at once": at_once}, options.repeats)
    ours, least = Figure(tuple(each[-options.repeats :])) * 1000, 1000 * floor(options, operations, compute.torch_dtype)
    return Row(
        what=f"VQ-16, toklip encode at {side} px, a picture, {compute.dtype}",
        unit="ms",
        ours=ours,
        peer=seconds["at once"] * (1000 / batch),
        peer_name=f"the networks alone, {batch} pictures at once",
        floor=least,
        note=f"{1000 / ours.median:.0f} pictures a second, {least / ours.median:.0%} of the peak; "
        f"{operations / 1e9:.0f} GFLOP a picture, {compute.workers} processes read",
    )
