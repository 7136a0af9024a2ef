"""The token store: a folder of Parquet files with the ids of pictures.

    format.py    metadata, names of parts    encode.py         pictures -> store: `toklip encode`
    tables.py    rows as tables of Arrow     reading.py        pictures -> squares, in worker processes
    writer.py    writes parts                columns.py        the models that make the columns
    reader.py    reads a store               batch_encoder.py  columns for other programs: Ray Data, Spark, `datasets`
    locks.py     locks of writers            ray_engine.py     `toklip encode --engine ray`
    key_set.py   keys that a store has       adopt.py          rows that other programs wrote -> store
    decode.py    store -> pictures           part_reader.py    opens, checks and reads one part
    row_cache.py rows that stay in memory    settings.py        what a store is to hold

__init__.pyi lists the public names; each is imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
