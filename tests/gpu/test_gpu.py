"""A GPU does not change the laws of a tokenizer, nor its ids, except at ties."""

import pytest
import torch
from toklip_core.scenes import scene
from toklip_core.testing import tokenizer_checks
from toklip_core.tokenizer import load_tokenizer

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("check", tokenizer_checks(), ids=lambda check: check.__name__)
def test_the_shipped_tokenizer_keeps_its_laws(check):
    check(load_tokenizer("llamagen-tiny").to("cuda"))


def test_ids_are_those_of_a_cpu_without_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    pixels = torch.stack([torch.from_numpy(scene(i).pixels.copy()) for i in range(16)]).permute(0, 3, 1, 2) / 127.5 - 1
    on_cpu = load_tokenizer("llamagen-tiny").encode(pixels)
    on_gpu = load_tokenizer("llamagen-tiny").to("cuda").encode(pixels.cuda()).cpu()
    assert (on_cpu == on_gpu).float().mean() > 0.999
