"""Weights on disk: safe reading, strict loading, the hub, checksums, and model folders.

A model folder holds ``config.json``, with the number of its format, and ``model.safetensors``. Files of other projects
are read without running code from them. Their tensors must fit a module completely; errors use the names in the file.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import mmap
import pickle
import re
import shutil
import struct
import warnings
import zipfile
from _codecs import encode as _codecs_encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from toklip_core.files import (
    LONGEST,
    filling,
    folder_lock,
    is_file,
    is_machine_error,
    one_line,
    read_json_object,
    refuse_special,
)
from toklip_core.weights.finite import damaged, is_finite

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

#: Number of the format of model folders, of every kind of model. Folders of another format are refused.
MODEL_FORMAT: Final = 1

#: Subfolder in which the files of a model folder are written before they are moved to their places.
_UNFINISHED = ".unfinished"

#: Types that published .pt files hold beside tensors; all of them are plain data. They are numpy scalars (a loss, a
#: learning rate), under the module names of numpy 1 and 2, and arguments of the training script. Nothing else is
#: unpickled.
_HARMLESS: list[Any] = [
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # type: ignore[attr-defined]
    (np._core.multiarray.scalar, "numpy._core.multiarray.scalar"),  # type: ignore[attr-defined]
    np.dtype,
    *(type(np.dtype(name)) for name in ("bool", "int32", "int64", "float16", "float32", "float64")),
    (_codecs_encode, "_codecs.encode"),
    argparse.Namespace,
]


#: Words that wrappers of modules insert anywhere into names.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}

#: Errors that torch's reader may raise for a damaged file.
_TORN = (RuntimeError, ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError)


def read_tensors(path: Path | str) -> dict[str, Any]:
    """Read a weights file without running code from it.

    A safetensors file gives its tensors by name. A torch file (.pt, .pth, .ckpt, .bin) gives its object, whose tensors
    are memory-mapped and read from the disk when they are used.

    Raises:
        FileNotFoundError: the file is missing.
        OSError: it is a pipe, a socket or a device, or the machine cannot read it now.
        MemoryError, RuntimeError: there is not enough memory.
        ValueError: the file is damaged, has no weights or contains code; the message says which.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a folder; name the weights file in it")
    refuse_special(path)
    if not is_file(path):
        raise FileNotFoundError(f"there is no weights file {str(path)!r}")
    path.open("rb").close()  # raises PermissionError for an unreadable file
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)


def read_weights(weights: Path | str | Mapping[str, Any], layouts: Iterable[str] = ()) -> dict[str, Any]:
    """Return name -> tensor from a weights file, or from tensors that are given; the factory of a tokenizer uses it.

    Args:
        weights: a file for :func:`read_tensors`, or tensors by name.
        layouts: keys of a file under which its tensors may be, see :func:`state_dict_in`.

    Raises:
        FileNotFoundError, OSError, ValueError: raised by ``read_tensors`` or ``state_dict_in``.

    >>> read_weights({"module.weight": torch.zeros(1)})
    {'weight': tensor([0.])}
    """
    content = weights if isinstance(weights, Mapping) else read_tensors(weights)
    return state_dict_in(content, layouts, source=weights)


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        return load_file(path)
    except SafetensorError as error:
        if is_machine_error(error):
            raise
        raise ValueError(
            f"{str(path)!r} is not a whole safetensors file ({one_line(error, longest=120)}); fetch it again"
        ) from error


def _read_torch(path: Path) -> dict[str, Any]:
    _refuse_inflating(path)
    try:
        # torch warns of another pickle protocol; such a file either loads or is refused below.
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(_HARMLESS):
            # Files of torch < 1.6 are not zip archives and cannot be memory-mapped.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL ([\w.]+)", str(error))  # the rest of the message is a page of advice
        if code is None:
            raise ValueError(f"{str(path)!r} is damaged, or no file of weights; fetch it again") from error
        raise ValueError(
            f"{str(path)!r} is refused: it asks to run {code[1]}, and weights need no code; get them as safetensors"
        ) from error
    except (OSError, EOFError, zipfile.BadZipFile, struct.error, MemoryError, *_TORN) as error:
        raise _torn(path, error) from error
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r} holds a {type(content).__name__}, not tensors by name")
    return content


