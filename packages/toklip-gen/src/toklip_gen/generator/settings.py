"""A model that draws, and how to load it, as one value."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from toklip_core.config import refuse_missing_device
from toklip_core.plugins import PictureModel, picture_loader

from toklip_gen.generator.pipeline import load_generator


@dataclass(frozen=True)
class ModelSettings:
    """Model that draws, by name or path, with its precision and device.

    >>> ModelSettings("toklip-gen-tiny").load().image_size
    (64, 64)
    """

    #: Name that ``toklip models`` lists, of any plugin; a folder of a model that draws, such as one that ``toklip train
    #: generator`` or ``mllm`` wrote; or a file, see :func:`toklip_gen.generator.load_generator`.
    name: str | Path = "toklip-gen-tiny"
    #: Path or name of the TokLIP, overriding the one recorded in the model.
    toklip: str | Path | None = None
    #: Precision of the model; None: as stored.
    dtype: torch.dtype | None = None
    device: torch.device | str = "cpu"

    def load(self) -> PictureModel:
        """Load the model; this may download what its name stands for.

        Raises:
            LookupError: there is no such model, or what it needs is not there.
            OSError: a file is missing, and cannot be downloaded.
            ValueError: the model does not draw, its weights do not fit, or there is no such device.
        """
        refuse_missing_device(self.device)
        load = picture_loader(self.name) or partial(load_generator, self.name)
        named = {} if self.toklip is None else {"toklip": self.toklip}
        if named and "toklip" not in inspect.signature(load).parameters:
            raise ValueError(f"{str(self.name)!r} is loaded without a TokLIP of yours; leave out toklip (--toklip)")
        return load(device=self.device, dtype=self.dtype, **named)
