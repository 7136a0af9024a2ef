"""The semantic encoder and TokLIP.

    encoder.py  codes -> causal tokens           toklip.py     encoder, text tower and tokenizer in one
    trunk.py    the blocks of a vision tower     published.py  names and layout of published weights
    text.py     the text tower, its tokenizer    clip.py       a CLIP of two towers: the teacher
    attention.py  attention over a cache of fixed size
    stream.py   features of pictures that are being drawn
    level_transformer.py  state of a model -> logits of residual levels

__init__.pyi lists the public names; each is imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
