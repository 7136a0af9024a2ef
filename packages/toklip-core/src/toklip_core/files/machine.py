"""Errors of the machine, told apart from errors of a file: only a file that is at fault may be deleted or passed over.

A good file cannot be read either while memory or file descriptors run out, or a disk or its network fails.
"""

from __future__ import annotations

import errno
import os
import re

# Errors that speak of a path, or of a place in a file, which a damaged one may name wrongly.
_OF_A_FILE = {
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EACCES, errno.EPERM, errno.ELOOP,
    errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.EOVERFLOW, errno.ENXIO, errno.ESPIPE,
}  # fmt: skip

# Words of errors without a number: torch's allocators and readers raise a RuntimeError, safetensors its own class.
_SYSTEM = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE)
_WORDS = re.compile(
    "|".join(["out of memory", "(?:allocate|enough) memory", *(re.escape(os.strerror(number)) for number in _SYSTEM)]),
    re.IGNORECASE,
)


def is_machine_error(error: BaseException) -> bool:
    """Return whether an error speaks of the machine, such as too little memory, and not of the file that was read.

    An OSError without a number, as decoders raise for damaged files, speaks of the file.

    >>> is_machine_error(OSError(errno.EMFILE, "Too many open files"))
    True
    >>> is_machine_error(OSError("image file is truncated"))
    False
    >>> is_machine_error(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))
    True
    """
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno is not None and error.errno > 0 and error.errno not in _OF_A_FILE
    # Texts of these may quote a file, and nothing that reads files tells of the machine by them.
    return not isinstance(error, ValueError | LookupError) and _WORDS.search(str(error)) is not None
