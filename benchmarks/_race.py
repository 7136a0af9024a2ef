"""Options, turns, figures, floors and rows: what the benchmarks of this folder share.

Each benchmark is a function ``rows(options)`` that yields rows as it measures them; `python -m benchmarks` prints them.
"""

from __future__ import annotations

import importlib
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from toklip_core.model import TokLIPConfig, model_spec
from toklip_vq.vqgan import VQGAN, VQGANConfig
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

MIB = 2**20
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
HEADER = "| what | unit | ours | peer | | peer / ours | floor | ours / floor | wanted | |\n" + 10 * "|---" + "|"


@dataclass(frozen=True)
class Options:
    """What is measured, and beside what."""

    #: Checkouts of the official code.
    toklip: Path | None = None
    llamagen: Path | None = None
    ibq: Path | None = None
    qlip: Path | None = None
    unitok: Path | None = None
    device: str = "cpu"
    threads: int = 2
    #: Turns of each contestant that count.
    repeats: int = 5
    #: Tiny sizes: to see that a benchmark runs, not for figures.
    quick: bool = False

    @property
    def on_gpu(self) -> bool:
        """Whether the device is another than the processor."""
        return self.device != "cpu"


@dataclass(frozen=True)
class Figure:
    """Repeats of one measurement, in turn with those of the figures that it is compared with."""

    repeats: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median of the repeats."""
        return statistics.median(self.repeats)

    @property
    def spread(self) -> tuple[float, float]:
        """Smallest and largest repeat."""
        return min(self.repeats), max(self.repeats)

    def ratio(self, other: Figure) -> float:
        """Return the median over the median of another figure."""
        return self.median / other.median

    def ratio_spread(self, other: Figure) -> tuple[float, float]:
        """Return the smallest and the largest ratio of two repeats of the same turn."""
        ratios = [mine / its for mine, its in zip(self.repeats, other.repeats, strict=True)]
        return min(ratios), max(ratios)

    def times(self, other: Figure) -> str:
        """Return how many times as fast it is as another figure, with the spread of turns."""
        return _spread(other.ratio(self), *other.ratio_spread(self))

    def __add__(self, other: Figure) -> Figure:
        """Add repeats of the same turn."""
        return Figure(tuple(mine + its for mine, its in zip(self.repeats, other.repeats, strict=True)))

    def __mul__(self, factor: float) -> Figure:
        """Multiply each repeat, as to change the unit."""
        return Figure(tuple(mine * factor for mine in self.repeats))


@dataclass(frozen=True)
class Row:
    """One line of the table, which has a peer or a floor or both."""

    what: str
    #: s, ms, MiB or bytes; of all of them less is better.
    unit: str
    ours: Figure
    #: The same of somebody else, in turn with ours.
    peer: Figure | None = None
    peer_name: str = ""
    #: What it cannot go below: operations over the measured rate of a large product, bytes over that of memory.
    floor: float | None = None
    #: What was aimed at.
    wanted: str = ""
    note: str = ""

    def line(self) -> str:
        """Return it as a line of a Markdown table; :data:`HEADER` comes before the first."""
        ratio = "" if self.peer is None else self.ours.times(self.peer)
        above = "" if self.floor is None else f"{self.ours.median / self.floor:.2f}"
        cells = (
            self.what, self.unit, _cell(self.ours), _cell(self.peer), self.peer_name if ratio else "", ratio,
            "" if self.floor is None else _number(self.floor), above, self.wanted, self.note,
        )  # fmt: skip
        return f"| {' | '.join(cells)} |"


def _cell(figure: Figure | None) -> str:
    return "" if figure is None else _spread(figure.median, *figure.spread)


def _spread(middle: float, low: float, high: float) -> str:
    """Return the median with the spread, which is left out where all repeats are equal."""
    return _number(middle) if low == high else f"{_number(middle)} ({_number(low)} to {_number(high)})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def race(
    contestants: dict[str, Callable[[], Any]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> tuple[dict[str, Figure], dict[str, Any]]:
    """Let everybody run in turn; return the seconds and the last result of each.

    One turn before those that count loads what the first call loads, and compiles; a single repeat goes without.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    results: dict[str, Any] = {}
    unmeasured = int(repeats > 1)
    for _ in range(unmeasured + repeats):
        for name, run in contestants.items():
            start = clock()
            results[name] = run()
            if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                torch.cuda.synchronize()
            seconds[name].append(clock() - start)
    return {name: Figure(tuple(turns[unmeasured:])) for name, turns in seconds.items()}, results


def operation_count(run: Callable[[], Any]) -> float:
    """Return the floating-point operations of the convolutions and products of a call."""
    with FlopCounterMode(display=False, custom_mapping={torch.ops.mkldnn._linear_pointwise: _linear_count}) as counter:
        run()
    return float(counter.get_total_flops())


