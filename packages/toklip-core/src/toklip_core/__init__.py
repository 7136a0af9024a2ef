"""The TokLIP toolkit's core. Public names are resolved on first use, so importing costs nothing."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toklip_core.encoder import SemanticEncoder
    from toklip_core.model import Encoded, TokLIP, load_model
    from toklip_core.plugins import TokenizerSpec, VQTokenizer, hookimpl, load_tokenizer

__version__ = "0.1.0"

#: Public name -> module that defines it.
_PUBLIC = {
    "Encoded": "model",
    "SemanticEncoder": "encoder",
    "TokLIP": "model",
    "TokenizerSpec": "plugins",
    "VQTokenizer": "plugins",
    "hookimpl": "plugins",
    "load_model": "model",
    "load_tokenizer": "plugins",
}

__all__ = [
    "Encoded",
    "SemanticEncoder",
    "TokLIP",
    "TokenizerSpec",
    "VQTokenizer",
    "__version__",
    "hookimpl",
    "load_model",
    "load_tokenizer",
]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__
