"""Laws of choosing an id: its frequency is its probability, and excluded ids are never chosen."""

import pytest
import torch
from toklip_core.drawing import Drawing, choose_ids


def test_ids_come_as_often_as_their_probabilities_say():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(4000, -1)
    noise = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    shares = choose_ids(logits, noise, Drawing()).bincount(minlength=4) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("drawing", "possible"),
    [
        (Drawing(top_k=2), {0, 1}),
        (Drawing(top_p=0.7), {0, 1}),
        (Drawing(top_p=0.85), {0, 1, 2}),
        (Drawing(top_p=1e-6), {0}),
        (Drawing(top_k=3, top_p=0.6), {0, 1}),
        (Drawing(temperature=1e-30), {0}),
        (Drawing(temperature=1e-60), {0}),
        (Drawing(temperature=1e-45, top_p=0.5), {0}),
        (Drawing(temperature=1e30), {0, 1, 2, 3}),
        (Drawing(temperature=0.0), {0}),
        (Drawing(top_k=1), {0}),
        (Drawing(top_k=4), {0, 1, 2, 3}),
    ],
)
def test_only_ids_that_the_settings_leave_are_drawn(drawing, possible):
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(500, -1)
    noise = torch.linspace(0, 1 - 2**-24, 500)
    assert set(choose_ids(logits, noise, drawing).tolist()) == possible


def test_an_id_of_no_probability_is_never_drawn():
    logits = torch.tensor([[0.0, -torch.inf, 0.0, -torch.inf]]).expand(3, -1)
    noise = torch.tensor([0.0, 0.5, 1 - 2**-24])
    assert choose_ids(logits, noise, Drawing()).tolist() == [0, 2, 2]
