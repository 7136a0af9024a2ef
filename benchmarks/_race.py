"""Turns, floors and the table: what the benchmarks of this folder share."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

#: Of the matrices whose product gives the rate of the processor, and that product's operations.
SIDE = 3072
PRODUCT = 2 * SIDE**3


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    #: s, ms or MiB; the figures are in it.
    unit: str
    ours: float
    official: float | None = None
    #: What the multiplications of ours would take at the rate of a large matrix product.
    floor: float | None = None
    target: str = ""
    note: str = ""


def race(contestants: dict[str, Callable[[], Any]], repeats: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Let everybody run in turn; return the best seconds and the last result of each."""
    seconds: dict[str, float] = {}
    results: dict[str, Any] = {}
    for _ in range(repeats):
        for name, run in contestants.items():
            start = time.perf_counter()
            results[name] = run()
            seconds[name] = min(seconds.get(name, float("inf")), time.perf_counter() - start)
    return seconds, results


def operation_count(run: Callable[[], Any]) -> float:
    """Return the floating-point operations of the convolutions and products of a call."""
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def product(dtype: torch.dtype) -> Callable[[], Tensor]:
    """Return the call of a large matrix product, of PRODUCT operations."""
    a, b = torch.randn(2, SIDE, SIDE, dtype=dtype)
    return lambda: a @ b


def machine_name(threads: int) -> str:
    """Return what the figures hold for: processor, threads, torch and system."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{cpu}, {threads} threads, torch {torch.__version__}, {platform.platform()}"


def table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| what | ours | official | official / ours | target | floor | |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        figure = {"s": "{:.2f} s", "ms": "{:.0f} ms", "MiB": "{:.0f} MiB"}[row.unit]
        official = figure.format(row.official) if row.official else "-"
        ratio = f"{row.official / row.ours:.2f}x" if row.official else "-"
        floor = figure.format(row.floor) if row.floor else "-"
        cells = (row.what, figure.format(row.ours), official, ratio, row.target or "-", floor, row.note)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write_json(path: Path, machine: str, rows: list[Row]) -> None:
    """Write the rows, and what they hold for."""
    path.write_text(json.dumps({"machine": machine, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")
