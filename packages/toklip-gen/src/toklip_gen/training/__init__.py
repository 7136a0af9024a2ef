"""Training a generator: `toklip train generator`.

    task.py      next-id prediction    samples.py   ids or pixels, each with a class or a caption
    settings.py  settings and recipes

__init__.pyi lists the public names; each is imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
