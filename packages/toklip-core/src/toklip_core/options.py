"""Types of options that several commands have. Imports click only, as the module of a command does."""

from __future__ import annotations

import click

from toklip_core.ranges import LARGEST_COUNT, LARGEST_SEED

#: How many: from 1 on.
COUNT = click.IntRange(1, LARGEST_COUNT)
#: How many, or which: from 0 on.
NUMBER = click.IntRange(0, LARGEST_COUNT)
#: The side of a picture in pixels: so many that one of this side can be held in memory.
SIDE = click.IntRange(1, 2**14)
SEED = click.IntRange(0, LARGEST_SEED)
