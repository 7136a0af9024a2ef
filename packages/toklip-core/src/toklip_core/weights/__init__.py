"""Weights: reading, loading and saving them, and numbers that are not finite.

    files.py  model folders, checkpoints, the hub    finite.py  NaN and infinity are refused
    shapes.py  modules without values, for weights from a file

Public names stand in __init__.pyi; each is imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
