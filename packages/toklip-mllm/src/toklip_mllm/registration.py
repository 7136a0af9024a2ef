"""Registration with transformers' Auto classes, without importing transformers.

``import toklip_mllm`` must be enough for ``AutoModel.from_pretrained``, and ``toklip --help``, which imports every
plugin, must stay fast. So each of our modules is imported, and registers its class, right after the Auto class that
needs it; at once, if that has been imported already.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

#: Module of transformers -> module of ours that registers a class in it.
_MODULES = {
    "transformers.models.auto.configuration_auto": "toklip_mllm.model.config",
    "transformers.models.auto.modeling_auto": "toklip_mllm.model.model",
    "transformers.models.auto.processing_auto": "toklip_mllm.model.processing",
}


def register() -> None:
    """Register the classes, at once or as soon as their Auto classes are imported."""
    later = _Finder()
    for theirs, ours in _MODULES.items():
        if theirs in sys.modules:
            import_module(ours)
        else:
            later.waiting.add(theirs)
    if later.waiting:
        sys.meta_path.insert(0, later)


class _Finder(MetaPathFinder):
    """Finder that adds the import of our modules after that of transformers' modules."""

    def __init__(self) -> None:
        self.waiting: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.waiting:
            return None
        self.waiting.discard(fullname)
        if not self.waiting:
            sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _ImportAfter(spec.loader, _MODULES[fullname])
        return spec


class _ImportAfter(Loader):
    """Loader that imports a module of ours after another loader has finished."""

    def __init__(self, loader: Loader, ours: str) -> None:
        self._loader = loader
        self._ours = ours

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        import_module(self._ours)
