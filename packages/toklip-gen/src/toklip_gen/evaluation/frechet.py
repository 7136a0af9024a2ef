"""Comparison of pictures by activations of a network, gathered over a stream of pictures, and figures of these.

    rgb (B, 3, H, W), uint8 -Extractor-> features (B, D), and logits (B, 1008) if it is Inception
    -> Fréchet distance, Inception score, precision and recall

Shape letters: B pictures at a time, n pictures, D width of a feature.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from PIL import Image
from toklip_core.config import Compute
from toklip_core.evaluation import Matcher, described_inception, load_inception, load_matcher
from toklip_core.pictures import normalized, resample, to_pixels
from toklip_core.weights import refuse_not_finite
from torch import Tensor

#: The extractor of published figures.
INCEPTION = "inception"
#: Neighbour whose distance is the radius of a feature, as in ADM's evaluator.
_NEIGHBOUR = 3
_ROWS = 1024
#: Number of groups of pictures over which the Inception score is averaged.
_SPLITS = 10


class Activations(NamedTuple):
    """Activations of an extractor for B pictures."""

    #: (B, D), float32.
    features: Tensor
    #: (B, 1008), only for Inception.
    logits: Tensor | None


@dataclass(frozen=True)
class Extractor:
    """A network whose activations compare pictures."""

    name: str
    #: Its weights in words, with a checksum; two figures can only be compared if these are equal.
    weights: str
    #: Preparation of pictures, in words.
    how: str
    #: Function from rgb (B, 3, H, W), uint8, to their activations.
    compute: Callable[[Tensor], Activations]

    def __call__(self, rgb: Tensor) -> Activations:
        """Return the activations of rgb (B, 3, H, W), uint8, on the CPU; ValueError if one is not finite."""
        with torch.no_grad():
            seen = self.compute(rgb)
        refuse_not_finite(seen.features, f"a feature of {self.name}'s")
        return Activations(seen.features.float().cpu(), None if seen.logits is None else seen.logits.float().cpu())


def load_extractor(name: str = INCEPTION, device: torch.device | str = "cpu") -> Extractor:
    """Return an extractor: ``inception``, or a model for ``load_matcher``, whose unit vectors are the features.

    Raises:
        FileNotFoundError: weights are missing; those of Inception are never downloaded automatically.
        LookupError: the model is unknown, or the extra toklip-core[evaluate] is not installed.
        ValueError: the weights do not fit.
    """
    if name == INCEPTION:
        network = load_inception().to(device)
        how = "Inception v3 of 2015, resize of TensorFlow 1"
        return Extractor(name, described_inception(), how, lambda rgb: Activations(*network(rgb.to(device))))
    model, protocol = load_matcher(name, Compute(device=device), checksums=True)
    size = model.config.image_size

    def see(rgb: Tensor) -> Activations:
        return Activations(model.image_features(pixels_for(model, rgb)), None)

    how = f"unit features of {name} at {size} px, bicubic; pictures that are not square: {model.config.resize}"
    return Extractor(name, protocol["weights"], how, see)


def pixels_for(model: Matcher, rgb: Tensor) -> Tensor:
    """Return what a model reads, (B, 3, S, S) on its device, of rgb (B, 3, H, W), uint8.

    Squares are resampled; other pictures become squares in the way that the model was trained with.
    """
    size, device = model.config.image_size, model.logit_scale.device
    if rgb.shape[-2] == rgb.shape[-1]:
        return resample(normalized(rgb.to(device)), size)
    pictures = [Image.fromarray(picture.permute(1, 2, 0).cpu().numpy()) for picture in rgb]
    return torch.stack([to_pixels(picture, size, model.config.resize) for picture in pictures]).to(device)


class Moments(NamedTuple):
    """Mean (D,) and covariance (D, D) of features, float64."""

    mean: Tensor
    covariance: Tensor


def moments(features: Tensor) -> Moments:
    """Return the mean and covariance, over n - 1, of features (n, D) with n >= 2."""
    exact = features.double()
    return Moments(exact.mean(0), torch.cov(exact.T).reshape(exact.shape[1], exact.shape[1]))


def frechet_distance(one: Moments, other: Moments) -> float:
    """Return |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of two Gaussians.

    The trace of the root equals that of (R S2 R)^(1/2), where R is the root of S1. That matrix is symmetric, so its
    eigenvalues are real.

    Source: https://arxiv.org/abs/1706.08500, equation 6.

    >>> features = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    >>> frechet_distance(moments(features), moments(features)) < 1e-6
    True
    >>> round(frechet_distance(moments(features), moments(features + 1)), 3)
    4.0
    """
    values, vectors = torch.linalg.eigh(one.covariance)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    product = root @ other.covariance @ root
    shared = torch.linalg.eigvalsh((product + product.T) / 2).clamp_min(0).sqrt().sum()
    apart = (one.mean - other.mean).square().sum()
    # For equal Gaussians it is 0 up to the root of the rounding, and may be negative.
    return max(0.0, float(apart + one.covariance.trace() + other.covariance.trace() - 2 * shared))


def inception_score(logits: Tensor) -> float:
    """Return exp(E KL(p(y | x) || p(y))) of logits (n, classes), the mean over ten groups.

    Pictures are shuffled first, always in the same way, because in order of classes a group would have few of them.

    Source: https://arxiv.org/abs/1606.03498.
    """
    scores = []
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(0))
    for group in order.tensor_split(min(_SPLITS, len(logits))):
        shares = logits[group].double().softmax(1)
        marginal = shares.mean(0)
        scores.append((torch.xlogy(shares, shares).sum(1).mean() - torch.xlogy(marginal, marginal).sum()).exp())
    return float(torch.stack(scores).mean())


def precision_recall(real: Tensor, drawn: Tensor) -> tuple[float, float]:
    """Return the share of drawn features within the radius of a real one, and of real ones within that of a drawn one.

    A radius is the distance to the third nearest feature of the same kind.

    Args:
        real: (n, D), n > 3.
        drawn: (m, D), m > 3.

    Source: https://arxiv.org/abs/1904.06991, section 2; the third neighbour is ADM's.
    """
    return _within(drawn, real, _radii(real)), _within(real, drawn, _radii(drawn))


def _radii(features: Tensor) -> Tensor:
    nearest = [
        torch.cdist(rows, features).kthvalue(_NEIGHBOUR + 1, dim=1).values for rows in torch.split(features, _ROWS)
    ]
    return torch.cat(nearest)


def _within(features: Tensor, others: Tensor, radii: Tensor) -> float:
    inside = [(torch.cdist(rows, others) <= radii).any(1) for rows in torch.split(features, _ROWS)]
    return float(torch.cat(inside).double().mean())