def _torn(path: Path, error: Exception) -> ValueError:
    """Return the error for a damaged file; raise ``error`` again if the file is not at fault."""
    if is_machine_error(error) and not (isinstance(error, MemoryError) and _fits_memory(path)):
        raise error
    why = one_line(error, longest=120) or type(error).__name__
    return ValueError(f"{str(path)!r} is cut short, or no file of weights ({why}); fetch it again")


def _fits_memory(path: Path) -> bool:
    """Return whether there is memory for all bytes of a file, so that one that asks for more is damaged or hostile."""
    size = path.stat().st_size
    try:
        mmap.mmap(-1, max(size, 1)).close()  # touches no page, as memory may have just run out
    except (MemoryError, OSError, OverflowError):
        return False
    return True


def _refuse_inflating(path: Path) -> None:
    """Raise ValueError for a compressed torch file, where 13 MB may become 8 GB in memory; torch never compresses."""
    with path.open("rb") as file:
        begins = file.read(4)
    try:
        if begins != b"PK\x03\x04" and not zipfile.is_zipfile(path):
            return  # a file of torch < 1.6, or a damaged one, which torch's own reader reports
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, struct.error, *_TORN) as error:
        raise _torn(path, error) from error
    size, wanted = path.stat().st_size, sum(entry.file_size for entry in entries)
    if wanted > size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError(
            f"{str(path)!r} is refused: it is compressed, {size} bytes for {wanted}, which torch.save never does; get "
            "the weights as torch.save or safetensors wrote them"
        )


def state_dict_in(content: Mapping[str, Any], layouts: Iterable[str], *, source: object) -> dict[str, Any]:
    """Return name -> tensor from the first of the keys ``layouts`` that a file has, or from its top level.

    A key whose value is None or empty, such as an average that was never updated, counts as missing. Words that DDP,
    FSDP and ``torch.compile`` add to names are removed, see :func:`plain_name`.

    Raises:
        ValueError: the value is not a table of tensors, or two names become equal.
    """
    there = [content[layout] for layout in layouts if layout in content]
    full = [tensors for tensors in there if tensors is not None and not (isinstance(tensors, Mapping) and not tensors)]
    tensors = full[0] if full else there[0] if there else content
    if not isinstance(tensors, Mapping) or not all(isinstance(name, str) for name in tensors):
        raise ValueError(f"{source_name(source)!r} holds a {type(tensors).__name__} where tensors by name are wanted")
    found: dict[str, Any] = {}
    for name, tensor in tensors.items():
        plain = plain_name(name)
        if plain in found:
            where = f"{source_name(source)!r} has two tensors {plain!r}"
            raise ValueError(f"{where}, one of them as {name!r}; leave one out")
        found[plain] = tensor
    return found


def plain_name(name: str) -> str:
    """Return the name of a tensor without the words that wrappers add.

    DDP and DataParallel put ``module.`` before names, ``torch.compile`` inserts ``_orig_mod.``, and activation
    checkpointing and FSDP insert words of their own.

    >>> plain_name("module._orig_mod.encoder._orig_mod.conv_in.weight")
    'encoder.conv_in.weight'
    """
    kept = [part for part in name.split(".") if part not in _WRAPPERS]
    while len(kept) > 1 and kept[0] == "module":
        kept = kept[1:]
    return ".".join(kept)


def stored_dtype(tensor: object) -> torch.dtype:
    """Return the dtype to compute in with weights that are stored as a tensor is, or as none, which means float32.

    float16 is for files alone: processors are slow in it, large activations overflow, and each of its values is also
    one of float32, which is returned for it.

    >>> stored_dtype(torch.zeros(1, dtype=torch.float16)), stored_dtype(torch.zeros(1, dtype=torch.bfloat16))
    (torch.float32, torch.bfloat16)
    """
    dtype = getattr(tensor, "dtype", torch.float32)
    return dtype if dtype.is_floating_point and dtype != torch.float16 else torch.float32


