"""Named models, TokLIPs and a CLIP: their sizes, where they come from, and the layout of the official files.

An official file contains a training run: ``state_dict`` (names that begin with ``module.``), the optimizer, and counts.
There the semantic encoder is called ``visual.trunk``, the VQ tokenizer ``visual.trunk.vq``, the text tower ``text``.

Source: README of TencentARC/TokLIP; names and shapes of its files TokLIP_S_256.pt and TokLIP_L_384.pt.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from torch import Tensor

from toklip_core.config import LARGEST_SIDE, Config, ResizeSetting
from toklip_core.files import read_text
from toklip_core.model.encoder import EncoderConfig
from toklip_core.model.text import TextConfig, TextTokenizer, refuse_other_space
from toklip_core.model.trunk import TrunkConfig
from toklip_core.tokenizer import TokenizerRecord
from toklip_core.weights import WEIGHTS_FILE, hub_file, read_tensors, state_dict_in


class TokLIPConfig(Config):
    """The sizes of a TokLIP and its VQ tokenizer, stored as ``config.json`` in its model folder."""

    kind: Literal["toklip"] = "toklip"
    tokenizer: TokenizerRecord = Field(description="VQ tokenizer that the model was trained with.")
    image_size: int = Field(gt=0, le=LARGEST_SIDE, description="Side S of the square that is encoded, in pixels.")
    resize: ResizeSetting
    encoder: EncoderConfig
    text: TextConfig

    @model_validator(mode="after")
    def _one_space(self) -> Self:
        refuse_other_space(self.text, self.encoder.trunk.joint_dim)
        return self


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Description of a TokLIP, or a CLIP, that can be used by name."""

    name: str
    summary: str
    #: Size of the file in bytes.
    size: int
    licence: str
    kind: Literal["TokLIP", "CLIP"] = "TokLIP"
    #: Model folder in the package; None if the weights are on the hub.
    folder: Path | None = None
    #: File on the hub, as repository/file; empty if the weights ship with the package.
    source: str = ""
    #: Config of a model on the hub. A model in the package has its own file.
    config: TokLIPConfig | None = None
    #: Tokenizer of the text tower on the hub, as repository/file.
    text_tokenizer: str = ""


#: Folders of the models that ship with the package.
TINY, CLIP_TINY = (Path(__file__).parents[1] / "models" / name for name in ("toklip-tiny", "clip-tiny"))
#: Names of the models in the package, which were trained on Scenes alone.
OF_SCENES = (TINY.name, CLIP_TINY.name)

#: Alias -> name.
ALIASES = {"toklip-b-256": "toklip-s-256"}

#: Names in an official file that the model does not take -> reason. The VQ tokenizer reads its tensors separately.
IGNORED = {r"visual\.trunk\.vq\..+": "the VQ tokenizer, which stands outside of the model"}

_log = logging.getLogger(__name__)

_LICENCE = "TencentARC's own for research, not for use within the European Union: read it at the source"
_TOKENIZER = "visual.trunk.vq."
#: Patterns of our names -> names in an official file.
_NAMES = (
    (r"^encoder\.projector\.0\.", "visual.trunk.vq_table."),
    (r"^encoder\.projector\.2\.", "visual.trunk.vq_mapping."),
    (r"^encoder\.", "visual.trunk."),
    (r"^text\.network\.", "text."),
)


@cache
def models() -> dict[str, ModelSpec]:
    """Return name -> description of all named models."""
    specs = [
        *_shipped(),
        _spec("toklip-s-256", "TokLIP_S_256.pt", 256, 8.31e9, "llamagen-vq16-t2i", 8),
        _spec("toklip-l-384", "TokLIP_L_384.pt", 384, 8.31e9, "llamagen-vq16-t2i", 8),
        # By its size the file has IBQ's weights twice; the official code uses the raw weights.
        _spec("toklip-xl-512", "TokLIP_XL_512.pt", 512, 9.44e9, "ibq-262144-raw", 256),
    ]
    return {spec.name: spec for spec in specs}


def model_spec(name: str) -> ModelSpec:
    """Return the description of a name or alias; LookupError with the nearest name if it is unknown."""
    known = models()
    name = ALIASES.get(name, name)
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, [*known, *ALIASES], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise LookupError(f"no model is named {name!r}, and no folder or file.{hint} Named: {', '.join(known)}.")


