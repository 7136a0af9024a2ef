"""A token store into pictures: what ``toklip decode`` calls. Nothing is written outside of the folder that is named."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import cast

import torch
from torch import nn

from toklip_core.checkpoint import weights_checksum
from toklip_core.data import to_picture
from toklip_core.encoding import progress_bar, refuse_missing_device
from toklip_core.parts import fullness_explained
from toklip_core.plugins import VQTokenizer, load_tokenizer
from toklip_core.store import TokenRow, TokenStore


@dataclass(frozen=True, kw_only=True)
class DecodeReport:
    """What one call of :func:`decode_store` did."""

    out: str
    #: Written by this call.
    pictures: int
    #: There before.
    skipped: int
    seconds: float
    stopped: bool

    def as_json(self) -> dict[str, str | int | float | bool]:
        """Return the figures under their names."""
        return asdict(self) | {"pictures_per_second": self.pictures / self.seconds}

    def as_text(self) -> str:
        """Return them as one line."""
        text = f"{self.pictures} picture{'s' * (self.pictures != 1)} written into {self.out} in {self.seconds:.1f} s"
        if self.skipped:
            text += f"; {self.skipped} were there before and stay as they are"
        if self.stopped:
            text += "; stopped before the end: the same command goes on"
        return text


def decode_store(
    store: Path | str,
    out: Path | str,
    *,
    weights: Path | str | None = None,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    progress: bool = False,
    stop: Callable[[], bool] | None = None,
) -> DecodeReport:
    """Write the pictures of a token store as ``OUT/KEY.png``, those that are not there yet.

    Args:
        store: what :func:`encode_pictures` made.
        out: a folder; made if it is not there. Nothing is written outside of it, whatever the store's keys are.
        weights: see :func:`toklip_core.plugins.load_tokenizer`; they must be those the store was made with.
        progress: see :func:`toklip_core.encoding.progress_bar`.
        stop: asked after every batch; once it says True the call returns.

    Raises:
        FileNotFoundError: there is no store, or the weights are not there.
        LookupError: the store's tokenizer is not installed.
        ValueError: the weights are others, the store is damaged, or a key of it leads out of the folder.
        OSError: the folder cannot be written.
    """
    started = time.perf_counter()
    refuse_missing_device(device)
    tokens, folder = TokenStore(store), Path(out)
    model = load_tokenizer(tokens.info.tokenizer, weights)
    module = cast(nn.Module, model)
    if (got := weights_checksum(module)) != tokens.info.weights_checksum:
        raise ValueError(
            f"the weights of {tokens.info.tokenizer!r} have the checksum {got[:16]}, but {store} was made with "
            f"{tokens.info.weights_checksum[:16]}; pass those as weights (--weights PATH)"
        )
    module.to(device)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = skipped = 0
    stopped = False
    with fullness_explained(folder), progress_bar(len(tokens), shown=progress) as bar:
        for _, rows in groupby(tokens, key=lambda row: row.ids.shape):
            while batch := list(islice(rows, batch_size)):
                missing = [(row, path) for row in batch if not (path := _inside(folder, row.key)).exists()]
                _write_pictures(model, missing, device)
                pictures += len(missing)
                skipped += len(batch) - len(missing)
                bar.update(len(batch))
                if stopped := stop is not None and stop():
                    break
            if stopped:
                break
    seconds = time.perf_counter() - started
    return DecodeReport(out=str(folder), pictures=pictures, skipped=skipped, seconds=seconds, stopped=stopped)


def _write_pictures(model: VQTokenizer, rows: list[tuple[TokenRow, Path]], device: torch.device | str) -> None:
    if not rows:
        return
    pixels = model.decode(torch.stack([row.ids for row, _ in rows]).to(device)).cpu()
    for picture, (_, path) in zip(pixels, rows, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.tmp")
        try:
            to_picture(picture).save(beside, format="PNG", compress_level=1)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        beside.replace(path)


def _inside(folder: Path, key: str) -> Path:
    """Return where a key's picture goes; ValueError if that is not below the folder."""
    path = folder / f"{key}.png"
    if not path.parent.resolve().is_relative_to(folder.resolve()) or not key:
        raise ValueError(f"the key {key!r} of the store leads out of the folder {folder}; nothing is written there")
    return path
