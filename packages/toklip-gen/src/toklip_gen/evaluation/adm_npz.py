"""Pictures as the .npz file that ADM's evaluator reads: ``arr_0``, (n, H, W, 3), uint8; any number, one in memory.

Source: openai/guided-diffusion, evaluations/evaluator.py.
"""

from __future__ import annotations

import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray
from toklip_core.config import MAX_PIXELS
from toklip_core.files import is_machine_error, one_line, refuse_special, replacing

#: Name of the array in the file.
ARRAY = "arr_0"

#: Errors of zipfile, zlib and numpy for a file that is cut short or is not an .npz.
TORN_ARCHIVE = (
    OSError, ValueError, LookupError, EOFError, RuntimeError, SyntaxError, MemoryError,
    struct.error, zlib.error, zipfile.BadZipFile,
)  # fmt: skip


class SampleWriter:
    """Writer of pictures to an .npz, which appears, complete, at :meth:`close`.

    Until then the pictures are in a file beside it, because an array begins with its number of entries.

    Args:
        path: NAME.npz.

    Raises:
        ValueError: the name does not end in .npz.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if self.path.suffix != ".npz":
            raise ValueError(f"got {str(path)!r}; ADM's evaluator reads a file NAME.npz")
        self._count = 0
        self._size: tuple[int, ...] = (0, 0, 3)
        self._raw = self.path.with_name(f".{self.path.name}.raw")
        self._file = self._raw.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            self._raw.unlink(missing_ok=True)
            self._file.close()

    def add(self, rgb: NDArray[np.uint8]) -> None:
        """Add pictures (B, H, W, 3), uint8; all must have the same size."""
        assert not self._count or rgb.shape[1:] == self._size
        self._size = rgb.shape[1:]
        self._count += len(rgb)
        self._file.write(np.ascontiguousarray(rgb).tobytes())

    def close(self) -> None:
        """Write the file."""
        self._file.close()
        header = {"descr": "|u1", "fortran_order": False, "shape": (self._count, *self._size)}
        with (
            replacing(self.path) as beside,
            zipfile.ZipFile(beside, "w", zipfile.ZIP_STORED, allowZip64=True) as archive,
            archive.open(f"{ARRAY}.npy", "w", force_zip64=True) as file,
            self._raw.open("rb") as raw,
        ):
            np.lib.format.write_array_header_2_0(file, header)
            shutil.copyfileobj(raw, file)


def read_samples(path: Path) -> Iterator[NDArray[np.uint8]]:
    """Yield the pictures (H, W, 3), uint8, of an .npz, with one in memory at a time.

    Raises:
        ValueError: the file is not an .npz, or its array has no 8-bit pictures.
    """
    refuse_special(path)
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{ARRAY}.npy") as file:
            shape, dtype = _header(file)
            if len(shape) != 4 or shape[-1] != 3 or min(shape) < 1 or dtype != np.uint8:
                raise ValueError(f"{path} has an array of {shape} {dtype}; wanted pictures (n, H, W, 3) of 8 bits")
            if shape[1] * shape[2] > MAX_PIXELS:
                raise ValueError(f"{path} has pictures of {shape[1]} x {shape[2]}; the limit is {MAX_PIXELS} pixels")
            length = int(np.prod(shape[1:]))
            for _ in range(shape[0]):
                data = file.read(length)
                if len(data) < length:
                    raise ValueError(f"{path} is cut short")
                yield np.frombuffer(data, np.uint8).reshape(shape[1:])
    except TORN_ARCHIVE as error:
        if str(path) in str(error) or is_machine_error(error):
            raise
        words = one_line(error, longest=120) or type(error).__name__
        raise ValueError(f"{path} is not an .npz with {ARRAY!r} ({words}), as ADM's evaluator reads it") from error


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if fortran:
        raise ValueError("got an array in Fortran's order; wanted C's")
    return shape, dtype