def load_strict(
    module: nn.Module,
    tensors: Mapping[str, Any],
    *,
    source: Path | str | Mapping[str, Any],
    name_in_file: Callable[[str], str] = lambda name: name,
    ignored: Mapping[str, str] | None = None,
    mapped: bool = False,
) -> None:
    """Copy tensors into a module, or raise if they do not fit it completely.

    The module keeps its dtype. A module that was built on the meta device gets its memory here.

    Args:
        module: module whose whole state dict is filled.
        tensors: tensors by their names in the file.
        source: the file, for messages; or the tensors, if they come from no file.
        name_in_file: name in the module's state dict -> name of that tensor in the file.
        ignored: regular expression that matches a whole name in the file -> why that tensor is not needed.
        mapped: whether a module on the meta device takes the tensors themselves instead of copies. If they are
            memory-mapped, nothing is read before it is used, and the file must not change.

    Raises:
        ValueError: a tensor is missing or left over, has another shape or an integer dtype, or contains NaN or
            infinity; the message has the names in the file.

    >>> linear = nn.Linear(3, 2)
    >>> load_strict(linear, {"weight": torch.zeros(2, 3)}, source="linear.safetensors")
    Traceback (most recent call last):
    ValueError: 'linear.safetensors' does not fit: missing: bias
    """
    wanted = {name_in_file(name): (name, tensor) for name, tensor in module.state_dict().items()}
    reasons = [re.compile(pattern) for pattern in ignored or {}]
    unexpected = [n for n in tensors if n not in wanted and not any(reason.fullmatch(n) for reason in reasons)]
    missing = [name for name in wanted if name not in tensors]
    misshaped = [
        f"{name} is {_shape(tensors[name], tensor)}, not {tuple(tensor.shape)}"
        for name, (_, tensor) in wanted.items()
        if name in tensors and _shape(tensors[name], tensor) != tuple(tensor.shape)
    ]
    problems = {"missing": missing, "not expected": unexpected, "of another shape": misshaped}
    if any(problems.values()):
        raise ValueError(_misfit(source, problems))
    for theirs in wanted:
        if not is_finite(tensors[theirs]):
            raise ValueError(damaged(source_name(source), theirs))
    state = {
        ours: tensors[theirs].to("cpu", tensor.dtype, copy=not mapped) if tensor.is_meta else tensors[theirs]
        for theirs, (ours, tensor) in wanted.items()
    }
    module.load_state_dict(state, assign=any(tensor.is_meta for _, tensor in wanted.values()))


def _shape(value: object, wanted: Tensor) -> tuple[int, ...] | str:
    """Return the shape of a tensor that can be loaded, else a word for its kind: integers are codes of weights."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    if value.is_meta or value.is_quantized or value.layout != torch.strided:
        return "a tensor without plain numbers"
    if value.is_floating_point() != wanted.is_floating_point():
        return f"of {value.dtype}"
    return tuple(value.shape)


def source_name(source: object) -> str:
    """Return what messages call the source of tensors: its path, or that they were given by name."""
    return "the given state dict" if isinstance(source, Mapping) else str(source)


def _misfit(source: object, problems: Mapping[str, list[str]]) -> str:
    """Return a message that says what does not fit, with as many names as there is room for."""
    for most in (5, 3, 2, 1):
        said = [f"{words}: {_some(names, most)}" for words, names in problems.items() if names]
        message = f"{source_name(source)!r} does not fit: {'; '.join(said)}"
        if len(message) <= LONGEST:
            break
    return one_line(message)


def _some(names: list[str], most: int) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


#: Advice for a user who downloads the weights of a tokenizer by hand; {} stands for the name of the file.
_PASS_WEIGHTS = "pass it as weights (`--weights PATH/{}`; in a training, `--set tokenizer_weights=PATH`)"


def hub_file(repository: str, filename: str, *, way_out: str = _PASS_WEIGHTS) -> Path:
    """Return the path of a file of the Hugging Face hub, from its cache or by downloading it.

    Args:
        repository: owner/name.
        filename: name of the file in the repository.
        way_out: advice for a user who downloads the file by hand; {} stands for its name.

    Raises:
        FileNotFoundError: it is not cached and cannot be downloaded; the message says what to download, and where to
            put it.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    cached = try_to_load_from_cache(repository, filename)
    if isinstance(cached, str):
        return Path(cached)
    url = hf_hub_url(repository, filename)
    try:
        get_hf_file_metadata(url)  # fails at once without a network; the download would try for half a minute
        return Path(hf_hub_download(repository, filename))
    except Exception as error:  # of requests or httpx, as the release of huggingface_hub has it
        raise FileNotFoundError(
            f"{filename} is not in the hub's cache and cannot be downloaded ({why_not_fetched(error)}); fetch {url} to "
            f"any place and {way_out.format(filename)}"
        ) from error


