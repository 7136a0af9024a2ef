"""Models of ids without weights: the likeliest level is the sum of the condition and all ids and levels so far."""

import torch
from toklip_core.drawing import Drawing, IdLevels

GRID = (2, 3)
ONE = IdLevels((11,), (11,))
#: One id per position, ids of several levels, and an id of 7 bits that is predicted as 3 and 4.
LEVELS = {"one": ONE, "several": IdLevels((11, 5, 7), (11, 5, 7)), "bits": IdLevels((2**7,), (2**3, 2**4))}


class Sums:
    """A condition is a number of each picture, 0 for none; sums are modulo the size of the level."""

    grid = GRID
    device = torch.device("cpu")

    def __init__(self, levels=ONE, drawing=None):
        self.levels, self.drawing = levels, drawing or Drawing()
        self.calls, self.kept = [], []

    def count(self, condition):
        return len(condition)

    def prefill(self, condition, ids, *, guided, steps):
        self.calls.append(("prefill", guided, steps))
        conditions = torch.cat([condition, torch.zeros_like(condition)]) if guided else condition
        totals = Totals(conditions + ids.sum((1, 2)).repeat(2 if guided else 1), self.kept)
        return totals.now[:, None], totals

    def step(self, ids, cache):
        self.calls.append(("step", len(cache.now)))
        cache.now = cache.now + ids.sum(1).repeat(len(cache.now) // len(ids))
        return cache.now[:, None]

    def logits(self, states, before, cache):
        """(R, K_q): the nearer to the sum, the likelier."""
        size = self.levels.sizes[before.shape[1]]
        return -((torch.arange(size) - states - before.sum(1, keepdim=True)) % size).float()


class SumsThatCompile(Sums):
    """The same, with a step that can be compiled."""

    def step_at(self, ids, cache, position):
        cache.now.add_(ids.sum(1).repeat(len(cache.now) // len(ids)))
        return cache.now[:, None]


class Totals:
    """The sums of the rows so far."""

    def __init__(self, now, kept):
        self.now, self._kept = now, kept

    def keep(self, rows):
        self._kept.append(rows)
        self.now = self.now[:rows]

    def tensors(self):
        return [self.now]
