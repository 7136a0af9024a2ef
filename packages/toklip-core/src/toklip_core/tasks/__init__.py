"""The trainings of `toklip train` in this package.

    settings.py  settings and recipes    encoder.py  toklip train encoder
    held_out.py  figures during a run    teacher.py  toklip train teacher
    projector.py initial values of the projector

__init__.pyi lists the public names; each is imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
