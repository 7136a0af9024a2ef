"""The TokLIP toolkit's core. Public names are resolved on first use, so importing costs nothing."""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
