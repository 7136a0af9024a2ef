"""Text of reports, which have figures and a protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version


def software() -> str:
    """Return the versions of the libraries that compute, for protocols."""
    return ", ".join(f"{name} {version(name)}" for name in ("open_clip_torch", "timm", "torch"))


def report_text(
    figures: Sequence[Sequence[str]],
    protocol: Mapping[str, object],
    unreadable: Sequence[str],
    notes: Sequence[str] = (),
) -> str:
    """Return a report as a table for people: rows of figures, notes on them, the protocol, and unreadable pictures."""
    widths = [max(len(row[column]) for row in figures) for column in range(len(figures[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in figures]
    if notes:
        lines += ["", *notes]
    lines += ["", "Protocol", *(f"  {name:<14}{text}" for name, text in protocol.items())]
    if unreadable:
        lines += ["", f"Unreadable, in no figure: {len(unreadable)}", *(f"  {line}" for line in unreadable)]
    return "\n".join(lines)
