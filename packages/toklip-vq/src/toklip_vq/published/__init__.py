"""Tokenizers from their published files, one file per family.

    llamagen.py, ibq.py, open_magvit2.py, qlip.py, chameleon.py, emu3.py, emu3_5.py, janus.py, unitok.py, vila_u.py,
    tokenflow.py    the families, see docs/reference/tokenizers.md
    unitok_clip.py  UniTok as a CLIP             siglip.py  the tower of VILA-U and TokenFlow
    lightning.py    files of IBQ and Open-MAGVIT2    names.py   names of tensors in files

__init__.pyi lists the public names; each is imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
