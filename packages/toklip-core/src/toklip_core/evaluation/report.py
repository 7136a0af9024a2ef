"""Reports: figures and the protocol that they were measured by, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version


def software() -> str:
    """Return the versions of what computes, for protocols."""
    return ", ".join(f"{name} {version(name)}" for name in ("open_clip_torch", "timm", "torch"))


def report_text(figures: Sequence[Sequence[str]], protocol: Mapping[str, object], unreadable: Sequence[str]) -> str:
    """Return a table for people: rows of figures, then the protocol, then what could not be read."""
    widths = [max(len(row[column]) for row in figures) for column in range(len(figures[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in figures]
    lines += ["", "Protocol", *(f"  {name:<14}{text}" for name, text in protocol.items())]
    if unreadable:
        lines += ["", f"Unreadable, in no figure: {len(unreadable)}", *(f"  {line}" for line in unreadable)]
    return "\n".join(lines)
