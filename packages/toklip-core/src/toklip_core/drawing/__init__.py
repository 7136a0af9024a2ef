"""Drawing pictures id by id, with any model that says which id comes next.

    guidance.py   classifier-free guidance      choice.py    an id from its logits
    settings.py   settings of drawing           sampler.py   the loop, plain and compiled
    models.py     what a model of ids offers

__init__.pyi lists the public names; each is imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
