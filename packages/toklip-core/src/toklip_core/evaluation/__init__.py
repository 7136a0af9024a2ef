"""Evaluation of tokenizers, TokLIPs and CLIPs.

    reconstruction.py  PSNR, SSIM, rFID of a tokenizer    perceptual.py  LPIPS and Inception
    zero_shot.py       classes by their names             retrieval.py   pictures by captions, and the reverse
    search.py          toklip search                      explain.py     what each token says of a text
    matcher.py         a model that matches both          classes.py     names and templates of classes
    report.py          figures and their protocol as text codebook.py    how many codes are in use
    comparison.py      tokenizers on the same pictures

__init__.pyi lists the public names; each is imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
