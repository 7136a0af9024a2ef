"""The command `toklip`.

    main.py     the group, and encode, decode, scenes    group.py  groups with plugins' commands, errors as lines
    models.py   commands of models                       train.py  toklip train encoder | teacher
    task.py     training tasks as commands               demo.py   toklip demo
    options.py  options that commands share              compare.py  toklip compare tokenizers
    app.py      toklip app                               deferral.py  large packages, initialised when they are used
    quotes.py   texts that were typed without quotes     process.py  the command's process

__init__.pyi lists the public names; each is imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