def _linear_count(x: torch.Size, weight: torch.Size, *_: object, **__: object) -> int:
    """Return the operations of a linear layer by oneDNN, which torch does not count."""
    return 2 * x.numel() * weight[0]


def floor(options: Options, operations: float, dtype: torch.dtype = torch.float32, *, read: float = 0) -> float:
    """Return the seconds that operations take at least, or reading so many bytes, whichever is longer."""
    return max(operations / product_rate(options, dtype), read / memory_rate(options))


@cache
def product_rate(options: Options, dtype: torch.dtype) -> float:
    """Return the operations a second of a large matrix product."""
    side = 256 if options.quick else 8192 if options.on_gpu else 3072
    a, b = torch.randn(2, side, side, dtype=dtype, device=options.device)
    seconds, _ = race({"product": lambda: a @ b}, 3 + options.repeats)
    return 2 * side**3 / min(seconds["product"].repeats)


@cache
def memory_rate(options: Options) -> float:
    """Return the bytes a second of summing a gigabyte."""
    numbers = torch.ones(2**20 if options.quick else 2**28, device=options.device)
    seconds, _ = race({"sum": lambda: numbers.sum()}, 3 + 2 * options.repeats)
    return numbers.nbytes / min(seconds["sum"].repeats)


def weight_bytes(*modules: nn.Module) -> int:
    """Return the bytes of the parameters of modules."""
    return sum(x.nbytes for module in modules for x in module.parameters())


def resident(field: str) -> int:
    """Return a field of the kernel's account of this process, in bytes."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(field))


def peak_mib(run: Callable[[], Any], options: Options) -> float:
    """Return the MiB by which a call raises the resident set for a time, on a GPU what is allocated there."""
    if options.on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return float(torch.cuda.max_memory_allocated() - before) / MIB
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = resident("VmRSS")
    run()
    return (resident("VmHWM") - before) / MIB


def elsewhere(function: Callable[..., Iterator[Any]], *arguments: object) -> Iterator[Any]:
    """Yield what a generator function yields in a fresh process; RuntimeError if that ends badly.

    Official repositories have modules of the same names, and memory is counted from a known start.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(there, function, arguments))
    process.start()
    there.close()
    try:
        while True:
            yield here.recv()
    except EOFError:
        process.join()
    if process.exitcode:
        raise RuntimeError(f"{function.__module__}.{function.__name__} ended with {process.exitcode}")


def only_from(function: Callable[..., Iterator[Any]], *arguments: object) -> Any:  # noqa: ANN401 - what it yields
    """Return the one item that a generator function yields in a fresh process; see :func:`elsewhere`."""
    (item,) = elsewhere(function, *arguments)
    return item


def _send(there: Connection[Any, Any], function: Callable[..., Iterator[Any]], arguments: tuple[object, ...]) -> None:
    for item in function(*arguments):
        there.send(item)


def measured(name: str, options: Options) -> Iterator[Row]:
    """Yield the rows of a benchmark."""
    prepare(options)
    yield from importlib.import_module(f"benchmarks.{name}").rows(options)


def prepare(options: Options) -> None:
    """Set up a fresh process for measurements."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    # Rows in float32 are not rounded to TF32, which torch allows in convolutions; their floors are not, either.
    torch.backends.cudnn.allow_tf32 = False


def machine_name(options: Options) -> str:
    """Return what the figures hold for: processor, threads, torch and system."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    if options.on_gpu:
        name = f"{torch.cuda.get_device_name()} beside {name}"
    return f"{name}, {options.threads} threads, torch {torch.__version__}, {platform.platform()}"


def noise(batch: int, side: int, options: Options) -> Tensor:
    """Return pixels (batch, 3, side, side)."""
    return torch.rand(batch, 3, side, side, device=options.device) * 2 - 1


def vqgan(config: VQGANConfig, options: Options) -> VQGAN:
    """Return a VQGAN on the device; with --quick a narrow one, unless it has to be an official one's like."""
    if options.quick and not (options.llamagen or options.ibq or options.toklip):
        config = config.model_copy(update={"channels": 32})
    return VQGAN(config).to(options.device)


def published(name: str, options: Options) -> TokLIPConfig:
    """Return the config of a published TokLIP; with --quick a small one, at 64 px."""
    config = model_spec(name).config
    assert config is not None
    if not options.quick:
        return config
    trunk = config.encoder.trunk.model_copy(update={"width": 128, "depth": 1, "heads": 2})
    sizes = {"width": 128, "heads": 2, "layers": 1, "vocabulary": 1000, "output_dim": 128}
    text = config.text.model_copy(update=sizes)
    encoder = config.encoder.model_copy(update={"grid": (4, 4), "trunk": trunk})
    return config.model_copy(update={"image_size": 64, "encoder": encoder, "text": text})
