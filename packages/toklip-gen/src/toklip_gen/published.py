"""Named generators: where they come from, and the sizes of LlamaGen's. This module does not import torch.

Source: README and GETTING_STARTED of FoundationVision/LlamaGen, and the hub's pages of the two repositories.
"""

from __future__ import annotations

import difflib
import json
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from toklip_core.plugins import NamedModel

if TYPE_CHECKING:
    import torch

    from toklip_gen.generator import PictureGenerator

#: Folder of the generator that ships with the package.
TINY = Path(__file__).parent / "models" / "toklip-gen-tiny"


class _File(NamedTuple):
    """A file of LlamaGen."""

    source: str
    #: Key in toklip_gen.generator.SIZES.
    size: str
    image_size: int
    bytes: float


#: LlamaGen's files. A size that the README does not give is four bytes per parameter.
LLAMAGEN = {
    "llamagen-c2i-b-256": _File("FoundationVision/LlamaGen/c2i_B_256.pt", "B", 256, 444e6),
    "llamagen-c2i-b-384": _File("FoundationVision/LlamaGen/c2i_B_384.pt", "B", 384, 444e6),
    "llamagen-c2i-l-256": _File("FoundationVision/LlamaGen/c2i_L_256.pt", "L", 256, 1.37e9),
    "llamagen-c2i-l-384": _File("FoundationVision/LlamaGen/c2i_L_384.pt", "L", 384, 1.37e9),
    "llamagen-c2i-xl-384": _File("FoundationVision/LlamaGen/c2i_XL_384.pt", "XL", 384, 3.10e9),
    "llamagen-c2i-xxl-384": _File("FoundationVision/LlamaGen/c2i_XXL_384.pt", "XXL", 384, 5.64e9),
    "llamagen-c2i-3b-384": _File("FoundationVision/LlamaGen/c2i_3B_384.pt", "3B", 384, 12.4e9),
    "llamagen-t2i-xl-256": _File("peizesun/llamagen_t2i/t2i_XL_stage1_256.pt", "XL", 256, 3.11e9),
    "llamagen-t2i-xl-512": _File("peizesun/llamagen_t2i/t2i_XL_stage2_512.pt", "XL", 512, 3.11e9),
}


@cache
def generators() -> dict[str, NamedModel]:
    """Return name -> description of all named generators."""
    named = [_named(name, file) for name, file in LLAMAGEN.items()]
    return {model.name: model for model in [_tiny(), *named]}


def unknown(name: str) -> str:
    """Return the message for an unknown name."""
    known = generators()
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"no generator is named {name!r}, and no folder or file.{hint} Named: {', '.join(known)}."


def _load(
    name: Path | str, *, device: torch.device | str, dtype: torch.dtype | None, toklip: Path | str | None = None
) -> PictureGenerator:
    from toklip_gen.generator import load_generator

    return load_generator(name, toklip=toklip, dtype=dtype, device=device)


def _named(name: str, file: _File) -> NamedModel:
    what = "ImageNet classes" if "c2i" in name else "texts (read by flan-t5-xl)"
    return NamedModel(
        name=name,
        kind="generator",
        summary=f"LlamaGen {file.size}: {file.image_size} px pictures from {what}.",
        size=int(file.bytes),
        licence="MIT",
        source=file.source,
        image_size=file.image_size,
        tokens=(file.image_size // 16) ** 2,
        load=partial(_load, name),
    )


def _tiny() -> NamedModel:
    config = json.loads((TINY / "config.json").read_text("utf-8"))
    rows, columns = config["grid"]
    return NamedModel(
        name="toklip-gen-tiny",
        kind="generator",
        summary="Small text-to-picture generator of Scenes, built on toklip-tiny; ships with the package.",
        size=(TINY / "model.safetensors").stat().st_size,
        licence="Apache-2.0",
        package="toklip-gen",
        image_size=config["image_size"][0],
        tokens=rows * columns,
        load=partial(_load, "toklip-gen-tiny"),
        model_type=config["kind"],
        load_folder=_load,
    )
