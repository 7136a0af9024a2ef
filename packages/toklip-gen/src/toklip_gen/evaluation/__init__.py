"""Evaluation of drawn pictures: `toklip evaluate generation`.

    pictures.py    the evaluation of pictures     generators.py   of a generator, on pictures that it draws
    frechet.py     Frechet distance and others    references.py   statistics of real pictures
    scene_match.py scenes and their captions      adm_npz.py      pictures in the file of ADM's evaluator

__init__.pyi lists the public names; each is imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
