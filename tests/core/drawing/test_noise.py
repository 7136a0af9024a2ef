"""Laws of random numbers: a function of seed, position and level; Gumbel's choose ids with their probabilities."""

import math

import pytest
import torch
from toklip_core.config import LARGEST_SEED
from toklip_core.drawing import Drawing, choose_ids
from toklip_core.drawing.noise import GumbelNoise, UniformNoise

SIZES = (11, 5)
KINDS = [UniformNoise, GumbelNoise]


def numbers(kind, seeds=(7, 8), first=0, count=6):
    return kind(seeds, 6, SIZES, torch.device("cpu")).at(first, count)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_depend_on_seed_position_and_level_alone(kind):
    whole, other = numbers(kind), numbers(kind, seeds=(8,))
    for level, of_level in enumerate(whole):
        assert torch.equal(other[level][0], of_level[1])
        assert torch.equal(numbers(kind, first=2, count=3)[level], of_level[:, 2:5])
        assert of_level.flatten().unique().numel() == of_level.numel()


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_that_are_dropped_come_back(kind):
    noise = kind((0, LARGEST_SEED), 6, SIZES, torch.device("cpu"))
    before = noise.at(0, 6)
    noise.drop(4)
    for one, other in zip(before, noise.at(0, 6), strict=True):
        assert torch.equal(one, other)


def test_gumbel_noise_chooses_ids_with_their_probabilities_after_top_k():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 2.5])
    count = 20_000
    noise = GumbelNoise([3], count, (5,), torch.device("cpu")).at(0, count)[0][0]
    ids = choose_ids(logits.expand(count, -1), noise, Drawing(top_k=3, temperature=0.5, noise="gumbel"))
    wanted = (logits / 0.5).masked_fill(logits < 1, -math.inf).softmax(0)
    torch.testing.assert_close(ids.bincount(minlength=5) / count, wanted, rtol=0, atol=0.01)
