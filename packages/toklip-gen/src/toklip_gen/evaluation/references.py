"""References for generated pictures: statistics of real pictures, and what they were made of.

The reference of a generator (gFID) is made from training pictures, that of a tokenizer (rFID) from the pictures that it
reconstructs. Mixing them up gives figures that look right and are wrong: LlamaGen's tokenizer has an rFID of
2.19 against the validation pictures and 4.28 against the generator's reference, and its generators did not reproduce
against the validation pictures (FoundationVision/LlamaGen, issues 34, 48, 53 and 86). So a file that does not say what
it was made of is refused, and the protocol of a figure repeats it.
"""

from __future__ import annotations

import difflib
import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from toklip_core.config import Config, validated
from toklip_core.files import is_machine_error, one_line, parse_json, refuse_special, replacing
from toklip_core.weights import damaged, is_finite
from torch import Tensor

from toklip_gen.evaluation.adm_npz import ARRAY, TORN_ARCHIVE, read_samples
from toklip_gen.evaluation.frechet import INCEPTION, Extractor, Moments, moments

#: Maximum number of bytes of its arrays, because a small compressed file may claim any size; ADM's have 0.2 GB.
_LARGEST = 2**30
_INFO = "toklip"
#: Width of the layer of Inception that FID uses.
_INCEPTION_WIDTH = 2048


@dataclass(frozen=True)
class NamedReference:
    """A published file of statistics."""

    file: str
    url: str
    image_size: int
    #: Checksum of the file if it is known; otherwise the protocol says that it was not compared.
    sha256: str | None
    summary: str


_ADM = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches"
#: Source: openai/guided-diffusion, evaluations/README.md.
REFERENCES = {
    f"adm-imagenet-{size}": NamedReference(
        file=file,
        url=f"{_ADM}/imagenet/{size}/{file}",
        image_size=size,
        sha256=None,
        summary=f"ImageNet's training pictures at {size} px: the reference of published gFIDs.",
    )
    for size, file in (
        (64, "VIRTUAL_imagenet64_labeled.npz"),
        (128, "VIRTUAL_imagenet128_labeled.npz"),
        (256, "VIRTUAL_imagenet256_labeled.npz"),
        (512, "VIRTUAL_imagenet512.npz"),
    )
}


class ReferenceInfo(Config):
    """Description of a reference (statistics of real pictures), stored with it."""

    extractor: str = Field(description="Name of the feature extractor.")
    weights: str = Field(description="Description of the extractor's weights.")
    image_size: int = Field(description="Side of the pictures in pixels.")
    pictures: int | None = Field(description="Number of pictures, if known.")
    source: str = Field(description="Origin of the pictures.")


@dataclass(frozen=True)
class Reference:
    """Statistics of real pictures."""

    info: ReferenceInfo
    moments: Moments
    #: (n, D), features of some or all pictures; None if the file has neither features nor pictures.
    features: Tensor | None
    #: Name and checksum, for the protocol.
    described: str


def load_reference(name: Path | str, extractor: Extractor) -> Reference:
    """Return a reference for figures by an extractor.

    Args:
        name: name in ``REFERENCES``, whose file must be in the torch hub cache; or path of a file of ADM's or of
            :func:`write_reference`.
        extractor: extractor of the figures, which must be that of the reference.

    Raises:
        FileNotFoundError: the file is missing; it is not downloaded.
        LookupError: no reference has the name.
        ValueError: the reference has another extractor, does not say what it was made of, or is damaged.
    """
    path, named = _located(name)
    checksum = _sha256(path)
    if named is not None and named.sha256 not in (None, checksum):
        raise ValueError(f"{path} is damaged: its sha256 is {checksum}, not {named.sha256}; fetch {named.url} again")
    arrays = _arrays(path)
    if _INFO in arrays:
        info = validated(ReferenceInfo, parse_json(str(arrays[_INFO]), str(path)), path)
    elif {"mu", "sigma"} <= arrays.keys() and named is not None:
        _refuse_impostor(path, arrays, named)
        info = ReferenceInfo(
            extractor=INCEPTION,
            weights=extractor.weights,
            image_size=named.image_size,
            pictures=None,
            source=named.url,
        )
    else:
        raise ValueError(
            f"{path} does not say what it is a reference of; name a published one ({', '.join(REFERENCES)}) or "
            "write one of your pictures with --write-reference"
        )
    _refuse_other(info, path, extractor)
    unknown = "" if named is None or named.sha256 else ", not compared: none is published"
    described = f"{path.name}, sha256 {checksum}{unknown}; {info.source}"
    found = Moments(_numbers(path, arrays, "mu", 1).double(), _numbers(path, arrays, "sigma", 2).double())
    features = _features(path, arrays, extractor)
    width = len(found.mean)
    shapes = {"sigma": (tuple(found.covariance.shape), (width, width))}
    if features is not None and "features" in arrays:
        shapes["features"] = (tuple(features.shape), (len(features), width))
    for key, (got, wanted) in shapes.items():
        if got != wanted:
            raise ValueError(f"{path} is damaged: {key!r} is {got}, and 'mu' has {width} numbers; make it again")
    return Reference(info, found, features, described)


