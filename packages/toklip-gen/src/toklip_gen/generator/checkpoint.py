"""A model that draws, and how to load it, as one value."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from toklip_core.config import refuse_missing_device
from toklip_core.plugins import PictureModel, registry
from toklip_core.weights import CONFIG_FILE

from toklip_gen.generator.pipeline import load_generator


@dataclass(frozen=True)
class Checkpoint:
    """Model that draws, by name or path, with its precision and device.

    >>> Checkpoint("toklip-gen-tiny").load().image_size
    (64, 64)
    """

    #: Name that ``toklip models`` lists, of any plugin; a folder of a model that draws, such as one that ``toklip train
    #: generator`` or ``mllm`` wrote; or a file, see :func:`toklip_gen.generator.load_generator`.
    model: str | Path = "toklip-gen-tiny"
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
        load = self._loader()
        named = {} if self.toklip is None else {"toklip": self.toklip}
        if named and "toklip" not in inspect.signature(load).parameters:
            raise ValueError(f"{str(self.model)!r} is loaded without a TokLIP of yours; leave out toklip (--toklip)")
        return load(device=self.device, dtype=self.dtype, **named)

    def _loader(self) -> Callable[..., PictureModel]:
        """Return the function that loads the model: of a name, of a folder of a plugin's kind, or of a generator."""
        models = registry().models
        if spec := models.get(str(self.model)):
            if spec.load is not None:
                return spec.load
            raise ValueError(f"{spec.name!r} is a {spec.kind} and does not draw; `toklip models` says which models do")
        if kind := _model_type(Path(self.model)):
            for spec in models.values():
                if spec.model_type == kind and spec.load_folder is not None:
                    return partial(spec.load_folder, self.model)
        return partial(load_generator, self.model)


def _model_type(folder: Path) -> str:
    """Return the ``model_type`` in the config.json of a folder; empty if there is none that can be read."""
    try:
        found = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return ""
    return str(found.get("model_type", "")) if isinstance(found, dict) else ""
