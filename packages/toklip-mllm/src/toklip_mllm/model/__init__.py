"""The language model that reads pictures, and draws them if it has an image head.

    model.py       the model for transformers     config.py       its config
    vision.py      ids -> connector's input       processing.py   its processor
    building.py    building and loading           messages.py     messages in transformers' forms
    pictures.py    pictures in any form           outputs.py      what the model returns
    image_head.py  states -> logits of ids        head_config.py  settings of the image head
    predictor.py   the model for a sampler        logits.py       a check of the logits in generate
    adapters.py    adapters of peft

__init__.pyi lists the public names; each is imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
