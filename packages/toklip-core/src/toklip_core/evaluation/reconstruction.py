"""Evaluation of a tokenizer's reconstructions: PSNR, SSIM, LPIPS, rFID, bits per picture, and the use of codebooks.

The figures come from torchmetrics (extra ``toklip-core[evaluate]``). LPIPS and rFID need networks, see
:mod:`toklip_core.evaluation.perceptual`. A report has the figures and their protocol.

Shape letters: B batch, H and W picture sides, h and w grid, Q levels, K codebook size of a level.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from PIL import Image
from torch import Tensor

from toklip_core.config import Compute, progress_bar, refuse_missing_device
from toklip_core.evaluation.codebook import IdCounts
from toklip_core.evaluation.perceptual import LPIPSNet, PerceptualFigures, require_evaluate_extra
from toklip_core.evaluation.report import report_text
from toklip_core.files import why_unreadable
from toklip_core.pictures import (
    READING_ERRORS,
    InputFile,
    Resize,
    count_of,
    entries,
    find_pictures,
    refuse_pixels,
    to_picture,
    to_pixels,
    to_rgb,
)
from toklip_core.plugins import tokenizer_spec
from toklip_core.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from toklip_core.plugins import VQTokenizer

_SSIM_WINDOW = 11

_REFERENCE = {
    "crop": "centre crops of the inputs themselves; halved by a box filter while twice the size, then bicubic",
    "squash": "the inputs themselves, squashed to a square, bicubic",
    "pad": "the inputs themselves, bicubic, with grey beside the short side",
}


@dataclass(frozen=True, kw_only=True)
class ReconstructionReport:
    """Figures of a tokenizer over a set of pictures, with the protocol of the measurement."""

    #: Mean over pictures of 10 log10(1 / MSE), in dB; infinite if a picture is reconstructed exactly.
    psnr: float
    #: Mean over pictures, in [-1, 1].
    ssim: float
    #: Mean over pictures, 0 for equal ones; None if left out.
    lpips: float | None
    #: Fréchet distance of Inception features between the pictures and their reconstructions; None if left out.
    rfid: float | None
    #: Bits in the ids of a picture: h w times the sum of log2(K) over the levels.
    bits_per_picture: float
    #: Share of the codes that occur, in (0, 1], for each level.
    codebook_usage: tuple[float, ...]
    #: exp(entropy) of the frequencies of the codes, in [1, K], for each level.
    perplexity: tuple[float, ...]
    #: Number of pictures that were encoded and decoded per second; reading and measuring do not count.
    pictures_per_second: float = field(compare=False)
    #: Missing figure -> reason, and how to get it.
    left_out: dict[str, str]
    #: Protocol of the measurement.
    protocol: dict[str, str | int]
    #: Inputs that are not readable pictures, with the reason; no figure includes them.
    unreadable: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON data. An infinite PSNR becomes None, with a note in ``left_out``."""
        data = asdict(self)
        if math.isinf(self.psnr):
            data["psnr"] = None
            data["left_out"]["psnr"] = "infinite: a picture came back exactly"
        return data

    def as_text(self) -> str:
        """Return the report as a table for people: figures, protocol, and unreadable inputs."""
        figures = {
            "PSNR": f"{self.psnr:.3f} dB",
            "SSIM": f"{self.ssim:.4f}",
            "LPIPS": f"left out: {self.left_out.get('lpips')}" if self.lpips is None else f"{self.lpips:.4f}",
            "rFID": f"left out: {self.left_out.get('rfid')}" if self.rfid is None else f"{self.rfid:.3f}",
            "bits a picture": f"{self.bits_per_picture:,.0f}",
            "codebook usage": ", ".join(f"{usage:.2%}" for usage in self.codebook_usage),
            "perplexity": ", ".join(f"{perplexity:.1f}" for perplexity in self.perplexity),
            "speed": f"{self.pictures_per_second:.3g} pictures/s",
        }
        return report_text(list(figures.items()), self.protocol, self.unreadable)


def evaluate_tokenizer(
    name: str,
    inputs: Iterable[Path | str],
    *,
    weights: Path | str | None = None,
    image_size: int | None = None,
    resize: Resize = "crop",
    lpips: LPIPSNet = "alex",
    compute: Compute = Compute(),
) -> ReconstructionReport:
    """Measure a registered tokenizer on pictures, as ``toklip evaluate reconstruction`` does.

    Pictures that cannot be read are listed in the report and left out.

    Args:
        name: name of the tokenizer.
        inputs: files, folders, globs, tars, scenes; see :func:`toklip_core.pictures.find_pictures`.
        weights: file or folder to load instead of the published or shipped weights.
        image_size: side of the pictures, one that the tokenizer takes; None: the side that it was trained at.
        resize: way to make a picture square.
        lpips: backbone of LPIPS.
        compute: device, number of pictures at a time, and dtype of the tokenizer's towers.

    Raises:
        FileNotFoundError: an input or the weights are not there.
        LookupError: no tokenizer has the name, or the extra is not installed.
        ValueError: no picture can be read, or the size does not fit.
    """
    inputs = list(inputs)
    require_evaluate_extra()
    refuse_missing_device(compute.device)
    # Names, sizes and pictures are refused before weights are loaded.
    tokenizer_spec(name).refuse_size(image_size)
    sources = find_pictures(inputs, max_pixels=compute.max_pixels)
    tokenizer = load_tokenizer(name, weights)
    report = evaluate_sources(
        tokenizer, sources, image_size=image_size, resize=resize, lpips=lpips, compute=compute
    )
    return replace(report, protocol={"inputs": " ".join(map(str, inputs)), **report.protocol})


