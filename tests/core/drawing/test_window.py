"""Laws of the choice of a window by the times of calls."""

import random

import pytest
from toklip_core.drawing.window import WIDTHS, WidthChooser


def chosen_widths(seconds, positions, calls=100):
    """Return the widths of calls that take the seconds and draw the positions of each width."""
    chooser, widths = WidthChooser(most=64), []
    for _ in range(calls):
        widths.append(chooser.width)
        chooser.note(chooser.width, positions=positions[chooser.width], seconds=seconds[chooser.width])
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
    widths = chosen_widths(dict(zip(WIDTHS, seconds, strict=True)), FITS)
    assert set(widths[80:]) == {chosen} and set(widths) == set(tried)


def test_a_width_is_chosen_once_it_was_tried_in_full_and_not_before():
    chooser, seconds = WidthChooser(most=64), dict(zip(WIDTHS, (1, 1.1, 1.2, 1.4, 3), strict=True))
    chosen = []
    for _ in range(4 + 17 + 5):
        chooser.note(chooser.width, positions=FITS[chooser.width], seconds=seconds[chooser.width])
        chosen.append(chooser.chosen)
    assert chosen == 20 * [1] + 6 * [3] and chooser.width == 8, "a picture may end while 8 is tried"


def test_the_first_call_of_a_width_is_not_timed():
    chooser = WidthChooser(most=64)
    chooser.note(1, positions=1, seconds=0.0)
    for seconds in (1.0, 1.0, 1.0):
        chooser.note(1, positions=1, seconds=seconds)
    for seconds in (99.0, *[1.0] * 16):
        assert chooser.width == 3
        chooser.note(3, positions=2, seconds=seconds)
    assert chooser.width == 8


def test_a_width_whose_drafts_fit_no_longer_is_left_again():
    chooser, seconds = WidthChooser(most=64), dict(zip(WIDTHS, (1, 1.2, 1.5, 9, 9), strict=True))
    for _ in range(60):
        chooser.note(chooser.width, positions=FITS[chooser.width], seconds=seconds[chooser.width])
    assert chooser.width == 8
    for _ in range(200):
        chooser.note(chooser.width, positions=1, seconds=seconds[chooser.width])
    assert chooser.width == 1


def test_widths_whose_drafts_fit_now_and_then_are_judged_by_enough_calls():
    """Counts and seconds are those of toklip-gen-tiny: 3 and 8 positions are both faster than one, by a fifth."""
    counts = {1: [1], 3: [1] * 304 + [2] * 55 + [3] * 26}
    counts[8] = [1] * 236 + [2] * 32 + [3] * 11 + [5] * 10 + [4] * 7 + [6] * 5 + [7] * 4
    counts[16] = counts[64] = counts[8]
    seconds, chosen = {1: 1, 3: 1.04, 8: 1.31, 16: 1.74, 64: 3.91}, []
    for seed in range(200):
        chooser, rng = WidthChooser(most=63), random.Random(seed)
        for _ in range(100):
            chooser.note(chooser.width, positions=rng.choice(counts[chooser.width]), seconds=seconds[chooser.width])
        chosen.append(chooser.width)
    assert sum(width in (3, 8) for width in chosen) >= 190


def test_a_width_that_no_call_can_have_is_not_tried():
    chooser = WidthChooser(most=63)
    for _ in range(60):
        assert chooser.width <= 16
        chooser.note(chooser.width, positions=chooser.width, seconds=1.0)
    assert chooser.width == 16
