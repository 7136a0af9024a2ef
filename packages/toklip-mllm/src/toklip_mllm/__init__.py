"""Comprehension and generation: TokLIP tokens in any causal language model of transformers.

Importing this registers the classes with transformers' Auto classes, at once or as soon as these are imported. Public
names are resolved on first use, so importing costs nothing.
"""

import lazy_loader

from toklip_mllm.registration import register

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

register()
