"""The generator, which draws pictures id by id.

    model.py    the transformer          conditions.py  classes and texts
    inputs.py   ids, codes, tokens       predictor.py   the model for a sampler
    config.py   sizes and conditions     pipeline.py    prompts -> pictures
    blocks.py   its blocks               llamagen.py    LlamaGen's published generators
    t5.py       words of T5              packed_linear.py  linear layers for processors
    settings.py the model that draws, by name, and how it is loaded

__init__.pyi lists the public names; each is imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
