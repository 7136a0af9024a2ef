"""The tokenizer in a published model: reads its tensors out of a file or folder that also holds a language model.

Nothing else is read. Of a safetensors file only the named tensors are read, torch files are memory-mapped, and of a
sharded folder only the shards that hold tensors of the tokenizer are opened.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from toklip_core.config import is_file_name
from toklip_core.files import is_machine_error, one_line, read_json_object
from toklip_core.plugins import Weights
from toklip_core.weights import plain_name, read_tensors, read_weights, source_name, state_dict_in

#: Files of weights in a model folder of the hub; the first one found is used.
_FOLDER_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "model.ckpt",
)
#: A tensor that every tokenizer of the taming family has, after some prefix.
_MARKER = "quantize.embedding.weight"


@dataclass(frozen=True)
class TokenizerTensors:
    """The tensors below one prefix, by their full names, without the words that wrappers add to names."""

    prefix: str
    tensors: dict[str, Any]

    def __contains__(self, name: str) -> bool:
        """Return whether there is a tensor ``prefix + name``."""
        return self.prefix + name in self.tensors


def read_tokenizer_tensors(weights: Weights | str, prefixes: Iterable[str], marker: str = _MARKER) -> TokenizerTensors:
    """Read the tensors of a tokenizer.

    Args:
        weights: a weights file (safetensors, or a torch file, of which a ``state_dict`` inside is used), a folder of
            the hub with one weights file, or with shards and an index, or tensors by the names of such a file.
        prefixes: candidates for the tokenizer's prefix; the first one with a codebook below it is used.
        marker: name of the codebook after the prefix.

    Raises:
        FileNotFoundError: no such file or folder, no weights in it, or a shard is missing.
        ValueError: no prefix has a codebook below it, or a file is damaged or refused.
    """
    if isinstance(weights, Mapping):
        prefix = _prefix(weights, weights, prefixes, marker)
        named = {name: tensor for name, tensor in weights.items() if plain_name(name).startswith(prefix)}
        return TokenizerTensors(prefix, read_weights(named))
    if Path(weights).suffix == ".json":
        raise ValueError(f"{str(weights)!r} is not a file of weights; if it is an index of shards, name its folder")
    file = _file_of(Path(weights))
    shards = _shards(file)
    names = shards or dict.fromkeys(_names(file), file)
    prefix = _prefix(weights, names, prefixes, marker)
    by_file: dict[Path, list[str]] = {}
    for name, shard in names.items():
        if plain_name(name).startswith(prefix):
            by_file.setdefault(shard, []).append(name)
    tensors: dict[str, Any] = {}
    for shard, wanted in by_file.items():
        tensors |= _read(shard, wanted)
    return TokenizerTensors(prefix, state_dict_in(tensors, (), source=weights))


def _file_of(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in _FOLDER_FILES:
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(f"the folder {str(path)!r} has no weights: none of {', '.join(_FOLDER_FILES)}")


def _shards(file: Path) -> dict[str, Path]:
    """Return tensor name -> shard if the file is an index, else an empty table."""
    if file.suffix != ".json":
        return {}
    listed = read_json_object(file).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(shard, str) for shard in listed.values()):
        words = "is not an index of shards: its weight_map is not a table of files; fetch it again"
        raise ValueError(f"{str(file)!r} {words}")
    shards: dict[str, str] = listed
    outside = next((shard for shard in shards.values() if not is_file_name(shard)), None)
    if outside is not None:
        raise ValueError(f"{str(file)!r} names {outside!r}, outside of its folder; download the folder again")
    return {name: file.parent / shard for name, shard in shards.items()}


def _prefix(weights: Weights | str, names: Iterable[str], prefixes: Iterable[str], marker: str) -> str:
    known, wanted = set(map(plain_name, names)), list(prefixes)
    for prefix in wanted:
        if prefix + marker in known:
            return prefix
    like = one_line(", ".join(sorted(known)[:2]), longest=120) or "nothing: it is empty"
    missing = " or ".join(prefix + marker for prefix in wanted)
    raise ValueError(f"{source_name(weights)!r} has no {missing}; its names are like {like}")


def _names(file: Path) -> list[str]:
    if _is_safetensors(file):
        with _open(file) as opened:
            return list(opened.keys())
    return list(_state_dict(file))


def _read(file: Path, names: Iterable[str]) -> dict[str, Any]:
    """Return the tensors of these names. Missing ones are left out; strict loading reports them later."""
    if _is_safetensors(file):
        with _open(file) as opened:
            known = set(opened.keys())
            return {name: opened.get_tensor(name) for name in names if name in known}
    content = _state_dict(file)
    return {name: content[plain_name(name)] for name in names if plain_name(name) in content}


def _is_safetensors(file: Path) -> bool:
    return file.suffix == ".safetensors" and file.is_file()


def _open(file: Path) -> safe_open:
    file.open("rb").close()  # because safetensors calls a file missing that it cannot open for any reason
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        if is_machine_error(error):
            raise
        raise ValueError(
            f"{str(file)!r} is not a whole safetensors file ({one_line(error, longest=120)}); download it again"
        ) from error


def _state_dict(file: Path) -> dict[str, Any]:
    return dict(state_dict_in(read_tensors(file), ("state_dict",), source=file))
