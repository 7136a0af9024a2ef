"""The language model that sees.

    model.py    the model of transformers     config.py      its config
    vision.py   pictures -> embeddings        processing.py  its processor
    building.py making and loading one        messages.py    conversations as transformers has them

Public names stand in __init__.pyi; each is imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