def hub_folder(repository: str, patterns: Sequence[str], complete: Callable[[Path], bool]) -> Path:
    """Return the folder of a repository of the Hugging Face hub, from its cache or by downloading it.

    Args:
        repository: owner/name.
        patterns: glob patterns of the files to download.
        complete: function that says whether a folder has all the files that are needed.

    Raises:
        FileNotFoundError: it is not cached and cannot be downloaded.
        ValueError: ``complete`` raises it, or the name of the repository is malformed.
    """
    from huggingface_hub import snapshot_download

    with contextlib.suppress(OSError):  # it is not cached
        cached = Path(snapshot_download(repository, local_files_only=True))
        if complete(cached):
            return cached
    try:
        fetched = Path(snapshot_download(repository, allow_patterns=list(patterns)))
    except Exception as error:  # of requests or httpx, as the release of huggingface_hub has it
        raise FileNotFoundError(
            f"there is no folder {repository!r}, and the hub's repository of this name is not in its cache and cannot "
            f"be downloaded ({why_not_fetched(error)}); fetch https://huggingface.co/{repository} to a folder and name "
            "that"
        ) from error
    if not complete(fetched):  # without a network, huggingface_hub returns an incomplete cache
        raise FileNotFoundError(
            f"the hub's repository {repository!r} is not a whole model folder, or not all of it is in the cache "
            f"({str(fetched)!r}) and there is no network"
        )
    return fetched


