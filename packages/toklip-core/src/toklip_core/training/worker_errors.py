"""Errors in the worker processes of a DataLoader, raised in the main process as they are.

torch puts the worker's traceback before the message, which no command can print in one line. So workers return the
errors of users as values, and the main process raises them.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.utils.data import get_worker_info

#: The errors that commands print in one line.
USER_ERRORS = (OSError, LookupError, ValueError, MemoryError)


def portable(error: Exception) -> Exception:
    """Return one of USER_ERRORS as a value that any process can rebuild.

    It has the built-in class and the message of ``error``, and its traceback as a note.

    >>> portable(FileNotFoundError("a.png is not there"))
    OSError('a.png is not there')
    """
    kind = next(kind for kind in USER_ERRORS if isinstance(error, kind))
    sent = kind(error.args[0] if isinstance(error, KeyError) and error.args else str(error))  # str(KeyError) is a repr
    sent.add_note("".join(traceback.format_exception(error)))
    return sent


def as_it_is(batch: Any) -> Any:  # noqa: ANN401 - a DataLoader's collate_fn is typed so
    """Return a batch that is collated already, or an error in its place."""
    return batch


@dataclass(frozen=True)
class CollatedSamples:
    """A data set whose batches are collated in :meth:`__getitems__`; in a worker, an error is a batch.

    Args:
        samples: data set with :meth:`__getitem__`.
        collate: function from a list of samples to a batch.
    """

    samples: Any
    collate: Callable[[list[Any]], Any]

    def __getitems__(self, keys: list[Any]) -> Any:  # noqa: ANN401 - whatever the collate makes
        """Return the batch of keys."""
        try:
            return self.collate([self.samples[key] for key in keys])
        except USER_ERRORS as error:
            if get_worker_info() is None:
                raise
            return portable(error)
