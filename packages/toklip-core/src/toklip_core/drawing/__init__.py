"""Drawing of pictures id by id, with any model that predicts the next id.

    guidance.py   classifier-free guidance      choice.py    choice of an id by its logits
    settings.py   settings of drawing           sampler.py   the loop, plain and compiled
    models.py     protocol of models of ids     levels.py    levels in which ids are predicted
    noise.py      random numbers                window.py    number of positions of a call

__init__.pyi lists the public names; each is imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
