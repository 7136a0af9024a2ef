"""Models of ids without weights: the likeliest next id is the sum of the condition and all ids so far, modulo K."""

import torch
from toklip_core.drawing import Drawing

#: K.
IDS = 11
GRID = (2, 3)


class Sums:
    """A condition is a number of each picture, 0 for none."""

    codebook_size = IDS
    grid = GRID
    device = torch.device("cpu")

    def __init__(self, drawing=None):
        self.drawing = drawing or Drawing()
        self.calls, self.kept = [], []

    def count(self, condition):
        return len(condition)

    def prefill(self, condition, ids, *, guided, steps):
        self.calls.append(("prefill", guided, steps))
        conditions = torch.cat([condition, torch.zeros_like(condition)]) if guided else condition
        totals = Totals(conditions + ids.sum(1).repeat(2 if guided else 1), self.kept)
        return logits_of(totals.now), totals

    def step(self, ids, cache):
        self.calls.append(("step", len(cache.now)))
        cache.now = cache.now + ids.repeat(len(cache.now) // len(ids))
        return logits_of(cache.now)


class SumsThatCompile(Sums):
    """The same, with a step that can be compiled."""

    def step_at(self, ids, cache, position):
        cache.now.add_(ids.repeat(len(cache.now) // len(ids)))
        return logits_of(cache.now)


class Totals:
    """The sums of the rows so far."""

    def __init__(self, now, kept):
        self.now, self._kept = now, kept

    def keep(self, rows):
        self._kept.append(rows)
        self.now = self.now[:rows]

    def tensors(self):
        return [self.now]


def logits_of(totals):
    """(R, K): the nearer to the sum, the likelier."""
    return -((torch.arange(IDS) - totals[:, None]) % IDS).float()
