"""Questions about pictures: `toklip evaluate vqa`, and the plugin for lmms-eval.

    vqa.py        toklip evaluate vqa                questions.py  questions with their right answers
    answers.py    when an answer is right            report.py     figures over questions
    generation.py answers to a batch of questions    settings.py   questions that are asked during a training
    lmms_eval.py  the plugin of lmms-eval

__init__.pyi lists the public names; each is imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
