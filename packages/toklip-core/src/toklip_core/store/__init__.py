"""The token store: a folder of Parquet files with the ids of pictures.

    format.py   metadata, names of parts     encode.py       pictures -> store: `toklip encode`
    writer.py   writes parts                 decode.py       store -> pictures: `toklip decode`
    reader.py   reads a store                columns.py      the models that make the columns
    locks.py    locks of writers             part_reader.py  opens, checks and reads one part

__init__.pyi lists the public names; each is imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
