"""Figures of reconstruction: laws, formulas, and the message if a network is missing."""

import hashlib
import json
import math
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from skimage.metrics import structural_similarity
from toklip_core import plugins
from toklip_core.cli import cli
from toklip_core.config import Compute
from toklip_core.embeddings import ScalarEmbedding
from toklip_core.evaluation import (
    IdCounts,
    codebook_use,
    evaluate_reconstruction,
    load_fid,
    load_lpips,
    perceptual,
)
from toklip_core.pictures import grid_by_factor, open_picture, to_pixels
from toklip_core.plugins import TokenizerSpec
from toklip_core.scenes import Scenes
from toklip_core.weights import weights_checksum
from torch import nn
from torch_fidelity import feature_extractor_inceptionv3
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchmetrics.image import lpip
from torchmetrics.image.fid import FrechetInceptionDistance
from torchvision.models import squeezenet1_1

from tests.support.mean_colour import several
from tests.support.refusals import last_error
from tests.support.starved import NO_MEMORY, raising

SQUEEZENET = "squeezenet1_1-b8a52dc0.pth"
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"


class Greys(nn.Module):
    """A tokenizer with one grey value a pixel: exact on grey pictures if it has all 256 values."""

    factor = 1

    def __init__(self, values: int = 256) -> None:
        super().__init__()
        self.embedding = ScalarEmbedding((values,))

    def grid(self, height, width):
        return grid_by_factor(height, width, self.factor)

    def encode(self, pixels):
        most = self.embedding.codebook_sizes[0] - 1
        return ((pixels.mean(1) + 1) / 2 * most).round().long()[..., None]

    def decode(self, ids):
        return self.embedding(ids).movedim(-1, 1).expand(-1, 3, -1, -1)


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """An empty torch hub cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    checkpoints = tmp_path / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    return checkpoints


@pytest.fixture
def squeezenet(hub) -> Path:
    """A SqueezeNet of random weights where the published one belongs."""
    torch.manual_seed(0)
    torch.save(squeezenet1_1(weights=None).state_dict(), hub / SQUEEZENET)
    return hub / SQUEEZENET


def pictures(count=5, height=24, width=40, grey=False, seed=1):
    noise = np.random.default_rng(seed).integers(0, 256, (count, 1 if grey else 3, height, width))
    return list(torch.from_numpy(noise).float().expand(-1, 3, -1, -1) / 127.5 - 1)


def test_a_tokenizer_without_loss_has_infinite_psnr_and_ssim_one():
    report = evaluate_reconstruction(Greys(), pictures(grey=True))
    assert report.psnr == math.inf
    assert report.ssim == pytest.approx(1, abs=1e-6)
    data = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert data["psnr"] is None
    assert data["left_out"]["psnr"] == "infinite: a picture came back exactly"


def test_psnr_and_ssim_are_the_formulas_over_8_bit_pictures():
    tokenizer, given = Greys(values=7), pictures()
    report = evaluate_reconstruction(tokenizer, given, compute=Compute(batch_size=2))
    psnr, ssim = [], []
    for picture in given:
        back = tokenizer.decode(tokenizer.encode(picture[None]))[0]
        one, other = (((x + 1) * 127.5).round().numpy().astype(np.uint8) / 255 for x in (picture, back))
        psnr.append(10 * np.log10(1 / np.mean((one - other) ** 2)))
        # scikit-image leaves the border of 5 out of the mean; the protocol mirrors it.
        one, other = (np.pad(x, ((0, 0), (5, 5), (5, 5)), mode="reflect") for x in (one, other))
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        ssim.append(structural_similarity(one, other, channel_axis=0, data_range=1.0, **options))
    assert report.psnr == pytest.approx(np.mean(psnr), rel=1e-6)
    assert report.ssim == pytest.approx(np.mean(ssim), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_the_batch_size_changes_no_figure(batch_size):
    tokenizer, sizes = Greys(values=7), (batch_size, 5)
    one, other = (evaluate_reconstruction(tokenizer, pictures(), compute=Compute(batch_size=size)) for size in sizes)
    assert one == other


def test_values_beyond_the_range_are_clipped_as_a_file_would():
    bright = Greys()
    bright.decode = lambda ids: Greys.decode(bright, ids) * 3
    white = [torch.ones(3, 16, 16)]
    assert evaluate_reconstruction(bright, white).psnr == math.inf


def test_rows_used_evenly_have_a_perplexity_of_their_number():
    assert tuple(map(float, codebook_use(torch.full((300,), 7), 300))) == (1.0, pytest.approx(300, rel=1e-12))
    assert tuple(map(float, codebook_use(torch.tensor([0, 5, 5, 0]), 4))) == (0.5, pytest.approx(2, rel=1e-12))
    assert tuple(map(float, codebook_use(torch.tensor([5, 5]), 4))) == (0.5, pytest.approx(2, rel=1e-12))
    assert tuple(map(float, codebook_use(torch.tensor([0, 9]), 2))) == (0.5, 1.0)


def test_usage_and_perplexity_are_those_of_all_ids():
    tokenizer, given = Greys(values=300), pictures(grey=True)
    report = evaluate_reconstruction(tokenizer, given, compute=Compute(batch_size=2))
    ids = tokenizer.encode(torch.stack(given))
    p = ids.flatten().bincount().double() / ids.numel()
    assert report.codebook_usage == (len(ids.unique()) / 300,)
    assert report.perplexity == pytest.approx([math.exp(torch.special.entr(p).sum())])
    assert report.bits_per_picture == pytest.approx(24 * 40 * math.log2(300))
    assert report.protocol["codebook"] == f"{5 * 24 * 40} positions counted, 300 codes"


@pytest.mark.parametrize(("name", "bits"), [("quarter-greys", 300 * 16 * 5 * 2), ("colour-bits", 2**28)])
def test_usage_and_perplexity_are_those_of_each_level(name, bits):
    tokenizer, given = several(name), pictures(height=32, width=32)
    report = evaluate_reconstruction(tokenizer, given, compute=Compute(batch_size=2))
    ids = tokenizer.encode(torch.stack(given)).flatten(0, 2)
    for level, size in enumerate(tokenizer.codebook_sizes):
        counts = ids[:, level].unique(return_counts=True)[1]
        assert report.codebook_usage[level] == len(counts) / size
        p = counts.double() / len(ids)
        assert report.perplexity[level] == pytest.approx(math.exp(torch.special.entr(p).sum()))
    assert report.bits_per_picture == pytest.approx(64 * math.log2(bits))
    sizes = " + ".join(map(str, tokenizer.codebook_sizes))
    assert report.protocol["codebook"] == f"{5 * 64} positions counted, {sizes} codes"


@pytest.mark.parametrize("batch", [1, 300])
def test_ids_that_are_counted_in_any_portions_give_the_same(monkeypatch, batch):
    """Also where they are sorted among those before many times."""
    monkeypatch.setattr("toklip_core.evaluation.codebook._WAITING", 7)
    ids = torch.stack([torch.randint(0, size, (300,)) ** 2 % size for size in (50, 2**28)], dim=-1)
    counts = IdCounts((50, 2**28))
    for portion in ids.split(batch):
        counts.add(portion)
    for level, (use, size) in enumerate(zip(counts.use(), (50, 2**28), strict=True)):
        expected = codebook_use(ids[:, level].unique(return_counts=True)[1], size)
        assert use.used == expected.used and torch.allclose(use.perplexity, expected.perplexity)


def test_absent_networks_are_named_with_the_file_to_fetch_and_its_place(hub):
    report = evaluate_reconstruction(Greys(), pictures(height=32), lpips="squeeze")
    assert report.lpips is None and report.rfid is None
    assert report.left_out["lpips"] == (
        f"{SQUEEZENET} is not in the torch hub cache; "
        f"fetch https://download.pytorch.org/models/{SQUEEZENET} and put it into {hub}"
    )
    assert INCEPTION in report.left_out["rfid"]
    assert list(hub.iterdir()) == []


@pytest.mark.parametrize(("net", "file"), [("alex", "alexnet-owt-7be5be79.pth"), ("vgg", "vgg16-397923af.pth")])
def test_every_backbone_of_lpips_is_looked_for_under_its_published_name(net, file):
    with pytest.raises(FileNotFoundError, match=file):
        load_lpips(net)


def test_lpips_is_a_number_and_its_checksum_is_in_the_protocol(squeezenet):
    given = pictures(height=32, width=48)
    report = evaluate_reconstruction(Greys(values=7), given, lpips="squeeze", compute=Compute(batch_size=2))
    whole = evaluate_reconstruction(Greys(values=7), given, lpips="squeeze", compute=Compute(batch_size=5))
    assert report.lpips == pytest.approx(whole.lpips, rel=1e-5)
    assert report.lpips > 0
    said = report.protocol["lpips network"]
    assert hashlib.sha256(squeezenet.read_bytes()).hexdigest() in said
    assert "NOT the published file" in said
    assert evaluate_reconstruction(Greys(), pictures(height=32, grey=True), lpips="squeeze").lpips == 0


def test_lpips_gives_a_gradient_to_pictures_and_none_to_its_network(squeezenet):
    network = load_lpips("squeeze")
    one, other = torch.rand(2, 2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    other.requires_grad_()
    distances = network(one, other)
    assert distances.shape == (2, 1, 1, 1)
    distances.sum().backward()
    assert other.grad.abs().sum() > 0
    assert not any(weight.requires_grad for weight in network.parameters())
    assert not network.train(True).training


def test_pictures_too_small_for_lpips_leave_it_out(squeezenet):
    report = evaluate_reconstruction(Greys(), pictures(height=31), lpips="squeeze")
    assert report.left_out["lpips"] == "its networks need pictures of 32 px, not 31"


class Trap:
    """Would write a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_network_file_that_would_run_code_is_refused(squeezenet, tmp_path):
    torch.save({"weight": Trap(tmp_path / "ran")}, squeezenet)
    with pytest.raises(ValueError, match=SQUEEZENET):
        load_lpips("squeeze")
    assert not (tmp_path / "ran").exists()