def write_reference(path: Path | str, features: Tensor, info: ReferenceInfo, *, most: int = 10_000) -> None:
    """Write statistics of features (n, D) to NAME.npz; an old file stays until the new one is complete.

    Args:
        most: maximum number of features that are kept beside them, for precision and recall; ADM's files have 10,000.

    Raises:
        ValueError: there are fewer than two features, or the name has another suffix.
    """
    path = Path(path)
    if path.suffix.lower() != ".npz" or len(features) < 2:
        raise ValueError(f"got {len(features)} pictures for {str(path)!r}; wanted two or more, and a file NAME.npz")
    found = moments(features)
    kept = torch.linspace(0, len(features) - 1, min(len(features), most), dtype=torch.float64).round().long()
    with replacing(path) as beside, beside.open("wb") as file:
        np.savez(
            file,
            mu=found.mean.numpy(),
            sigma=found.covariance.numpy(),
            features=features[kept].numpy(),
            toklip=np.array(info.model_dump_json()),
        )


def _located(name: Path | str) -> tuple[Path, NamedReference | None]:
    by_file = {named.file: named for named in REFERENCES.values()}
    if str(name) in REFERENCES:
        named = REFERENCES[str(name)]
        path = Path(torch.hub.get_dir()) / "checkpoints" / named.file
        if not path.is_file():
            raise FileNotFoundError(
                f"{path.name} is not in the torch hub cache; fetch {named.url} and put it into {path.parent}"
            )
        return path, named
    path = Path(name)
    refuse_special(path)
    if path.is_file():
        return path, by_file.get(path.name)
    if path.suffix == ".npz":
        raise FileNotFoundError(f"there is no file {str(name)!r}")
    near = difflib.get_close_matches(str(name), REFERENCES, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise LookupError(f"no reference is named {str(name)!r}.{hint} Named: {', '.join(REFERENCES)}; or give a file.")


def _arrays(path: Path) -> dict[str, Any]:
    """Return all arrays except the pictures, which are read one by one."""
    try:
        with path.open("rb") as opened, zipfile.ZipFile(opened) as archive, np.load(opened, allow_pickle=False) as file:
            size = sum(entry.file_size for entry in archive.infolist() if entry.filename != f"{ARRAY}.npy")
            if size > _LARGEST:
                raise ValueError(f"its arrays take {size} bytes; a reference's take less than {_LARGEST}")
            return {key: file[key] for key in file.files if key != ARRAY} | dict.fromkeys({ARRAY} & {*file.files})
    except (*TORN_ARCHIVE, AttributeError, TypeError) as error:  # a single array, or a list
        if is_machine_error(error) and not isinstance(error, MemoryError):  # a header may ask for any memory
            raise
        words = one_line(error, longest=120) or type(error).__name__
        raise ValueError(f"{path} is not an .npz of arrays, or is cut short: {words}") from error


def _numbers(path: Path, arrays: dict[str, Any], key: str, dimensions: int) -> Tensor:
    """Return an array as a tensor; ValueError if it is missing, has other dimensions, or is not finite."""
    array = arrays.get(key)
    if array is None or array.ndim != dimensions or array.dtype.kind != "f":
        found = "nothing" if array is None else f"{array.shape} {array.dtype}"
        raise ValueError(f"{path} is damaged: {key!r} is {found}; wanted numbers in {dimensions} dimensions")
    tensor = torch.from_numpy(array)
    if not is_finite(tensor):
        raise ValueError(damaged(path, key))
    return tensor


def _refuse_impostor(path: Path, arrays: dict[str, Any], named: NamedReference) -> None:
    """Raise ValueError if a file with a published name, but no published checksum, cannot be that file."""
    shape = tuple(_numbers(path, arrays, "mu", 1).shape)
    if shape != (_INCEPTION_WIDTH,):
        raise ValueError(
            f"{path} has means of {shape}, and features of Inception are {_INCEPTION_WIDTH}; fetch {named.url} again"
        )
    if ARRAY in arrays and (found := next(read_samples(path)).shape[:2]) != (named.image_size, named.image_size):
        raise ValueError(
            f"{path} has pictures of {found[0]} x {found[1]}, not {named.image_size}; fetch {named.url} again"
        )


def _features(path: Path, arrays: dict[str, Any], extractor: Extractor) -> Tensor | None:
    if "features" in arrays:
        return _numbers(path, arrays, "features", 2)
    if ARRAY not in arrays:
        return None
    found: list[Tensor] = []
    waiting: list[Tensor] = []
    for picture in read_samples(path):
        waiting.append(torch.from_numpy(picture.copy()).movedim(-1, 0))
        if len(waiting) == 32:
            found.append(extractor(torch.stack(waiting)).features)
            waiting = []
    return torch.cat([*found, *([extractor(torch.stack(waiting)).features] if waiting else [])])


def _refuse_other(info: ReferenceInfo, path: Path, extractor: Extractor) -> None:
    # By the weights, because a model may have several names; Inception's features are not those of a model.
    if info.weights != extractor.weights or (info.extractor == INCEPTION) != (extractor.name == INCEPTION):
        raise ValueError(
            f"{path} has features of {info.extractor!r} ({info.weights}), and the pictures are seen by "
            f"{extractor.name!r} ({extractor.weights}); name the reference's"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
