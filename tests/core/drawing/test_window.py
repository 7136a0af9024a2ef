"""Laws of the choice of a window by the times of calls."""

import random

import pytest
from toklip_core.drawing.window import WIDTHS, Pace


def paced(seconds, positions, calls=100):
    """Return the widths of calls that take the seconds and draw the positions of each width."""
    pace, widths = Pace(most=64), []
    for _ in range(calls):
        widths.append(pace.width)
        pace.note(pace.width, positions=positions[pace.width], seconds=seconds[pace.width])
    return widths


FITS = dict(zip(WIDTHS, (1, 1.5, 2, 3, 3.5), strict=True))


@pytest.mark.parametrize(
    ("seconds", "chosen", "tried"),
    [
        ((1, 3, 8, 16, 64), 1, (1, 3)),  # a processor whose time is that of the products
        ((1, 1.1, 1.2, 1.4, 3), 16, WIDTHS),
        ((1, 1, 1, 1, 1), 64, WIDTHS),  # a GPU at batch 1
        ((1, 1.6, 0.1, 0.1, 0.1), 1, (1, 3)),  # what is wider than a loss is not tried
    ],
)
def test_the_width_of_most_positions_a_second_is_chosen(seconds, chosen, tried):
    widths = paced(dict(zip(WIDTHS, seconds, strict=True)), FITS)
    assert set(widths[80:]) == {chosen} and set(widths) == set(tried)


def test_the_first_call_of_a_width_is_not_timed():
    pace = Pace(most=64)
    pace.note(1, positions=1, seconds=0.0)
    for seconds in (1.0, 1.0, 1.0):
        pace.note(1, positions=1, seconds=seconds)
    for seconds in (99.0, *[1.0] * 16):
        assert pace.width == 3
        pace.note(3, positions=2, seconds=seconds)
    assert pace.width == 8


def test_a_width_whose_drafts_fit_no_longer_is_left_again():
    pace, seconds = Pace(most=64), dict(zip(WIDTHS, (1, 1.2, 1.5, 9, 9), strict=True))
    for _ in range(60):
        pace.note(pace.width, positions=FITS[pace.width], seconds=seconds[pace.width])
    assert pace.width == 8
    for _ in range(200):
        pace.note(pace.width, positions=1, seconds=seconds[pace.width])
    assert pace.width == 1


def test_widths_whose_drafts_fit_now_and_then_are_judged_by_enough_calls():
    """Counts and seconds are those of toklip-gen-tiny: 3 and 8 positions are both faster than one, by a fifth."""
    counts = {1: [1], 3: [1] * 304 + [2] * 55 + [3] * 26}
    counts[8] = [1] * 236 + [2] * 32 + [3] * 11 + [5] * 10 + [4] * 7 + [6] * 5 + [7] * 4
    counts[16] = counts[64] = counts[8]
    seconds, chosen = {1: 1, 3: 1.04, 8: 1.31, 16: 1.74, 64: 3.91}, []
    for seed in range(200):
        pace, rng = Pace(most=63), random.Random(seed)
        for _ in range(100):
            pace.note(pace.width, positions=rng.choice(counts[pace.width]), seconds=seconds[pace.width])
        chosen.append(pace.width)
    assert sum(width in (3, 8) for width in chosen) >= 190


def test_a_width_that_no_call_can_have_is_not_tried():
    pace = Pace(most=63)
    for _ in range(60):
        assert pace.width <= 16
        pace.note(pace.width, positions=pace.width, seconds=1.0)
    assert pace.width == 16