def test_a_network_file_of_another_network_is_refused(squeezenet):
    torch.save({"features.0.weight": torch.zeros(1)}, squeezenet)
    with pytest.raises(ValueError, match="does not fit LPIPS's squeeze"):
        load_lpips("squeeze")


def test_a_network_file_that_no_memory_is_left_for_does_fit(squeezenet, monkeypatch):
    monkeypatch.setattr(lpip, "LearnedPerceptualImagePatchSimilarity", raising(NO_MEMORY))
    with pytest.raises(RuntimeError) as raised:
        load_lpips("squeeze")
    assert raised.value is NO_MEMORY


class MeanColour(nn.Module):
    """Stands in for Inception: three features a picture."""

    num_features = 3

    def forward(self, pictures):
        return pictures.float().mean((2, 3)) / 255


def test_rfid_is_the_frechet_distance_between_inputs_and_reconstructions(monkeypatch, hub):
    (hub / INCEPTION).write_bytes(b"")
    monkeypatch.setattr(perceptual, "load_fid", lambda: FrechetInceptionDistance(MeanColour()))
    tokenizer, given = Greys(values=3), pictures(count=9, height=16)
    report = evaluate_reconstruction(tokenizer, given, compute=Compute(batch_size=4))
    back = tokenizer.decode(tokenizer.encode(torch.stack(given)))
    features = [((x + 1) * 127.5).round().mean((2, 3)).double().numpy() / 255 for x in (torch.stack(given), back)]
    (mean, cov), (mean2, cov2) = ((f.mean(0), np.cov(f.T)) for f in features)
    roots = np.sqrt(np.linalg.eigvals(cov @ cov2).astype(complex)).real.sum()
    expected = ((mean - mean2) ** 2).sum() + np.trace(cov + cov2) - 2 * roots
    assert report.rfid == pytest.approx(expected, rel=1e-4)
    assert "2048 features over 9 pictures has a rank of at most 8" in report.protocol["rfid warning"]
    assert "between the reference set" in report.protocol["rfid"]


