"""The language model that reads pictures.

    model.py     the model for transformers    config.py      its config
    vision.py    ids -> connector's input      processing.py  its processor
    building.py  building and loading          messages.py    messages in transformers' forms

__init__.pyi lists the public names; each is imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
