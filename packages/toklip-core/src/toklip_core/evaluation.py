"""How well a tokenizer reconstructs pictures: PSNR, SSIM, LPIPS, rFID, and how it uses its codebook.

The figures are torchmetrics' (extra ``toklip-core[evaluate]``). LPIPS and rFID need networks whose weights
are files of other projects: they are taken from the torch hub cache and never downloaded from here.

Shape letters: B batch, H and W picture sides, K codebook size.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor

from toklip_core.checkpoint import read_tensors

if TYPE_CHECKING:
    from torch import nn
    from torchmetrics.image.fid import FrechetInceptionDistance

    from toklip_core.plugins import VQTokenizer

#: The backbones that LPIPS was published with.
LPIPSNet = Literal["alex", "squeeze", "vgg"]

_TORCHVISION_WEIGHTS = {
    "alex": "AlexNet_Weights.DEFAULT",
    "squeeze": "SqueezeNet1_1_Weights.DEFAULT",
    "vgg": "VGG16_Weights.DEFAULT",
}
#: The window of SSIM is 11 x 11; below 32 px a backbone of LPIPS halves a picture away.
_SMALLEST_SIDES = {"ssim": 11, "lpips": 32}
#: The covariance of this many Inception features has full rank from one picture more.
_INCEPTION_FEATURES = 2048
#: As torch-fidelity has it; asking torch-fidelity costs seconds of imports.
_INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)


@dataclass(frozen=True, kw_only=True)
class ReconstructionReport:
    """The figures of a tokenizer over a set of pictures, and the protocol they were taken by."""

    #: Mean over pictures of 10 log10(1 / MSE), dB; infinite if a picture came back exactly.
    psnr: float
    #: Mean over pictures, in [-1, 1].
    ssim: float
    #: Mean over pictures, 0 for equal ones; None if left out.
    lpips: float | None
    #: Fréchet distance of Inception features between the pictures and their reconstructions; None if left out.
    rfid: float | None
    #: Share of the codebook's rows that occur, in (0, 1].
    codebook_usage: float
    #: exp(entropy) of the frequencies of the rows, in [1, K].
    perplexity: float
    #: Figure -> why it is missing and how to get it.
    left_out: dict[str, str]
    #: How the figures were taken. They mean nothing without it.
    protocol: dict[str, str | int]
    #: Inputs that are no readable picture, each with the reason: they are in no figure.
    unreadable: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return plain data. JSON has no infinity: an infinite PSNR becomes None, and ``left_out`` says so."""
        data = asdict(self)
        if math.isinf(self.psnr):
            data["psnr"] = None
            data["left_out"]["psnr"] = "infinite: a picture came back exactly"
        return data


def evaluate_reconstruction(
    tokenizer: VQTokenizer,
    pictures: Iterable[Tensor],
    *,
    lpips: LPIPSNet = "alex",
    batch_size: int = 16,
    device: torch.device | str = "cpu",
) -> ReconstructionReport:
    """Encode and decode pictures, and compare what comes back with what went in.

    One pass, in memory that does not grow with the number of pictures. Both sides are rounded to 8 bits, as a file
    would hold them. LPIPS and rFID are left out where their networks are not in the torch hub cache.

    Args:
        tokenizer: on ``device``.
        pictures: each (3, H, W) in [-1, 1], all of one size.
        lpips: the backbone of LPIPS.
        batch_size: pictures at a time. It changes no figure beyond what it changes in the floats of the networks.
        device: where to compute.

    Raises:
        LookupError: the extra is not installed.
        ValueError: there is no picture, or one of another size, or one below 11 x 11.
    """
    _require_extra()
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    perceptual: _Perceptual | None = None
    counts = torch.zeros(tokenizer.codebook_size, dtype=torch.int64)
    pictures_seen, psnr, ssim = 0, 0.0, 0.0
    for batch in _batches(pictures, batch_size):
        perceptual = perceptual or _Perceptual(lpips, min(batch.shape[-2:]), device)
        ids = tokenizer.encode(batch.to(device))
        counts += torch.bincount(ids.flatten().cpu(), minlength=len(counts))
        inputs, outputs = _to_bytes(batch.to(device)), _to_bytes(tokenizer.decode(ids))
        # One by one: quicker than a batch on a CPU, and the sums cannot depend on the batch size.
        for one, other in zip(inputs[:, None] / 255, outputs[:, None] / 255, strict=True):
            psnr += float(peak_signal_noise_ratio(other, one, data_range=1.0))
            ssim += float(cast(Tensor, structural_similarity_index_measure(other, one, data_range=1.0)))
        perceptual.add(inputs, outputs)
        pictures_seen += len(batch)
    if perceptual is None:
        raise ValueError("got no picture to evaluate; name at least one that can be read")
    usage, perplexity = codebook_statistics(counts)
    return ReconstructionReport(
        psnr=psnr / pictures_seen,
        ssim=ssim / pictures_seen,
        lpips=perceptual.lpips(),
        rfid=perceptual.rfid(),
        codebook_usage=usage,
        perplexity=perplexity,
        left_out=perceptual.left_out,
        protocol=_protocol(pictures_seen, int(counts.sum()), len(counts)) | perceptual.protocol,
    )