@pytest.fixture
def inception(hub, monkeypatch) -> Path:
    """An Inception network of random weights where the published one belongs."""
    path = hub / INCEPTION
    with monkeypatch.context() as patch:
        patch.setattr(feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, tensors: None)
        torch.save(FeatureExtractorInceptionV3("inception", ["2048"]).state_dict(), path)
    return path


@pytest.mark.slow
def test_inception_is_read_from_its_file_and_sees_pictures_of_any_size(inception):
    fid = load_fid()
    fid.update(torch.zeros(2, 3, 24, 40, dtype=torch.uint8), real=True)
    assert fid.real_features_sum.shape == (2048,)
    assert fid.real_features_sum.isfinite().all()
    torch.save({"fc.bias": torch.zeros(1008)}, inception)
    with pytest.raises(ValueError, match="does not fit the Inception network"):
        load_fid()
    inception.write_bytes(inception.read_bytes()[:500])
    with pytest.raises(ValueError, match=INCEPTION):
        load_fid()


def test_rfid_of_one_picture_is_left_out(monkeypatch, hub):
    (hub / INCEPTION).write_bytes(b"")
    monkeypatch.setattr(perceptual, "load_fid", lambda: FrechetInceptionDistance(MeanColour()))
    report = evaluate_reconstruction(Greys(), pictures(count=1))
    assert (report.rfid, report.left_out["rfid"]) == (None, "it needs two pictures at least")


