"""Large packages that initialise themselves when they are used, so that one module of them can be imported alone.

``import open_clip.transformer`` runs open_clip's ``__init__`` first, which imports transformers, scipy, torchvision and
the compiler of torch, seconds in all, before the one small module that is wanted. The command ``toklip`` puts that off;
a program that imports the toolkit is not affected.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from types import ModuleType
from typing import Any

#: Packages whose ``__init__`` is slow, outer ones first. timm and open_clip import single modules of torchvision.
_SLOW = ("open_clip", "timm", "timm.models", "torchvision", "torchvision.models", "torchvision.ops")

#: Held while a package is initialised; other threads that ask it for a name wait for that.
_lock = threading.RLock()
#: Packages that the thread with the lock is initialising.
_initializing: set[ModuleType] = set()


def defer_packages() -> None:
    """Let timm, open_clip and torchvision run their ``__init__`` when a name of it is first asked for, not on import.

    Modules in them can be imported before that, and stay the same modules afterwards. Packages that are imported
    already are left alone. It changes the whole process, so only the command calls it, at its start.
    """
    for name in _SLOW:
        parent, _, child = name.rpartition(".")
        if name in sys.modules or (parent and parent not in sys.modules):
            continue
        spec = importlib.util.find_spec(name)
        if spec is None:
            continue
        module = importlib.util.module_from_spec(spec)
        module.__class__ = _DeferredPackage
        sys.modules[name] = module
        if parent:
            setattr(sys.modules[parent], child, module)
        if name == "timm":
            from importlib.metadata import version

            module.__dict__["__version__"] = version(name)  # timm's own modules ask for it


class _DeferredPackage(ModuleType):
    """A package that is in sys.modules, and whose ``__init__`` has not run or not ended yet."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the package has
        with _lock:
            if self in _initializing:  # this thread runs its __init__, which looks for names that are not there yet
                raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}", name=name, obj=self)
            outer = sys.modules.get(self.__name__.rpartition(".")[0])
            if isinstance(outer, _DeferredPackage) and outer not in _initializing:
                _initialize(outer)
            _initialize(self)
        return getattr(self, name)


def _initialize(package: ModuleType) -> None:
    if type(package) is ModuleType:
        return  # its outer package, or another thread, did it
    assert package.__spec__ is not None and package.__spec__.loader is not None
    _initializing.add(package)
    try:
        package.__spec__.loader.exec_module(package)
        package.__class__ = ModuleType
    finally:
        _initializing.remove(package)