def read_official(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors of an official file by their names, and those of its VQ tokenizer by the tokenizer's names.

    The tensors are memory-mapped; the optimizer's state is never read.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file is damaged, contains code, or is not a TokLIP.
    """
    tensors = state_dict_in(read_tensors(path), ("state_dict",), source=path)
    if "visual.trunk.pos_embed" not in tensors:
        raise ValueError(f"{str(path)!r} holds no TokLIP: it has no visual.trunk.pos_embed")
    vq = {name.removeprefix(_TOKENIZER): value for name, value in tensors.items() if name.startswith(_TOKENIZER)}
    return tensors, vq


def official_name(name: str) -> str:
    """Return the name in official files for a tensor of a TokLIP."""
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def config_of_official(tensors: Mapping[str, Tensor], path: Path | str) -> TokLIPConfig:
    """Return the config of the published model with the same number of positions; ValueError if there is none."""
    positions = tuple(tensors["visual.trunk.pos_embed"].shape)
    for spec in models().values():
        if spec.config is not None:
            rows, columns = spec.config.encoder.grid
            if positions == (1, rows * columns, spec.config.encoder.trunk.width):
                return spec.config
    raise ValueError(
        f"{str(path)!r} has a position embedding {positions}, which no published model has; give its config.json"
    )


def published_text_tokenizer(config: TokLIPConfig) -> TextTokenizer | None:
    """Return the text tokenizer of a published model, from the hub's cache or by downloading it.

    If it is not available, return None with a warning, because pictures can still be read.
    """
    source = next((spec.text_tokenizer for spec in models().values() if spec.config == config), "")
    if not source:
        return None
    owner, repository, file = source.split("/", 2)
    try:
        way_out = "give it to `toklip convert` (`--text-tokenizer PATH/{}`)"
        found = hub_file(f"{owner}/{repository}", file, way_out=way_out)
        return TextTokenizer(config.text, read_text(found))
    except FileNotFoundError as error:
        _log.warning("texts cannot be read: %s", error)
        return None


def _shipped() -> list[ModelSpec]:
    summaries = {
        TINY: "Small TokLIP over vqgan-tiny, trained on generated scenes; 64 px, 64 tokens; in the package.",
        CLIP_TINY: "Small CLIP, the teacher of small TokLIPs, trained on generated scenes; 64 px; in the package.",
    }
    return [
        ModelSpec(
            name=folder.name,
            summary=summary,
            size=(folder / WEIGHTS_FILE).stat().st_size,
            licence="Apache-2.0",
            kind="CLIP" if folder is CLIP_TINY else "TokLIP",
            folder=folder,
        )
        for folder, summary in summaries.items()
        if folder.is_dir()
    ]


def _spec(name: str, file: str, size: int, volume: float, tokenizer: str, codebook_dim: int) -> ModelSpec:
    """Return the description of a published model. All of them are SO400M, with D = 1152 and 27 blocks."""
    trunk = TrunkConfig(width=1152, depth=27, heads=16, mlp_ratio=3.7362)
    text = TextConfig(
        context_length=64,
        vocabulary=256000,
        width=1152,
        heads=16,
        layers=27,
        mlp_ratio=3.7362,
        output_dim=1152,
        eos_id=1,
    )
    config = TokLIPConfig(
        tokenizer=TokenizerRecord(name=tokenizer),
        image_size=size,
        resize="crop",  # as in the published evaluations: resize the short side, crop the centre
        encoder=EncoderConfig(codebook_dim=codebook_dim, grid=(size // 16, size // 16), trunk=trunk),
        text=text,
    )
    vq = "IBQ-262144" if "ibq" in tokenizer else "LlamaGen VQ-16"
    return ModelSpec(
        name=name,
        summary=f"Published TokLIP: SigLIP2 SO400M over {vq}; {size} px, {(size // 16) ** 2} tokens.",
        size=int(volume),
        licence=_LICENCE,
        source=f"TencentARC/TokLIP/{file}",
        config=config,
        text_tokenizer=f"timm/ViT-SO400M-16-SigLIP2-{size}/tokenizer.json",
    )