def test_pictures_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="got no picture to evaluate"):
        evaluate_reconstruction(Greys(), [])
    with pytest.raises(ValueError, match=r"got pictures of \(3, 24, 40\) and \(3, 40, 24\); resize them to one size"):
        evaluate_reconstruction(Greys(), pictures() + pictures(height=40, width=24))
    with pytest.raises(ValueError, match=r"got pictures of \(3, 24, 40\) and \(3, 40, 24\); resize them to one size"):
        one_by_one = Compute(batch_size=1)
        evaluate_reconstruction(Greys(), pictures() + pictures(height=40, width=24), compute=one_by_one)
    with pytest.raises(ValueError, match="got pictures of 10 px; SSIM needs 11 px"):
        evaluate_reconstruction(Greys(), pictures(height=10))


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr(perceptual, "find_spec", lambda name: None if name == "torchmetrics" else object())
    with pytest.raises(LookupError, match=r"torchmetrics is not installed: pip install 'toklip-core\[evaluate\]'"):
        evaluate_reconstruction(Greys(), pictures())


@pytest.fixture
def greys(monkeypatch):
    """The tokenizer `greys`, registered."""
    spec = TokenizerSpec(name="greys", factory=lambda weights: Greys(values=7), summary="Greys.", image_size=48)
    monkeypatch.setattr(plugins, "registry", lambda: plugins.Registry((), {"greys": spec}))


def reconstruction(*arguments):
    return CliRunner().invoke(cli, ["evaluate", "reconstruction", "--tokenizer", "greys", *map(str, arguments)])