def codebook_statistics(counts: Tensor) -> tuple[float, float]:
    """Return usage, the share of rows with a count, and perplexity, exp(entropy), of counts (K,), int64, not all 0."""
    used = counts[counts > 0].double()
    frequencies = used / used.sum()
    return len(used) / len(counts), math.exp(-(frequencies * frequencies.log()).sum().item())


class _Perceptual:
    """LPIPS and rFID, each where its network is there."""

    def __init__(self, net: LPIPSNet, side: int, device: torch.device | str) -> None:
        if side < _SMALLEST_SIDES["ssim"]:
            raise ValueError(f"got pictures of {side} px; SSIM needs {_SMALLEST_SIDES['ssim']} px, pass a larger size")
        self.left_out: dict[str, str] = {}
        self.protocol: dict[str, str | int] = {}
        self._pictures = 0
        self._lpips_sum = 0.0
        self._network: nn.Module | None = None
        self._fid: FrechetInceptionDistance | None = None
        if side < _SMALLEST_SIDES["lpips"]:
            self.left_out["lpips"] = f"its networks need pictures of {_SMALLEST_SIDES['lpips']} px, not {side}"
        else:
            self._load_lpips(net, device)
        self._load_fid(device)

    def _load_lpips(self, net: LPIPSNet, device: torch.device | str) -> None:
        try:
            self._network = load_lpips(net).to(device)
        except FileNotFoundError as error:
            self.left_out["lpips"] = str(error)
        else:
            self.protocol["lpips network"] = f"{net}, heads v0.1, {_described(_lpips_file(net))}"

    def _load_fid(self, device: torch.device | str) -> None:
        try:
            self._fid = load_fid().to(device)
        except FileNotFoundError as error:
            self.left_out["rfid"] = str(error)
        else:
            self.protocol["rfid network"] = (
                f"Inception v3 of 2015, resize of TensorFlow 1, {_described(_inception_file())}"
            )

    def add(self, inputs: Tensor, outputs: Tensor) -> None:
        """Take in pictures (B, 3, H, W), uint8, and their reconstructions."""
        self._pictures += len(inputs)
        with torch.no_grad():
            if self._network is not None:
                distances: Tensor = self._network(inputs / 127.5 - 1, outputs / 127.5 - 1)
                self._lpips_sum += distances.double().sum().item()
        if self._fid is not None:
            self._fid.update(inputs, real=True)
            self._fid.update(outputs, real=False)

    def lpips(self) -> float | None:
        """Return the mean distance."""
        return None if self._network is None else self._lpips_sum / self._pictures

    def rfid(self) -> float | None:
        """Return the Fréchet distance, and put what is wrong with it into the protocol."""
        if self._fid is None:
            return None
        if self._pictures < 2:
            self.left_out["rfid"] = "it needs two pictures at least"
            return None
        if self._pictures <= _INCEPTION_FEATURES:
            self.protocol["rfid warning"] = (
                f"{self._pictures} pictures give the covariance of {_INCEPTION_FEATURES} features a rank of at most "
                f"{self._pictures - 1}: unreliable, and not comparable with a published figure (50,000 pictures)"
            )
        return float(self._fid.compute())


