"""Which process takes which samples of a batch."""

import functools

import pytest
from toklip_core.config import RunConfig
from toklip_core.training import window_order
from toklip_core.training.order import SampleKeys

#: 13 groups of 100 rows, and windows of 5 groups.
GROUPS, WINDOW = [100] * 13, 500


def order(size, seed, epoch):
    return window_order(GROUPS, WINDOW, seed=seed, epoch=epoch)


def batches(process, processes, *, grouped, accumulate=1, steps=8):
    run = RunConfig(steps=steps, batch_size=80, learning_rate=1e-3, accumulate=accumulate, seed=3)
    return [*SampleKeys(sum(GROUPS), run, 0, process, processes, order, grouped=grouped)]


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("processes", [2, 4, 5])
def test_several_processes_have_the_batches_of_one(processes, accumulate, grouped):
    alone = batches(0, 1, grouped=grouped, accumulate=accumulate)
    shared = [batches(process, processes, grouped=grouped, accumulate=accumulate) for process in range(processes)]
    assert len(alone) == 8 * accumulate
    for micro, expected in enumerate(alone):
        dealt = [one[micro] for one in shared]
        assert {len(keys) for keys in dealt} == {len(expected) // processes}
        assert sorted(key for keys in dealt for key in keys) == sorted(expected)


def test_one_process_takes_samples_in_the_order_of_the_epoch():
    expected = [(0, index) for index in order(sum(GROUPS), 3, 0).tolist()]
    assert [key for keys in batches(0, 1, grouped=True) for key in keys] == expected[: 8 * 80]


@pytest.mark.parametrize(("grouped", "least", "most"), [(False, 5, 5), (True, 1, 3)])
def test_a_process_reads_its_share_of_the_groups_of_a_window(grouped, least, most):
    """The first six batches are of one window of five groups, which five processes share."""
    read = functools.partial(batches, processes=5, grouped=grouped, steps=6)
    groups = [{index // 100 for keys in read(process) for _, index in keys} for process in range(5)]
    assert len(set().union(*groups)) == 5
    assert all(least <= len(own) <= most for own in groups)
