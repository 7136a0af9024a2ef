"""A machine that fails: no file can be opened, or what is called raises another error of the system."""

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

#: What torch raises on a processor without enough memory, of the class of many other errors.
NO_MEMORY = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "300000000 bytes. Error code 12 (Cannot allocate memory)"
)


@contextmanager
def no_file_handles() -> Iterator[None]:
    """Too many files are open while inside; what is tested must have run before, as modules cannot be imported."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def system_error(name: str) -> OSError:
    """The error of the system with a name, such as "EIO"."""
    number = getattr(errno, name)
    return OSError(number, os.strerror(number))


def raising(error: Exception) -> Callable[..., Any]:
    """A function that raises an error, whatever it is called with."""

    def fail(*arguments: Any, **options: Any) -> Any:
        raise error

    return fail


@contextmanager
def failing_to_open(suffix: str, error: Exception) -> Iterator[None]:
    """Files whose names end so cannot be opened while inside."""
    opened = Path.open

    def fail(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name.endswith(suffix):
            raise error
        return opened(path, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", fail)
        yield
