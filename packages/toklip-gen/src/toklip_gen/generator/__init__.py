"""The generator: pictures drawn id by id.

    model.py    the transformer          conditions.py  classes and texts
    inputs.py   ids, codes, tokens       predictor.py   what a sampler draws with
    config.py   sizes and conditions     pipeline.py    prompts -> pictures
    blocks.py   its blocks               llamagen.py    LlamaGen's published generators
    t5.py       words of T5              packed_linear.py  weights as the processor reads them best

__init__.pyi lists the public names; each is imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
