"""Encoding with the settings and the compute of a test as plain keywords."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from toklip_core.config import Compute
from toklip_core.store import EncodeReport, EncodeSettings, encode_pictures


def encode_with(inputs: Iterable[Path | str], store: Path | str, **options: Any) -> EncodeReport:
    """encode_pictures: options go into EncodeSettings and Compute by their names, the rest to the function."""
    settings, compute = (
        kind(**{field.name: options.pop(field.name) for field in fields(kind) if field.name in options})
        for kind in (EncodeSettings, Compute)
    )
    return encode_pictures(inputs, store, settings, compute=compute, **options)
