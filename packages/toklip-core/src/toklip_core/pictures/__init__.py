"""Pictures on disk into pixels.

    find.py     inputs -> entries, shared among processes    open.py      a file -> an upright RGB picture
    upright.py  any mode -> 8-bit RGB on white               pixels.py    RGB picture -> pixels, and back
    tars.py     members of a tar, without extracting         lazy.py      pictures that are opened when they are needed
    ten_crop.py twenty views of a picture                    sheet.py     pictures and words on one sheet
    png_texts.py  PNG files with long texts                  parquet_rows.py  pictures in a column of a Parquet file
    outputs.py  files that can be written and are not input
    random_crops.py  random parts of a picture, for training
    grids.py    the size of a picture -> the grid of its ids
    limit.py    Pillow's own limit of pixels, raised where the size is checked here
    scenes.py   scenes as pictures that evaluations read

__init__.pyi lists the public names; each is imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
