"""Files that are whole or not there, locks, JSON and text.

    atomic.py        written beside, then renamed        locks.py  locks that end with their process
    json_objects.py  JSON files that hold one object     text.py   text as files, tokenizers and messages hold it
    tables.py        CSV, TSV and JSONL of pictures      special.py  pipes, sockets and devices are refused

Public names stand in __init__.pyi; each is imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
