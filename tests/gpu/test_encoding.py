"""A GPU does not change the laws of a tokenizer, nor its ids, except at ties; `toklip encode` writes the same store."""

import pytest
import torch
from click.testing import CliRunner
from toklip_core import plugins
from toklip_core.cli import cli
from toklip_core.scenes import scene
from toklip_core.store import TokenStore
from toklip_core.testing import tokenizer_checks
from toklip_core.tokenizer import load_tokenizer

# What the libraries of a GPU warn of cannot be known where there is none: it is shown.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

SCENES = "scenes:validation?count=48"


@pytest.mark.parametrize("check", tokenizer_checks(), ids=lambda check: check.__name__)
def test_the_shipped_tokenizer_keeps_its_laws(check, device):
    check(load_tokenizer("vqgan-tiny").to(device))


def test_ids_are_those_of_a_cpu_without_tf32(device):
    pixels = torch.stack([torch.from_numpy(scene(i).rgb.copy()) for i in range(16)]).permute(0, 3, 1, 2) / 127.5 - 1
    on_cpu = load_tokenizer("vqgan-tiny").encode(pixels)
    on_gpu = load_tokenizer("vqgan-tiny").to(device).encode(pixels.to(device)).cpu()
    assert (on_cpu == on_gpu).float().mean() > 0.999


def encoded(folder, device, *options):
    """Return the ids and the pooled features of a store that the command writes on a device."""
    out = folder / f"{device}{len([*folder.iterdir()])}"
    words = ["encode", SCENES, "--out", str(out), "--model", "toklip-tiny", "--device", device, *options]
    done = CliRunner().invoke(cli, words, obj=plugins.registry())
    assert done.exit_code == 0, done.output
    rows = [*TokenStore(out)]
    return torch.stack([row.ids for row in rows]), torch.stack([row.pooled for row in rows])


def test_encode_writes_the_ids_and_features_of_a_cpu_but_at_ties(tmp_path, device, monkeypatch):
    """TF32, torch's default for convolutions, has 3 bits more than bfloat16, which changes 7 % of random ids."""
    ids, pooled = encoded(tmp_path, "cpu")
    shares = []
    for tf32, options in ((False, []), (True, []), (True, ["--dtype", "bfloat16"])):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", tf32)
        own, features = encoded(tmp_path, device, *options)
        shares.append((own == ids).float().mean().item())
        same = (own == ids).flatten(1).all(1)
        if not options:
            torch.testing.assert_close(features[same], pooled[same], atol=2e-3, rtol=0)
    assert shares[0] > 0.999 and shares[1] > 0.97 and shares[2] > 0.8, shares
