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
        self.calls, self.kept, self.read = [], [], []

    def count(self, condition):
        return len(condition)

    def prefill(self, condition, ids, *, guided, steps):
        self.calls.append(("prefill", guided, steps))
        conditions = torch.cat([condition, torch.zeros_like(condition)]) if guided else condition
        totals = Totals(conditions, ids.sum(-1), self.kept)
        so_far = totals.after(torch.tensor([ids.shape[1] - 1]))[:, 0] if ids.shape[1] else conditions[:, None]
        return so_far, totals

    def step(self, ids, cache):
        self.calls.append(("step", len(cache.conditions)))
        self.read.append((cache.length, ids.shape[1]))
        start, cache.length = cache.length, cache.length + ids.shape[1]
        return cache.read(ids, torch.arange(start, cache.length))

    def logits(self, states, before, cache):
        """(M, K_q): the nearer to the sum, the likelier."""
        size = self.levels.sizes[before.shape[1]]
        return -((torch.arange(size) - states - before.sum(1, keepdim=True)) % size).float()


class SumsThatCompile(Sums):
    """The same, with a step that can be compiled."""

    def step_at(self, ids, cache, positions):
        return cache.read(ids, positions)


class Totals:
    """The conditions of the rows, and the sums of the ids of each position of the pictures, of which some are read."""

    def __init__(self, conditions, sums, kept):
        self.conditions, self.length, self._kept = conditions, sums.shape[1], kept
        self._sums = torch.zeros(len(sums), GRID[0] * GRID[1], dtype=torch.int64)
        self._sums[:, : self.length] = sums

    def read(self, ids, positions):
        """Take ids (B, n, Q) at positions (n,); return the sums (R, n, 1) up to each."""
        self._sums.index_copy_(1, positions, ids.sum(-1))
        return self.after(positions)

    def after(self, positions):
        """The conditions and the ids up to positions (n,), (R, n, 1)."""
        totals = self._sums.cumsum(1)[:, positions].repeat(len(self.conditions) // len(self._sums), 1)
        return (self.conditions[:, None] + totals)[..., None]

    def keep(self, rows):
        self._kept.append(rows)
        self.conditions = self.conditions[:rows]

    def cut(self, positions):
        self.length = positions

    def tensors(self):
        return [self.conditions, self._sums]
