"""Autoregressive generation of pictures: next-id prediction with TokLIP tokens at its input.

Public names are resolved on first use, so importing costs nothing.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
