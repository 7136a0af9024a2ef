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

# Errors of a download. ETIMEDOUT is not among them, because disks that are mounted over a network have it, too.
_OF_A_DOWNLOAD = {
    errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN,
    errno.EPIPE,
}  # fmt: skip

# Words of errors without a number: torch's allocators and readers raise a RuntimeError, safetensors its own class.
_SYSTEM = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE)
_WORDS = re.compile(
    "|".join(["out of memory", "(?:allocate|enough) memory", *(re.escape(os.strerror(number)) for number in _SYSTEM)]),
    re.IGNORECASE,
)


def is_machine_error(error: BaseException) -> bool:
    """Return whether an error speaks of the machine, such as too little memory, and not of the file that was read.

    An OSError without a number, as decoders raise for damaged files, speaks of the file. A lost connection
    is not one, because it is reported as a failed download.

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
        return error.errno is not None and error.errno > 0 and error.errno not in _OF_A_FILE | _OF_A_DOWNLOAD
    # Texts of these may quote a file, and nothing that reads files tells of the machine by them.
    return not isinstance(error, ValueError | LookupError) and _WORDS.search(str(error)) is not None


def why_unreadable(error: Exception) -> str:
    """Return why a file cannot be read, for messages."""
    return "there was not enough memory to read it" if isinstance(error, MemoryError) else str(error)


def named_error(error: Exception, name: str) -> Exception:
    """Return an error of the same class, and with the same number of the system, that names what was read.

    >>> named_error(OSError(errno.EIO, "Input/output error"), "cat.jpg")
    OSError(5, 'cat.jpg: Input/output error')
    """
    if isinstance(error, OSError) and error.errno is not None:
        words = str(error.strerror)
        is_named = words.startswith(f"{name}: ") or repr(name) in words or str(error.filename) == name
        file = [] if error.filename is None else [error.filename]
        # Python takes the class that the number has.
        return OSError(error.errno, words if is_named else f"{name}: {words}", *file)
    words = str(error) if str(error).startswith(f"{name}: ") else f"{name}: {why_unreadable(error)}"
    try:
        return type(error)(words)
    except TypeError:  # a class that takes other arguments, such as numpy's own MemoryError
        return MemoryError(words) if isinstance(error, MemoryError) else RuntimeError(words)