def evaluate_sources(
    tokenizer: Tokenizer,
    sources: list[InputFile],
    *,
    image_size: int | None = None,
    resize: Resize = "crop",
    lpips: LPIPSNet = "alex",
    compute: Compute = Compute(),
) -> ReconstructionReport:
    """Measure a loaded tokenizer on pictures that :func:`toklip_core.pictures.find_pictures` has found.

    The tokenizer is moved to the device and cast to the dtype; see :func:`evaluate_tokenizer` for the other arguments.

    Raises:
        ValueError: no picture can be read, or the tokenizer does not take the size.
    """
    size = tokenizer.image_size if image_size is None else image_size
    tokenizer.grid(size, size)  # which refuses a size before the pictures are read
    unreadable: list[str] = []
    named = {"tokenizer": tokenizer.name, "weights": f"sha256 {tokenizer.checksum}"}
    tokenizer.to(compute.device, compute.torch_dtype)
    read = {"reference set": _REFERENCE[resize]}
    computed = {"computed": f"in {compute.dtype} on {compute.device}", "size": f"{size} x {size}"}
    with progress_bar(count_of(sources), shown=compute.progress) as bar:
        pictures = _pictures(sources, size, resize, unreadable, bar.update)
        report = evaluate_reconstruction(tokenizer, pictures, lpips=lpips, compute=compute)
    return replace(report, protocol={**named, **computed, **read, **report.protocol}, unreadable=tuple(unreadable))


def evaluate_reconstruction(
    tokenizer: VQTokenizer,
    pictures: Iterable[Tensor],
    *,
    lpips: LPIPSNet = "alex",
    compute: Compute = Compute(),
) -> ReconstructionReport:
    """Encode and decode pictures, and compare them with their reconstructions.

    One pass is enough, in memory that does not grow with the number of pictures. Both sides are rounded to 8 bits, as
    in files. LPIPS and rFID are left out if their networks are not in the torch hub cache.

    Args:
        tokenizer: tokenizer on its device.
        pictures: pictures (3, H, W) in [-1, 1], all of the same size.
        lpips: backbone of LPIPS.
        compute: device of the tokenizer, and number of pictures at a time, which only changes rounding.

    Raises:
        LookupError: the extra is not installed.
        ValueError: there is no picture, a picture has another size or less than 11 x 11 pixels, or a pixel of a picture
            or a reconstruction is an integer, NaN or infinite.
    """
    require_evaluate_extra()
    perceptual: PerceptualFigures | None = None
    sizes = tokenizer.embedding.codebook_sizes
    counts, likeness = IdCounts(sizes), _Likeness()
    places, seconds = 0, 0.0
    for batch in _batches(pictures, compute.batch_size):
        refuse_pixels(batch)
        pixels = batch.to(compute.device)
        if perceptual is None:
            perceptual = PerceptualFigures(lpips, min(batch.shape[-2:]), compute.device)
            tokenizer.decode(tokenizer.encode(pixels[:1]))  # what is done once, at the first picture, is not timed
        started = time.perf_counter()
        ids = tokenizer.encode(pixels)
        outputs = to_rgb(tokenizer.decode(ids))  # which waits for a GPU
        seconds += time.perf_counter() - started
        counts.add(ids)
        places = ids[0, ..., 0].numel()
        inputs = to_rgb(pixels)
        likeness.add(inputs, outputs)
        perceptual.add(inputs, outputs)
    if perceptual is None:
        raise ValueError("got no picture to evaluate; name at least one that can be read")
    use, seen = counts.use(), likeness.pictures
    return ReconstructionReport(
        psnr=likeness.psnr / seen,
        ssim=likeness.ssim / seen,
        lpips=perceptual.lpips(),
        rfid=perceptual.rfid(),
        bits_per_picture=places * sum(map(math.log2, sizes)),
        codebook_usage=tuple(level.used.item() for level in use),
        perplexity=tuple(level.perplexity.item() for level in use),
        pictures_per_second=seen / seconds,
        left_out=perceptual.left_out,
        protocol=_protocol(seen, places, sizes) | perceptual.protocol,
    )


