"""Width of the window: how many positions a call of the model draws at most, given or chosen by times.

The ids do not depend on it, see sampler.py; only the number of calls and the time of each do.
"""

from __future__ import annotations

from typing import Literal

from toklip_core.config import LARGEST_COUNT, refuse_outside

#: Largest number of positions of a call; "auto" times the first calls, and chooses.
Window = int | Literal["auto"]

#: Widths to choose from. The next is tried only if the last was faster than those before. With guidance a position of a
#: picture is two rows. A call of GPT-B on a processor of AMD (Zen 4) with 3 positions takes as long as with 1, with 4
#: 1.25 times as long in float32 and 1.09 in bfloat16, with 8 1.67 and 1.44 times, and with 16 2.76 and 2.33 times.
WIDTHS = (1, 3, 8, 16, 64)
#: Calls of a width before it is judged. How many positions a call draws differs from call to call, so that wider ones
#: need more of them: toklip-gen-tiny draws 1, 2 or 3 with a window of 3, and the standard error of the mean is 11 %
#: after 16 calls; it would be 26 % after 3.
#: One more call comes first, in which kernels are chosen, or compiled.
_CALLS_OF_ONE, _CALLS_OF_MORE = 3, 16


def refuse_window(window: Window) -> None:
    """Raise ValueError unless a window is a number of positions, 1 or more, or "auto"."""
    if isinstance(window, int):
        refuse_outside("window", window, 1 <= window <= LARGEST_COUNT, f"1 to {LARGEST_COUNT}, or 'auto'")
    elif window != "auto":
        raise ValueError(f"got window = {window!r}; wanted a number of positions, or 'auto'")


class WidthChooser:
    """Choice of a width by the first calls: each of :data:`WIDTHS` is tried, as long as that is faster.

    Afterwards the width that draws the most positions in a second is taken. How many a call draws is counted on, so
    another width is chosen when the drafts of one stop fitting.

    Args:
        most: number of positions that a call can draw at all; wider windows are not tried.

    >>> chooser = WidthChooser(most=63)
    >>> seconds = {1: 0.1, 3: 0.2}
    >>> for _ in range(25):
    ...     chooser.note(chooser.width, positions=chooser.width // 3 + 1, seconds=seconds[chooser.width])
    >>> chooser.chosen  # 3 draws two positions in the time of two calls with 1: no gain
    1
    """

    def __init__(self, most: int) -> None:
        self._widths = [width for width in WIDTHS if width <= max(most, 1)]
        #: Width -> calls, positions that they drew, and the least seconds of a call.
        self._notes: dict[int, tuple[int, int, float]] = {}

    @property
    def width(self) -> int:
        """Width of the next call, which may be one that is only tried."""
        best = 0.0
        for width in self._widths:
            if not self._is_judged(width):
                return width
            if self._rate(width) <= best:
                break
            best = self._rate(width)
        return self.chosen

    @property
    def chosen(self) -> int:
        """Width that draws the most positions in a second, of those that were tried in full; 1 before any was."""
        return max(filter(self._is_judged, self._notes), key=self._rate, default=1)

    def note(self, width: int, *, positions: int, seconds: float) -> None:
        """Note that a call with a window of this width drew so many positions in so many seconds."""
        calls, before, least = self._notes.get(width, (0, 0, float("inf")))
        # The first call of a width is not timed.
        self._notes[width] = (calls + 1, before + positions, min(least, seconds) if calls else least)

    def _is_judged(self, width: int) -> bool:
        calls, _, _ = self._notes.get(width, (0, 0, 0.0))
        return calls > (_CALLS_OF_ONE if width == 1 else _CALLS_OF_MORE)

    def _rate(self, width: int) -> float:
        calls, positions, seconds = self._notes[width]
        return positions / calls / seconds
