"""Settings, the ranges of the numbers in them, and where to compute.

    settings.py  pydantic models, TOML, --set    ranges.py  largest seeds, counts and sizes
    compute.py   device, dtype, progress bar

Public names stand in __init__.pyi; each is imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
