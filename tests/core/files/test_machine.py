"""Errors of the machine are told apart from those of a file, whatever class they have."""

import errno
import os

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import UnidentifiedImageError
from toklip_core.files import is_file, is_machine_error, named_error

from tests.support.starved import NO_MEMORY, raising, system_error


class SafetensorsOwnError(Exception):
    """An error of a class of its own, as that of safetensors."""


@pytest.mark.parametrize("number", ["EMFILE", "ENFILE", "ENOMEM", "EIO", "ESTALE", "ETIMEDOUT", "ENOTCONN", "EAGAIN"])
def test_an_error_that_the_system_has_with_every_file_is_of_the_machine(number):
    assert is_machine_error(OSError(getattr(errno, number), "words"))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        pa.ArrowMemoryError("malloc of size 64 failed"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        NO_MEMORY,
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        RuntimeError("unable to mmap 300 bytes from file </a.pt>: Cannot allocate memory (12)"),
        RuntimeError("unable to open file </a.pt> in read-only mode: Too many open files (24)"),
        RuntimeError("MPS backend out of memory"),
        SafetensorsOwnError(f"I/O error: {os.strerror(errno.EIO)} (os error 5)"),
    ],
)
def test_a_lack_of_memory_or_of_file_handles_is_of_the_machine(error):
    assert is_machine_error(error)


@pytest.mark.parametrize(
    "name",
    ["ECONNRESET", "ECONNREFUSED", "ECONNABORTED", "ENETUNREACH", "EHOSTUNREACH", "ENETDOWN", "EPIPE"],
)
def test_a_lost_connection_is_not(name):
    """It speaks of a download, whose name and advice the message needs."""
    assert not is_machine_error(system_error(name))


@pytest.mark.parametrize(
    "error",
    [
        *(OSError(getattr(errno, name), "words") for name in ("ENOENT", "EACCES", "EISDIR", "ENAMETOOLONG", "EINVAL")),
        OSError("image file is truncated (3 bytes not processed)"),
        OSError("out of memory error when reading image file"),  # Pillow's, also for a damaged TIFF
        UnidentifiedImageError("cannot identify image file"),
        pa.ArrowInvalid("Parquet magic bytes not found in footer"),
        RuntimeError("PytorchStreamReader failed reading zip archive: failed finding central directory"),
        ValueError("the caption 'out of memory' is no number"),
        KeyError("out of memory"),
        SafetensorsOwnError("Error while deserializing header: InvalidHeaderLength"),
        SyntaxError("not a PNG file"),
    ],
)
def test_what_is_wrong_with_a_file_is_not(error):
    assert not is_machine_error(error)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (system_error("EIO"), f"[Errno {errno.EIO}] cat.jpg: {os.strerror(errno.EIO)}"),
        (OSError(errno.ESTALE, "stale", "/a/cat.jpg"), f"[Errno {errno.ESTALE}] cat.jpg: stale: '/a/cat.jpg'"),
        (OSError(errno.EIO, "words", "cat.jpg"), f"[Errno {errno.EIO}] words: 'cat.jpg'"),
        (OSError(errno.EMFILE, "cannot open 'cat.jpg'"), f"[Errno {errno.EMFILE}] cannot open 'cat.jpg'"),
        (MemoryError(), "cat.jpg: there was not enough memory to read it"),
        (pa.ArrowMemoryError("malloc failed"), "cat.jpg: there was not enough memory to read it"),
        (NO_MEMORY, f"cat.jpg: {NO_MEMORY}"),
        (SafetensorsOwnError("I/O error"), "cat.jpg: I/O error"),
    ],
)
def test_a_named_error_has_its_class_its_number_and_its_name_once(error, text):
    named = named_error(error, "cat.jpg")
    assert type(named) is type(error) and str(named) == str(named_error(named, "cat.jpg")) == text
    assert getattr(named, "errno", None) == getattr(error, "errno", None)


def test_the_error_of_a_class_with_other_arguments_is_named_too():
    with pytest.raises(MemoryError) as raised:
        np.empty(2**59, np.int8)
    assert type(raised.value) is not MemoryError
    assert repr(named_error(raised.value, "a.npy")) == "MemoryError('a.npy: there was not enough memory to read it')"


def test_a_file_is_one_or_not_and_a_disk_that_fails_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    names = ["file", "missing", "file/below", "loop", ".", "zero\0"]
    assert [is_file(f"{tmp_path}/{name}") for name in names] == [True, *[False] * 5]
    for name in ("ESTALE", "EIO", "EACCES"):
        monkeypatch.setattr(os, "stat", raising(system_error(name)))
        with pytest.raises(OSError, match=os.strerror(getattr(errno, name))):
            is_file("file")
