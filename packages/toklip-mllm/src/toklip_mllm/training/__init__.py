"""Training of a language model that reads pictures: `toklip train mllm`.

    task.py            toklip train mllm            settings.py  settings and recipes
    sources.py         conversations by index       samples.py   conversations -> batches
    conversations.py   reading conversations        lora.py      low-rank adapters
    small_language.py  a small language model, and a tokenizer of words

__init__.pyi lists the public names; each is imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
