"""How costs grow: with the side of a picture, the batch, the codebook, and the number of processes.

The encoder is of ViT-B's sizes (width 768, 12 blocks) over LlamaGen's VQ-16, in float32; its peer is timm's vision
transformer of the same sizes with the causal mask, on pixels. The peer of the search is the smallest of all distances,
by torch.cdist. Processes share the threads: one has all of them, two have half each. On a GPU they are left out.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import torch
import torch.distributed as dist
from toklip_core.model import EncoderConfig, SemanticEncoder, TrunkConfig, resized_encoder
from toklip_vq.published import CONFIGS
from toklip_vq.vqgan import Codebook
from torch import nn

from benchmarks._race import Figure, Options, Row, elsewhere, floor, noise, operation_count, race, vqgan, weight_bytes
from benchmarks.encoder import step_of, task_of, timm_contestants


def rows(options: Options) -> Iterator[Row]:
    """Yield what grows with what."""
    yield from search_rows(options)
    yield from tokenizer_rows(options)
    yield from encoder_rows(options)
    yield from step_rows(options)
    if not options.on_gpu:
        yield from process_rows(options)


def trunk(options: Options) -> TrunkConfig:
    """Return ViT-B's sizes."""
    return TrunkConfig(width=128, depth=1, heads=2) if options.quick else TrunkConfig(width=768, depth=12, heads=12)


@torch.no_grad()
def search_rows(options: Options) -> Iterator[Row]:
    """Search codebooks of K codes, 256 wide, for 1,024 latents."""
    latents = torch.randn(64 if options.quick else 1024, 256, device=options.device)
    for size in (2**10, 2**12) if options.quick else (2**10, 2**12, 2**14, 2**16, 2**18):
        book = Codebook(size, 256, "euclidean").to(options.device)

        def ours(book: Codebook = book) -> torch.Tensor:
            return book.nearest(latents)

        def theirs(book: Codebook = book) -> torch.Tensor:
            return torch.cdist(latents, book.weight).argmin(-1)

        seconds, _ = race({"ours": ours, "cdist": theirs}, 2 * options.repeats)
        ours_ms, cdist_ms = (seconds[who] * 1000 for who in ("ours", "cdist"))
        least = 1000 * floor(options, operation_count(ours))
        yield Row(f"search {size} codes for {len(latents)} latents", "ms", ours_ms, cdist_ms, "torch.cdist", least)


@torch.no_grad()
def tokenizer_rows(options: Options) -> Iterator[Row]:
    """Encode pictures of several sides, and several pictures, with VQ-16."""
    tokenizer = vqgan(CONFIGS["VQ-16"], options).tokenizer()
    sizes = [(1, 32), (1, 64)] if options.quick else [(1, 128), (1, 256), (1, 512), (2, 256), (4, 256)]
    for batch, side in sizes:
        pixels = noise(batch, side, options)

        def ours(pixels: torch.Tensor = pixels) -> torch.Tensor:
            return tokenizer.encode(pixels)

        seconds, _ = race({"": ours}, options.repeats)
        least = floor(options, operation_count(ours))
        yield Row(f"VQ-16, encode {batch} x {side} px", "s", seconds[""], floor=least)


@torch.no_grad()
def encoder_rows(options: Options) -> Iterator[Row]:
    """Encode codes of several grids, and of several pictures."""
    sizes = EncoderConfig(codebook_dim=8, grid=(16, 16), trunk=trunk(options))
    first = SemanticEncoder(sizes).eval().requires_grad_(False).to(options.device)
    grids = [(1, 2), (2, 2)] if options.quick else [(1, 16), (1, 24), (1, 32), (4, 16), (8, 16)]
    for batch, side in grids:
        encoder = resized_encoder(first, (side, side)).requires_grad_(False)
        codes = torch.randn(batch, side, side, 8, device=options.device)
        theirs = timm_contestants(sizes.trunk, noise(batch, 16 * side, options))["peer encoder, float32"]

        def ours(encoder: SemanticEncoder = encoder, codes: torch.Tensor = codes) -> Any:  # noqa: ANN401
            return encoder(codes)

        seconds, _ = race({"ours": ours, "timm": theirs}, options.repeats)
        least = floor(options, operation_count(ours), read=weight_bytes(encoder))
        yield Row(f"ViT-B encoder, {batch} x {side}^2 tokens", "s", seconds["ours"], seconds["timm"], "timm", least)


def step_rows(options: Options) -> Iterator[Row]:
    """Take a step with the cache for several pictures, which share the reading of the weights."""
    encoder = SemanticEncoder(EncoderConfig(codebook_dim=8, grid=(16, 16), trunk=trunk(options))).eval()
    encoder.requires_grad_(False).to(options.device)
    for batch in (1, 8, 64):
        codes = torch.randn(batch, 1, 8, device=options.device)
        _, cache = encoder.prefill(codes)

        def ours(codes: torch.Tensor = codes, cache: Any = cache) -> torch.Tensor:  # noqa: ANN401
            cache.length = 100
            return encoder.step(codes, cache)

        seconds, _ = race({"": ours}, 5 * options.repeats)
        weights = weight_bytes(encoder.projector, encoder.blocks, encoder.norm)
        kept = sum(x.nbytes for x in (*cache.keys, *cache.values)) * 100 / 256
        least = 1000 * floor(options, operation_count(ours), read=weights + kept)
        yield Row(f"ViT-B encoder, a step at position 100, batch {batch}", "ms", seconds[""] * 1000, floor=least)


def process_rows(options: Options) -> Iterator[Row]:
    """Encode 4 pictures, and train an encoder on 4, by one process and by two that share them."""
    side = 32 if options.quick else 256
    names = (f"VQ-16, encode 4 x {side} px", f"ViT-B encoder, forward and backward on 4 x {side} px from ids")
    turns = [(together(1, options), together(2, options)) for _ in range(options.repeats)]
    for number, name in enumerate(names):
        alone, shared = (Figure(tuple(turn[side][number] for turn in turns)) for side in (0, 1))
        yield Row(f"{name}, 2 processes", "s", shared, alone, "1 process, as many threads", wanted="1x")


def together(count: int, options: Options) -> list[float]:
    """Return the seconds that the slowest of some processes takes to encode, and to train, its share of 4 pictures."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with ThreadPoolExecutor(count) as pool:
        done = pool.map(lambda rank: list(elsewhere(share, rank, count, port, options)), range(count))
        return [max(seconds) for seconds in zip(*done, strict=True)]


def share(rank: int, count: int, port: int, options: Options) -> Iterator[float]:
    """Yield the seconds of encoding, then of a step, of one process of a group."""
    torch.set_num_threads(max(1, options.threads // count))
    torch.manual_seed(0)
    side = 32 if options.quick else 256
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=count)
    try:
        task = task_of(trunk(options), side, options)
        pixels = noise(4 // count, side, options)
        with torch.no_grad():
            ids = task.tokenizer.encode(pixels)
        batch = {"ids": ids, "teacher": torch.randn(len(ids), trunk(options).width)}
        model = cast(nn.Module, nn.parallel.DistributedDataParallel(task.model) if count > 1 else task.model)
        captions = ["a red circle on a blue ground", "two green stars"] * 2
        step = step_of(task, model, batch | {"captions": captions[: len(ids)]})
        for run in (lambda: task.tokenizer.encode(pixels), step):
            run()
            dist.barrier()
            seconds, _ = race({"": cast(Callable[[], Any], run)}, 1)
            yield seconds[""].median
    finally:
        dist.destroy_process_group()