class Reconstruction(NamedTuple):
    """A picture through a tokenizer: its ids, and what they decode to."""

    #: The picture that was encoded, a square of the tokenizer's size.
    original: Image.Image
    image: Image.Image
    #: (h, w, Q), int64.
    ids: Tensor
    #: 10 log10(1 / MSE) of both pictures in 8 bits, in dB; infinite if they are equal.
    psnr: float


@torch.no_grad()
def reconstruct_image(
    tokenizer: Tokenizer,
    image: Image.Image,
    *,
    image_size: int | None = None,
    resize: Resize = "crop",
    device: torch.device | str = "cpu",
) -> Reconstruction:
    """Encode and decode one picture.

    Args:
        tokenizer: tokenizer, which is moved to the device.
        image: RGB picture.
        image_size: side of the square that is encoded; None: the side that the tokenizer was trained at.
        resize: way to make the picture square.
        device: device to compute on.

    Raises:
        ValueError: the tokenizer does not take the size, or decodes a pixel that is NaN or infinite.

    >>> from toklip_core.scenes import scene
    >>> found = reconstruct_image(load_tokenizer("vqgan-tiny"), Image.fromarray(scene(0).rgb), image_size=64)
    >>> found.image.size, tuple(found.ids.shape), 15 < found.psnr < 50
    ((64, 64), (8, 8, 4), True)
    """
    size = tokenizer.image_size if image_size is None else image_size
    tokenizer.grid(size, size)  # which refuses a size
    pixels = to_pixels(image, size, resize)[None].to(device)
    ids = tokenizer.to(device).encode(pixels)
    decoded = tokenizer.decode_clamped(ids)
    psnr = _psnr(to_rgb(pixels) / 255, to_rgb(decoded) / 255)
    return Reconstruction(to_picture(pixels[0]), to_picture(decoded[0]), ids[0].cpu(), psnr)


def _psnr(one: Tensor, other: Tensor) -> float:
    """Return 10 log10(1 / MSE), in dB, of a picture (1, 3, H, W) and its reconstruction, both in [0, 1]."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    return float(peak_signal_noise_ratio(other, one, data_range=1.0))


@dataclass
class _Likeness:
    """Sums of PSNR and SSIM over pictures and their reconstructions."""

    pictures: int = 0
    psnr: float = 0.0
    ssim: float = 0.0

    def add(self, inputs: Tensor, outputs: Tensor) -> None:
        """Add pictures (B, 3, H, W) and their reconstructions, both in 0 to 255."""
        from torchmetrics.functional.image import structural_similarity_index_measure

        # One by one, which is faster on a CPU, and independent of the batch size.
        for one, other in zip(inputs[:, None] / 255, outputs[:, None] / 255, strict=True):
            self.psnr += _psnr(one, other)
            self.ssim += float(cast(Tensor, structural_similarity_index_measure(other, one, data_range=1.0)))
        self.pictures += len(inputs)


def _pictures(
    sources: list[InputFile], size: int, resize: Resize, unreadable: list[str], seen: Callable[[], object]
) -> Iterator[Tensor]:
    for entry in entries(sources):
        seen()
        try:
            yield to_pixels(entry.image(), size, resize)
        except READING_ERRORS as error:
            unreadable.append(f"{entry.key}: {why_unreadable(error)}")


def _batches(pictures: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Yield batches (B, 3, H, W), B <= size, of pictures (3, H, W); refuse pictures of another size."""
    waiting: list[Tensor] = []
    first: torch.Size | None = None
    for picture in pictures:
        if min(picture.shape[-2:]) < _SSIM_WINDOW:
            raise ValueError(f"got pictures of {min(picture.shape[-2:])} px; SSIM needs {_SSIM_WINDOW} px")
        first = first or picture.shape
        if picture.shape != first:
            shapes = f"{tuple(first)} and {tuple(picture.shape)}"
            raise ValueError(f"got pictures of {shapes}; resize them to one size")
        waiting.append(picture)
        if len(waiting) == size:
            yield torch.stack(waiting)
            waiting = []
    if waiting:
        yield torch.stack(waiting)


def _protocol(pictures: int, places: int, sizes: Sequence[int]) -> dict[str, str | int]:
    return {
        "pictures": pictures,
        "values": "pictures and reconstructions rounded to 8 bits, RGB, data range 1",
        "psnr": "mean over pictures of 10 log10(1 / MSE), in dB",
        "ssim": f"mean over pictures, Gaussian window {_SSIM_WINDOW} x {_SSIM_WINDOW} of sigma 1.5, "
        "borders mirrored, k1 0.01, k2 0.03",
        "rfid": "between the reference set and its reconstructions",
        "codebook": f"{pictures * places} positions counted, {' + '.join(map(str, sizes))} codes",
        "software": ", ".join(f"{name} {version(name)}" for name in ("torchmetrics", "torch-fidelity", "torch")),
    }
