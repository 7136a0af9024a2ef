"""Compute names the value that is wrong, and commands derive it from their options and the machine."""

import pytest
import torch
from toklip_core.cli import compute_of
from toklip_core.config import Compute, default_device, default_workers


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"batch_size": 0}, "got batch_size = 0; wanted 1 to "),
        ({"workers": 257}, "got workers = 257; wanted 0 to 256"),
        ({"max_pixels": 0}, "got max_pixels = 0; wanted 1 to "),
        ({"dtype": "float16"}, "got dtype = float16; wanted float32 or bfloat16"),
    ],
)
def test_a_value_out_of_its_range_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        Compute(**value)


def test_options_that_say_how_to_compute_are_taken_out_of_those_of_a_command():
    options = {"top": 5, "device": None, "workers": None, "batch_size": 3, "dtype": "bfloat16", "max_pixels": 9}
    compute = compute_of(options)
    assert options == {"top": 5}
    expected = Compute(
        device=default_device(), workers=default_workers(), batch_size=3, dtype="bfloat16", max_pixels=9, progress=True
    )
    assert compute == expected and compute.torch_dtype == torch.bfloat16