def why_not_fetched(error: Exception) -> str:
    """Return a phrase that says why a download failed: the first sentence of the library's message."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, so nothing is downloaded"
    said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return one_line(re.split(r"(?<=[.!?])\s", said.strip())[0].rstrip("."), longest=160)


def weights_checksum(weights: nn.Module | Mapping[str, Tensor]) -> str:
    """Return the sha256 (64 hex digits) of a state dict or of a module's: names, dtypes, shapes and bytes, by name.

    It tells whether ids of a store belong to a tokenizer. Messages show 16 digits of it.

    >>> weights_checksum({"weight": torch.zeros(2, 3)})[:16]
    '38ccb92d6813bc08'
    """
    digest = hashlib.sha256()
    for name, tensor in sorted((weights.state_dict() if isinstance(weights, nn.Module) else weights).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def write_weights(weights: Path | Mapping[str, Tensor], place: Path) -> None:
    """Copy a file or folder of weights to a place, unless it is there already, or write tensors there."""
    if isinstance(weights, Mapping):
        place.touch()
        mode = place.stat().st_mode
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, place)
        place.chmod(mode)  # safetensors writes files that only the owner can read
    elif not (place.exists() and place.samefile(weights)):
        if weights.is_dir():
            shutil.copytree(weights, place, dirs_exist_ok=True)
        else:
            shutil.copyfile(weights, place)


def save_model_folder(
    folder: Path | str,
    config: Mapping[str, Any],
    module: nn.Module,
    *,
    texts: Mapping[str, str | None] | None = None,
    also: Callable[[Path], object] | None = None,
) -> None:
    """Write ``config.json``, ``model.safetensors`` and further files; they are moved into place when all are written.

    The old config is deleted before the first file is moved, and the new one, with the number of the format, is moved
    last: a save that ends in between leaves a folder without a config, and never one of two models. Processes that
    write into one folder wait for each other.

    Args:
        folder: folder to write into; it is created if missing, and files of these names in it are replaced.
        config: JSON data.
        module: module whose state dict is saved, with its dtypes.
        texts: name -> text of further text files; None is left out.
        also: function that writes further files into the folder that it is given.

    Raises:
        OSError: the files cannot be written, and the folder is unchanged; or they cannot be moved, and it has no
            config.

    >>> from tempfile import mkdtemp
    >>> folder = mkdtemp()
    >>> save_model_folder(folder, {"kind": "linear"}, nn.Linear(3, 2))
    >>> config, tensors = read_model_folder(folder)
    >>> config, tensors["weight"].shape
    ({'kind': 'linear'}, torch.Size([2, 3]))
    """
    folder = Path(folder)
    words = {**(texts or {}), CONFIG_FILE: json.dumps({"format": MODEL_FORMAT, **config}, indent=2) + "\n"}
    folder.mkdir(parents=True, exist_ok=True)
    with folder_lock(folder):
        try:
            with filling(folder, beside=folder / _UNFINISHED, last=CONFIG_FILE) as beside:
                if also is not None:
                    also(beside)
                write_weights(module.state_dict(), beside / WEIGHTS_FILE)
                for name, text in words.items():
                    if text is not None:
                        (beside / name).write_text(text, encoding="utf-8")
        except SafetensorError as error:
            raise OSError(f"cannot write the model into {str(folder)!r} ({error})") from error


def read_model_folder(folder: Path | str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the config, without the number of its format, and the tensors of a model folder.

    Raises:
        FileNotFoundError: the folder or one of its two files is missing.
        ValueError: ``config.json`` is not a JSON object, the folder is of another format, or the weights are damaged.
    """
    folder = Path(folder)
    config_file, weights_file = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    for file in (config_file, weights_file):
        if not file.is_file():
            raise FileNotFoundError(f"{str(folder)!r} is not a model folder: it has no {file.name}")
    return read_config(config_file), read_weights(weights_file)


def refuse_other_kind(values: Mapping[str, Any], folder: Path | str, *, kind: str, wanted: str) -> None:
    """Raise ValueError if a model folder holds a model of another kind.

    Args:
        values: JSON object of its ``config.json``.
        folder: folder, for the message.
        kind: ``kind``, or ``model_type`` of transformers, of the wanted models.
        wanted: what they are in words.

    >>> refuse_other_kind({"kind": "generator"}, "runs/model", kind="toklip", wanted="TokLIP")
    Traceback (most recent call last):
    ValueError: 'runs/model' holds a 'generator', and no TokLIP; see `toklip models`
    """
    found = values.get("kind") or values.get("model_type") or ("tokenizer" if "quantizer" in values else kind)
    if found != kind:
        shown = one_line(repr(found), longest=40)
        raise ValueError(f"{str(folder)!r} holds a {shown}, and no {wanted}; see `toklip models`")


def read_config(file: Path) -> dict[str, Any]:
    """Return the JSON object in the ``config.json`` of a model, without the number of its format.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it holds no JSON object, or one of another format.
    """
    values = read_json_object(file)
    refuse_other_format(values, file)
    return {name: value for name, value in values.items() if name != "format"}


def refuse_other_format(values: Mapping[str, Any], file: Path | str) -> None:
    """Raise ValueError unless the config of a model has the number of this format."""
    got = values.get("format")
    if got != MODEL_FORMAT or isinstance(got, bool):
        has = "has no format number" if got is None else f"is of format {one_line(repr(got), longest=40)}"
        raise ValueError(
            f"{file} {has}, and this version of toklip reads format {MODEL_FORMAT}; convert or train the model again, "
            "or use the version that wrote it"
        )
