"""Networks for perceptual figures: LPIPS, and Inception for the Fréchet distance (rFID).

They come from torchmetrics (extra ``toklip-core[evaluate]``). The weights are files of other projects. They are read
from the torch hub cache, never downloaded, and never unpickled before they are known to be plain tensors.

Shape letters: B batch, H and W picture sides.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from toklip_core.files import is_machine_error
from toklip_core.weights import damaged, is_finite, read_tensors

if TYPE_CHECKING:
    from torch import nn
    from torchmetrics.image.fid import FrechetInceptionDistance

#: The backbones that LPIPS was published with.
LPIPSNet = Literal["alex", "squeeze", "vgg"]

_TORCHVISION_WEIGHTS = {
    "alex": "AlexNet_Weights.DEFAULT",
    "squeeze": "SqueezeNet1_1_Weights.DEFAULT",
    "vgg": "VGG16_Weights.DEFAULT",
}
# Smallest side at which something is left after all halvings of LPIPS's backbones.
_SMALLEST_SIDE = 32
# Number of Inception's features; their covariance needs one picture more to have full rank.
_INCEPTION_FEATURES = 2048
# torch-fidelity's URL_INCEPTION_V3; asking torch-fidelity itself costs seconds of imports.
_INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)


def require_evaluate_extra() -> None:
    """Raise LookupError, with the command to install it, if a package of the extra is missing."""
    for name in ("torchmetrics", "torch_fidelity", "torchvision"):
        if find_spec(name) is None:
            raise LookupError(f"{name} is not installed: pip install 'toklip-core[evaluate]'")


def load_lpips(net: LPIPSNet) -> nn.Module:
    """Return the frozen LPIPS network, from two (B, 3, H, W) in [-1, 1] to distances (B, 1, 1, 1).

    Gradients flow into both pictures, but not into the network. Every backbone works for sides of at least 32.

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
        if is_machine_error(error):
            raise
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
        # antialias=False resizes like TensorFlow 1, as in published figures; torchmetrics' default does not.
        return FrechetInceptionDistance(_INCEPTION_FEATURES, feature_extractor_weights_path=str(path), antialias=False)
    except RuntimeError as error:
        if is_machine_error(error):
            raise
        raise ValueError(f"{str(path)!r} does not fit the Inception network: {error}") from error


def load_inception() -> nn.Module:
    """Return the frozen Inception network of :func:`load_fid`, from pictures (B, 3, H, W), uint8, to two tensors.

    The tensors are activations (B, 2048), and logits without their bias (B, 1008) for the Inception score.

    Raises:
        FileNotFoundError, LookupError, ValueError: see :func:`load_fid`.
    """
    path = _inception_file()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    _refuse_code(path)
    try:
        network: nn.Module = FeatureExtractorInceptionV3(
            "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
        )
    except RuntimeError as error:
        if is_machine_error(error):
            raise
        raise ValueError(f"{str(path)!r} does not fit the Inception network: {error}") from error
    return network.requires_grad_(False).eval()


def described_inception() -> str:
    """Return the name of the Inception network's file, its checksum, and whether it is the published one."""
    return _described(_inception_file())


class PerceptualFigures:
    """LPIPS and rFID over a stream of pictures, each if its network is available."""

    def __init__(self, net: LPIPSNet, side: int, device: torch.device | str) -> None:
        """Load the networks.

        Args:
            net: backbone of LPIPS.
            side: shorter side of the pictures.
            device: device to compute on.
        """
        #: Missing figure -> reason, and how to get it.
        self.left_out: dict[str, str] = {}
        #: Names of the networks, and checksums of their files.
        self.protocol: dict[str, str | int] = {}
        self._pictures = 0
        self._lpips_sum = 0.0
        self._network: nn.Module | None = None
        self._fid: FrechetInceptionDistance | None = None
        try:
            if side >= _SMALLEST_SIDE:
                self._network = load_lpips(net).to(device)
                self.protocol["lpips network"] = f"{net}, heads v0.1, {_described(_lpips_file(net))}"
            else:
                self.left_out["lpips"] = f"its networks need pictures of {_SMALLEST_SIDE} px, not {side}"
        except FileNotFoundError as error:
            self.left_out["lpips"] = str(error)
        try:
            self._fid = load_fid().to(device)
            inception = _described(_inception_file())
            self.protocol["rfid network"] = f"Inception v3 of 2015, resize of TensorFlow 1, {inception}"
        except FileNotFoundError as error:
            self.left_out["rfid"] = str(error)

    def add(self, inputs: Tensor, outputs: Tensor) -> None:
        """Add pictures (B, 3, H, W), uint8, and their reconstructions."""
        self._pictures += len(inputs)
        if self._network is not None:
            with torch.no_grad():
                distances: Tensor = self._network(inputs / 127.5 - 1, outputs / 127.5 - 1)
            self._lpips_sum += distances.double().sum().item()
        if self._fid is not None:
            self._fid.update(inputs, real=True)
            self._fid.update(outputs, real=False)

    def lpips(self) -> float | None:
        """Return the mean LPIPS distance; None if it is left out."""
        return None if self._network is None else self._lpips_sum / self._pictures

    def rfid(self) -> float | None:
        """Return the Fréchet distance, None if it is left out; the protocol gets a note if it is unreliable."""
        if self._fid is None:
            return None
        if self._pictures < 2:
            self.left_out["rfid"] = "it needs two pictures at least"
            return None
        if self._pictures <= _INCEPTION_FEATURES:
            self.protocol["rfid warning"] = (
                f"unreliable, and not comparable with published figures: the covariance of {_INCEPTION_FEATURES} "
                f"features over {self._pictures} pictures has a rank of at most {self._pictures - 1}"
            )
        return float(self._fid.compute())


def _lpips_file(net: LPIPSNet) -> Path:
    require_evaluate_extra()
    import torchvision

    return _cached(torchvision.models.get_weight(_TORCHVISION_WEIGHTS[net]).url)


def _inception_file() -> Path:
    require_evaluate_extra()
    return _cached(_INCEPTION_URL)


def _cached(url: str) -> Path:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / url.rsplit("/", 1)[-1]
    if not path.is_file():
        raise FileNotFoundError(f"{path.name} is not in the torch hub cache; fetch {url} and put it into {folder}")
    return path


def _refuse_code(path: Path) -> None:
    """Raise ValueError unless a file has only finite tensors, because torchvision would run code from it."""
    for name, tensor in read_tensors(path).items():
        if isinstance(tensor, Tensor) and not is_finite(tensor):
            raise ValueError(damaged(path, name))


def _described(path: Path) -> str:
    """Return the name and checksum of a file, and whether it is the published one."""
    with path.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    published = checksum.startswith(path.stem.rsplit("-", 1)[-1])
    return f"{path.name}, sha256 {checksum}, {'as published' if published else 'NOT the published file'}"
