"""``toklip train vq``: a VQGAN from pictures, scenes or photographs.

    pixels -> encoder -> latents -> quantizer -> codes -> decoder -> reconstruction
                                       |                                |
                         codebook loss, entropy          L1 or L2, LPIPS, discriminator

Generator and discriminator train in one forward and one backward pass: the decoder's loss sees the discriminator with
detached weights, the discriminator's loss sees detached reconstructions. That is LlamaGen's order of updates exactly,
since it updates both from the same reconstructions; SEED-Voken updates the discriminator first.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from toklip_core.checkpoint import save_model_folder
from toklip_core.evaluation import load_lpips
from toklip_core.training import Evaluation, FitReport, Losses, ParameterGroup, fit
from torch import Tensor, nn
from torch.func import functional_call

from toklip_vq.losses import (
    LeCam,
    PatchDiscriminator,
    affinity,
    codebook_use,
    count_ids,
    entropy_loss,
    generator_loss,
    hinge_loss,
    quantize_by_index,
    quantize_straight_through,
)
from toklip_vq.samples import Mixture, held_out_pictures
from toklip_vq.settings import LossConfig, VQTrainConfig
from toklip_vq.vqgan import VQGAN, build_vqgan

#: Below this share of the codebook in use on the held-out pictures a warning is logged.
COLLAPSED = 0.1

_log = logging.getLogger(__name__)


def train_vq(config: VQTrainConfig, out: Path) -> FitReport:
    """Train a VQGAN into ``out``, or go on with the run there; see :func:`toklip_core.training.fit`.

    The model folder ``out/model`` loads with ``--tokenizer vqgan --weights out/model``.

    Raises:
        FileNotFoundError: the pictures, or the weights of the perceptual network, are not there.
        ValueError, LookupError, OSError: as ``fit``.
    """
    samples = Mixture(config.data, size=config.image_size, seed=config.run.seed)
    torch.manual_seed(config.run.seed)
    model = VQTraining(build_vqgan(config.model), config.losses).to(memory_format=torch.channels_last)
    held_out = held_out_pictures(config.held_out, size=config.image_size)

    def export(tensors: dict[str, Tensor], folder: Path) -> None:
        vqgan = build_vqgan(config.model)
        vqgan.load_state_dict(tensors)
        save_model_folder(folder, config.model.model_dump(mode="json"), vqgan)

    settings = config.model_dump(mode="json", exclude={"run"})
    return fit(
        model,
        samples,
        vq_objective,
        config.run,
        out,
        settings=settings,
        export=export,
        product=model.vqgan,
        evaluate=lambda vqgan: evaluate_vqgan(vqgan, held_out, batch_size=config.run.batch_size),
        first=lambda core: start_codebook(core, samples, config) if config.losses.start_codebook else None,
        groups=parameter_groups(model, config),
        unused_parameters=model.discriminator is not None and config.losses.discriminator_start > 0,
    )


def vq_objective(model: nn.Module, pixels: Tensor, step: int) -> Losses:
    """Call the model, as ``fit`` asks for."""
    losses: Losses = model(pixels, step)
    return losses


class VQTraining(nn.Module):
    """A VQGAN and all that it is trained with; the forward pass returns the losses.

    Args:
        vqgan: the tokenizer; what the run is for.
        config: losses and weights.
    """

    def __init__(self, vqgan: VQGAN, config: LossConfig) -> None:
        super().__init__()
        self.vqgan = vqgan
        self.config = config
        self.perceptual = load_lpips(config.perceptual) if config.perceptual != "none" else None
        discriminated = config.discriminator_weight > 0
        self.discriminator = (
            PatchDiscriminator(config.discriminator_channels, config.discriminator_layers, config.discriminator_norm)
            if discriminated
            else None
        )
        self.lecam = LeCam() if discriminated and config.lecam_weight else None

    def forward(self, pixels: Tensor, step: int) -> Losses:
        """Return the losses of pixels (B, 3, H, W) in [-1, 1] at a step, counted from 0; weights are included."""
        config, codebook = self.config, self.vqgan.codebook
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        latents = self.vqgan.latents(pixels).movedim(1, -1)
        flat = latents.reshape(-1, latents.shape[-1]).float()
        with torch.autocast(pixels.device.type, enabled=False):
            quantize = quantize_by_index if config.quantizer == "index" else quantize_straight_through
            quantized = quantize(flat, codebook, beta=config.beta, beta_placement=config.beta_placement)
            losses = {"codebook": config.codebook_weight * quantized.loss}
            if config.entropy_weight:
                scores = affinity(flat, codebook)
                losses["entropy"] = config.entropy_weight * entropy_loss(scores, temperature=config.entropy_temperature)
        pictures = self.vqgan.reconstruct(quantized.codes.view_as(latents)).float()
        distance = F.l1_loss if config.reconstruction == "l1" else F.mse_loss
        losses["reconstruction"] = config.reconstruction_weight * distance(pictures, pixels)
        if self.perceptual is not None:
            losses["perceptual"] = config.perceptual_weight * self.perceptual(pictures, pixels).float().mean()
        if self.discriminator is not None and step >= config.discriminator_start:
            losses |= self._adversarial(self.discriminator, pixels, pictures)
        used, perplexity = codebook_use(count_ids(quantized.ids, len(codebook.weight)))
        return Losses(losses, {"codebook_used_by_batch": used, "codebook_perplexity": perplexity})

    def _adversarial(self, discriminator: PatchDiscriminator, pixels: Tensor, pictures: Tensor) -> dict[str, Tensor]:
        config = self.config
        frozen = {name: weight.detach() for name, weight in discriminator.named_parameters()}
        judged = functional_call(discriminator, frozen, pictures)
        real, fake = discriminator(pixels), discriminator(pictures.detach())
        losses = {
            "generator": config.discriminator_weight * generator_loss(judged, config.generator_loss),
            "discriminator": config.discriminator_loss_weight * hinge_loss(real, fake),
        }
        if self.lecam is not None:
            losses["lecam"] = config.discriminator_loss_weight * config.lecam_weight * self.lecam(real, fake)
        return losses


def parameter_groups(model: VQTraining, config: VQTrainConfig) -> list[ParameterGroup]:
    """Return one group for the VQGAN and one for the discriminator, each clipped by itself."""
    names = {name for name, weight in model.named_parameters() if weight.requires_grad}
    judge = frozenset(name for name in names if name.startswith("discriminator."))
    groups = [ParameterGroup(names=frozenset(names - judge), clip_with="vqgan")]
    if judge:
        # Where only the tokenizer is clipped, as in SEED-Voken, the discriminator is not.
        limit = config.run.max_grad_norm if config.losses.clip_discriminator else 0.0
        groups.append(ParameterGroup(names=judge, clip_with="discriminator", max_grad_norm=limit))
    return groups


@torch.no_grad()
def start_codebook(model: nn.Module, samples: Mixture, config: VQTrainConfig) -> None:
    """Set each code to the latent of some patch of the first pictures, so that all of them start in use.

    Source: the data-dependent start of https://arxiv.org/abs/2005.08520, section 3.3; without k-means, which changed
    nothing here.
    """
    assert isinstance(model, VQTraining)
    codebook = model.vqgan.codebook
    size = len(codebook.weight)
    per_picture = (config.image_size // model.vqgan.downsample_factor) ** 2
    # One token of a picture in eight: neighbours are alike.
    needed = min(math.ceil(8 * size / per_picture), len(samples))
    device = codebook.weight.device
    found: list[Tensor] = []
    for start in range(0, needed, config.run.batch_size):
        keys = [(0, index) for index in range(start, min(start + config.run.batch_size, needed))]
        pixels = torch.stack([samples[key] for key in keys]).to(device)
        found.append(model.vqgan.latents(pixels).movedim(1, -1).flatten(0, 2).float())
    latents = torch.cat(found)
    chosen = torch.randperm(len(latents), generator=torch.Generator().manual_seed(config.run.seed))[:size].to(device)
    rows = latents[chosen]
    codebook.weight[: len(rows)] = F.normalize(rows, dim=-1) if codebook.metric == "cosine" else rows


def evaluate_vqgan(vqgan: nn.Module, pixels: Tensor, *, batch_size: int) -> Evaluation:
    """Return PSNR (dB, mean over pictures, of clamped pictures), and use of the codebook; eight pictures beside theirs.

    Every process evaluates its share.

    Args:
        vqgan: in eval mode.
        pixels: (N, 3, H, W) in [-1, 1].
        batch_size: pictures at a time.
    """
    assert isinstance(vqgan, VQGAN)
    ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)
    device = vqgan.codebook.weight.device
    size = len(vqgan.codebook.weight)
    counts = torch.zeros(size, dtype=torch.int64, device=device)
    total = torch.zeros(2, dtype=torch.float64, device=device)
    shown: list[Tensor] = []
    for batch in torch.split(pixels[ranks[0] :: ranks[1]], batch_size):
        batch = batch.to(device)
        ids = vqgan.codebook.nearest(vqgan.latents(batch).movedim(1, -1))
        rebuilt = vqgan.reconstruct(F.embedding(ids, vqgan.codebook.rows())).float().clamp(-1, 1)
        counts += ids.reshape(-1).bincount(minlength=size)
        error = (rebuilt - batch).div(2).square().flatten(1).mean(1).clamp_min(1e-10)
        total += torch.stack([-10 * error.double().log10().sum(), error.new_tensor(len(batch)).double()])
        shown = shown or [torch.cat([batch[:8], rebuilt[:8]], dim=-1)]
    if ranks[1] > 1:
        dist.all_reduce(counts)
        dist.all_reduce(total)
    used, perplexity = codebook_use(counts)
    if used < COLLAPSED:
        _log.warning(
            "codebook collapse: %d of %d codes in use on %d held-out pictures; a smaller codebook_dim, start_codebook, "
            "or entropy_weight help",
            int((counts > 0).sum()),
            size,
            len(pixels),
        )
    figures = {
        "psnr": float(total[0] / total[1]),
        "codebook_used": float(used),
        "codebook_perplexity": float(perplexity),
    }
    return Evaluation(figures, {"reconstructions": torch.cat(shown)})