def photographs(folder: Path, count: int = 3) -> Path:
    """A folder of pictures of several sizes, and a file that is none."""
    folder.mkdir()
    for i in range(count):
        noise = np.random.default_rng(i).integers(0, 256, (60 + i, 90, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    (folder / "broken.jpg").write_text("not a picture")
    return folder


def test_the_command_prints_figures_and_protocol_and_names_what_it_could_not_read(greys, tmp_path):
    folder = photographs(tmp_path / "photographs")
    result = reconstruction(folder, "--json", "--batch-size", 2)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    given = [to_pixels(open_picture(folder / f"{i}.png"), 48) for i in range(3)]
    expected = evaluate_reconstruction(Greys(values=7), given)
    assert {name: report[name] for name in ("psnr", "ssim", "codebook_usage", "perplexity")} == {
        "psnr": expected.psnr,
        "ssim": expected.ssim,
        "codebook_usage": list(expected.codebook_usage),
        "perplexity": list(expected.perplexity),
    }
    assert [line.split(":")[0].endswith("photographs/broken.jpg") for line in report["unreadable"]] == [True]
    protocol = report["protocol"]
    assert protocol["tokenizer"] == "greys"
    assert protocol["weights"] == f"sha256 {weights_checksum(Greys())}"
    assert (protocol["pictures"], protocol["size"], protocol["inputs"]) == (3, "48 x 48", str(folder))
    assert protocol["reference set"].startswith("centre crops of the inputs themselves")
    assert protocol["computed"] == "in float32 on cpu"
    assert "data range 1" in protocol["values"]
    assert f"torchmetrics {version('torchmetrics')}" in protocol["software"]

    text = reconstruction(folder).stdout
    assert f"PSNR            {expected.psnr:.3f} dB" in text
    assert "LPIPS           left out: alexnet-owt-7be5be79.pth is not in the torch hub cache" in text
    assert "Unreadable, in no figure: 1" in text
    for line in protocol.values():
        assert str(line) in text


def test_how_a_picture_becomes_a_square_is_in_the_protocol_and_in_the_figures(greys, tmp_path):
    folder = photographs(tmp_path / "photographs")
    crop, squash = (json.loads(reconstruction(folder, "--json", "--resize", way).stdout) for way in ("crop", "squash"))
    assert "squashed" in squash["protocol"]["reference set"]
    assert crop["psnr"] != squash["psnr"]


def test_scenes_stand_in_for_pictures(greys):
    result = reconstruction("scenes:validation?count=4&size=48", "--json")
    report = json.loads(result.stdout)
    given = [torch.from_numpy(s.rgb).movedim(-1, 0) / 127.5 - 1 for s in Scenes(4, split="validation", size=48)]
    assert report["psnr"] == evaluate_reconstruction(Greys(values=7), given).psnr
    assert report["protocol"]["inputs"] == "scenes:validation?count=4&size=48"


SCENES = "scenes:held-out?count=2"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["absent.png"], "Error: there is no file or folder 'absent.png'"),
        (["scenes:up?count=2"], "Error: got 'scenes:up?count=2': no split 'up'; wanted scenes:SPLIT?count=N"),
        ([SCENES, "--tokenizer", "grays"], "Error: no VQ tokenizer is named 'grays'. Did you mean 'greys'?"),
        ([SCENES, "--size", 8], "Error: got pictures of 8 px; SSIM needs 11 px"),
        ([SCENES, "--device", "abacus"], "Error: got the device 'abacus'; name one such as cpu"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(greys, arguments, line):
    result = reconstruction(*arguments)
    assert result.exit_code == 1
    last_error(result.stderr, line.removeprefix("Error: "))


def test_a_size_that_does_not_fit_the_tokenizer_is_refused(greys, monkeypatch):
    monkeypatch.setattr(Greys, "factor", 16)
    result = reconstruction(SCENES, "--size", 40)
    assert result.stderr == (
        "Error: got a picture of 40 x 40; its sides must be multiples of 16: crop or resize it\n"
    )


def test_a_folder_without_a_readable_picture_is_refused(greys, tmp_path):
    result = reconstruction(photographs(tmp_path / "photographs", count=0))
    assert result.exit_code == 1
    assert "Error: got no picture to evaluate" in result.stderr