def _batches(pictures: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Stack pictures (3, H, W) into (B, 3, H, W), B <= size."""
    waiting: list[Tensor] = []
    for picture in pictures:
        if waiting and picture.shape != waiting[0].shape:
            shapes = f"{tuple(waiting[0].shape)} and {tuple(picture.shape)}"
            raise ValueError(f"got pictures of {shapes}; resize them to one size")
        waiting.append(picture)
        if len(waiting) == size:
            yield torch.stack(waiting)
            waiting = []
    if waiting:
        yield torch.stack(waiting)


def _to_bytes(pixels: Tensor) -> Tensor:
    return ((pixels.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _protocol(pictures: int, ids: int, rows: int) -> dict[str, str | int]:
    return {
        "pictures": pictures,
        "values": "pictures and reconstructions rounded to 8 bits, RGB, data range 1",
        "psnr": "mean over pictures of 10 log10(1 / MSE), in dB",
        "ssim": "mean over pictures, Gaussian window 11 x 11 of sigma 1.5, k1 0.01, k2 0.03",
        "rfid": "reference set: the pictures measured here, as they enter the tokenizer",
        "codebook": f"{ids} ids counted, {rows} rows",
        "software": ", ".join(f"{name} {version(name)}" for name in ("torchmetrics", "torch-fidelity", "torch")),
    }


def load_lpips(net: LPIPSNet) -> nn.Module:
    """Return the frozen LPIPS network: called with two (B, 3, H, W) in [-1, 1] it gives distances (B, 1, 1, 1).

    A gradient flows into both pictures, none into the network. Sides of 32 and more suit every backbone.

    Raises:
        FileNotFoundError: the backbone's file is not in the torch hub cache; it is not downloaded.
        LookupError: the extra is not installed.
        ValueError: the file is damaged, holds more than tensors, or does not fit.

    Source: https://arxiv.org/abs/1801.03924; its linear heads (v0.1) come with torchmetrics.
    """
    path = _lpips_file(net)
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    _refuse_code(path)
    try:
        network: nn.Module = LearnedPerceptualImagePatchSimilarity(net_type=net).net
    except RuntimeError as error:
        raise ValueError(f"{str(path)!r} does not fit LPIPS's {net}: {error}") from error
    return network.requires_grad_(False)


def load_fid() -> FrechetInceptionDistance:
    """Return an empty Fréchet distance on the Inception network of TensorFlow 2015, which published figures use.

    Raises:
        FileNotFoundError: the network's file is not in the torch hub cache; it is not downloaded.
        LookupError: the extra is not installed.
        ValueError: the file is damaged, holds more than tensors, or does not fit.

    Source: https://arxiv.org/abs/1706.08500; weights converted by torch-fidelity.
    """
    path = _inception_file()
    from torchmetrics.image.fid import FrechetInceptionDistance

    _refuse_code(path)
    try:
        # antialias: torchmetrics' own resize is not that of the figures in papers.
        return FrechetInceptionDistance(_INCEPTION_FEATURES, feature_extractor_weights_path=str(path), antialias=False)
    except RuntimeError as error:
        raise ValueError(f"{str(path)!r} does not fit the Inception network: {error}") from error


def _lpips_file(net: LPIPSNet) -> Path:
    _require_extra()
    import torchvision

    return _cached(torchvision.models.get_weight(_TORCHVISION_WEIGHTS[net]).url)


def _inception_file() -> Path:
    _require_extra()
    return _cached(_INCEPTION_URL)


def _cached(url: str) -> Path:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / url.rsplit("/", 1)[-1]
    if not path.is_file():
        raise FileNotFoundError(f"{path.name} is not in the torch hub cache; fetch {url} and put it into {folder}")
    return path


def _refuse_code(path: Path) -> None:
    """Raise unless the file is plain tensors: torchvision and torch-fidelity would unpickle, and run, anything."""
    read_tensors(path)


def _described(path: Path) -> str:
    """Return name and checksum of a file, and whether it is the published one: its name ends in the sha256's start."""
    with path.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    published = checksum.startswith(path.stem.rsplit("-", 1)[-1])
    return f"{path.name}, sha256 {checksum}, {'as published' if published else 'NOT the published file'}"


def _require_extra() -> None:
    for name in ("torchmetrics", "torch_fidelity", "torchvision"):
        if find_spec(name) is None:
            raise LookupError(f"{name} is not installed: pip install 'toklip-core[evaluate]'")
