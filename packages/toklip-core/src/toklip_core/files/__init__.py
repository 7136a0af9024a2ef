"""Atomic writing, locks, JSON, tables and text files.

    atomic.py   files that are whole or missing      locks.py    locks that end with their process
    text.py     text and JSON files, and messages    special.py  refuses pipes, sockets and devices
    tables.py   CSV, TSV and JSONL of pictures       machine.py  errors that are no file's fault

__init__.pyi lists the public names; each is imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
