"""Errors of the machine are told apart from those of a file, whatever class they have."""

import errno
import os

import pyarrow as pa
import pytest
import torch
from PIL import UnidentifiedImageError
from toklip_core.files import is_machine_error

ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "300000000 bytes. Error code 12 (Cannot allocate memory)"
)


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
        RuntimeError(ALLOCATOR),
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
