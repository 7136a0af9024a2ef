"""``toklip train vq``: trains a VQGAN on pictures, scenes or photographs.

    pixels -> encoder -> latents -> quantizer -> codes -> decoder -> reconstruction
                                       |                                |
                         codebook loss, entropy          L1 or L2, LPIPS, discriminator

Generator and discriminator train in one forward and one backward pass: the decoder's loss uses the discriminator with
detached weights, and the discriminator's loss uses detached reconstructions. That equals LlamaGen's order of updates,
which updates both from the same reconstructions; SEED-Voken updates the discriminator first.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from toklip_core.evaluation import IdCounts, load_lpips
from toklip_core.training import Evaluation, FitReport, Losses, ParameterGroup, Samples, Task, fit
from toklip_core.weights import save_model_folder
from torch import Tensor, nn
from torch.func import functional_call

from toklip_vq.training.losses import LeCam, PatchDiscriminator, generator_loss, hinge_loss
from toklip_vq.training.quantization import (
    RESTART_PERIOD,
    CodeRestart,
    comparable,
    count_ids,
    entropy,
    quantize,
    unquantized,
    use_of_batch,
)
from toklip_vq.training.samples import held_out_pictures, open_sources
from toklip_vq.training.settings import LossConfig, VQTrainConfig
from toklip_vq.vqgan import VQGAN, Codebook

#: A warning is logged if the held-out pictures use less than this share of the codes that they could: of the codebook,
#: or of their number of ids if that is smaller.
COLLAPSED = 0.1

#: Quantizer -> what helps against a collapsed codebook; other settings have no effect on it.
_AGAINST_COLLAPSE = {
    "vq": "a smaller codebook_dim, quantize_from, restart_until or entropy_weight help",
    "ibq": "a smaller codebook_dim, quantize_from, restart_until or entropy_weight help",
    "residual": "a smaller codebook_dim, quantize_from or restart_until help",
    "lfq": "entropy_weight or a longer training helps",
    "fsq": "a longer training or fewer values_per_channel help",
}

_log = logging.getLogger(__name__)

_Value = TypeVar("_Value", float, Tensor)


def train_vq(config: VQTrainConfig, out: Path) -> FitReport:
    """Train a VQGAN into the folder ``out``, or resume the run there; see :func:`toklip_core.training.fit`.

    The model folder ``out/model`` loads with ``--tokenizer vqgan --weights out/model``.

    Raises:
        FileNotFoundError: the pictures, or the weights of the perceptual network, are not there.
        ValueError, LookupError, OSError: raised by ``fit``.
    """
    return fit(VQTask(config), config.run, out)


class VQTask(Task):
    """Learn to rebuild pictures from ids: a VQGAN, with the discriminator that judges what it rebuilds.

    Nothing is frozen but the perceptual network. The VQGAN alone is the product.

    Args:
        config: settings of the run.

    Raises:
        FileNotFoundError: the pictures, or the weights of the perceptual network, are not there.
        ValueError: a held-out picture cannot be read.
    """

    model: VQTraining
    samples: Samples[Tensor]
    product = "vqgan"

    def __init__(self, config: VQTrainConfig) -> None:
        self.config = config
        self.samples = open_sources(config.data, size=config.image_size, seed=config.run.seed)
        self.settings = config.model_dump(mode="json", exclude={"run"})
        _warn_of_late_beginnings(config)
        torch.manual_seed(config.run.seed)
        self.model = VQTraining(VQGAN(config.model), config.losses).to(memory_format=torch.channels_last)
        self.unused_parameters = config.losses.discriminator_start > 0 or config.losses.quantize_from > 0
        self._started = False
        held_out = held_out_pictures(config.held_out, size=config.image_size)
        if held_out is not None:
            self.evaluate = lambda product: evaluate_vqgan(product, held_out, batch_size=_at_once(config))

    def objective(self, model: nn.Module, prepared: Tensor, step: int) -> Losses:
        """Return the losses of pixels (B, 3, H, W) in [-1, 1]; the codebook starts at its first step."""
        if step == self.config.losses.quantize_from > 0 and not self._started:
            start_codebook(self.model.vqgan, self.samples, self.config)
            codebooks = self.model.vqgan.codebooks()
            self.model.replaced = {level: torch.arange(len(each.weight)) for level, each in enumerate(codebooks)}
            self._started = True  # the further micro-batches of the step have this codebook, too
        return cast(Losses, model(prepared, step))

    def replaced_rows(self) -> dict[str, Tensor]:
        """Return the codes that started, or restarted, in the step."""
        rows, self.model.replaced = self.model.replaced, {}
        names = {id(weight): name for name, weight in self.model.vqgan.named_parameters()}
        codebooks = self.model.vqgan.codebooks()
        return {names[id(codebooks[level].weight)]: codes for level, codes in rows.items()}

    def export(self, tensors: dict[str, Tensor], folder: Path) -> None:
        """Write the model folder of the tokenizer."""
        result = VQGAN(self.config.model)
        result.load_state_dict(tensors)
        save_model_folder(folder, self.config.model.model_dump(mode="json"), result)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return one group for the VQGAN and one for the discriminator; their gradients are clipped separately."""
        names = {name for name, weight in self.model.named_parameters() if weight.requires_grad}
        judge = frozenset(name for name in names if name.startswith("discriminator."))
        groups = [ParameterGroup(names=frozenset(names - judge), clip_with="vqgan")]
        if judge:
            # Where only the tokenizer is clipped, as in SEED-Voken, the discriminator is not.
            limit = self.config.run.max_grad_norm if self.config.losses.clip_discriminator else 0.0
            groups.append(ParameterGroup(names=judge, clip_with="discriminator", max_grad_norm=limit))
        return groups


class VQTraining(nn.Module):
    """A VQGAN with its losses and the networks that they need; the forward pass returns the losses.

    Args:
        vqgan: the tokenizer that the run trains.
        config: losses and their weights.
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
        self._codebook_sizes = vqgan.quantizer().embedding.codebook_sizes
        restarts = [CodeRestart(len(level.weight)) for level in vqgan.codebooks()] if config.restart_until else []
        self.restarts = nn.ModuleList(restarts)
        #: Codes that were set anew in this step, by level.
        self.replaced: dict[int, Tensor] = {}

    def forward(self, pixels: Tensor, step: int) -> Losses:
        """Return the weighted losses of pixels (B, 3, H, W) in [-1, 1] at a step, counted from 0."""
        config = self.config
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        latents = self.vqgan.latents(pixels).movedim(1, -1)
        flat = latents.reshape(-1, latents.shape[-1]).float()
        with torch.autocast(pixels.device.type, enabled=False):
            codes, losses, metrics = self._quantized(flat, step)
        pictures = self.vqgan.reconstruct(codes.view_as(latents)).float()
        distance = F.l1_loss if config.reconstruction == "l1" else F.mse_loss
        losses["reconstruction"] = config.reconstruction_weight * distance(pictures, pixels)
        if self.perceptual is not None:
            losses["perceptual"] = config.perceptual_weight * self.perceptual(pictures, pixels).float().mean()
        if self.discriminator is not None and step >= config.discriminator_start:
            losses |= self._adversarial(self.discriminator, pixels, pictures)
        return Losses(losses, metrics)

    def _quantized(self, latents: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Return codes (N, C), losses and metrics of latents (N, C)."""
        config, vqgan = self.config, self.vqgan
        if step < config.quantize_from:
            return unquantized(latents, vqgan), {}, {}
        restarts = config.quantize_from < step <= config.restart_until  # not at quantize_from, where all codes are new
        if restarts:
            self._restart(latents, step - config.quantize_from)
        quantized = quantize(latents, vqgan, config)
        losses = {}
        if vqgan.config.quantizer != "fsq":
            losses["codebook"] = config.codebook_weight * quantized.loss
        if config.entropy_weight:
            losses["entropy"] = config.entropy_weight * entropy(
                latents, vqgan, temperature=config.entropy_temperature
            )
        for level, restart in enumerate(self.restarts if restarts else []):
            assert isinstance(restart, CodeRestart)
            restart.add(count_ids(quantized.ids[:, level], len(restart.counts)))
        use = use_of_batch(quantized.ids, self._codebook_sizes)
        metrics = by_level("codebook_used_by_batch", [level.used.float() for level in use])
        return quantized.codes, losses, metrics | by_level("codebook_perplexity", [u.perplexity.float() for u in use])

    def _restart(self, latents: Tensor, step: int) -> None:
        """Restart the unused codes of each level, if it is time."""
        latents, before = latents.detach(), None
        for level, (codebook, restart) in enumerate(zip(self.vqgan.codebooks(), self.restarts, strict=True)):
            assert isinstance(restart, CodeRestart)
            if not restart.is_due(step):
                return
            latents = comparable(_rest_of(latents, before), codebook)
            self.replaced[level] = restart(codebook, latents, step)
            before = codebook

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


def _warn_of_late_beginnings(config: VQTrainConfig) -> None:
    """Log what a run never does, as a short one of a recipe for a long one."""
    losses, steps = config.losses, config.run.steps
    if losses.quantize_from >= steps:
        message = "losses.quantize_from (%d) is not reached in %d steps: %s"
        has_codes = config.model.quantizer in ("vq", "ibq", "residual")
        why = "the exported codes are random and untrained" if has_codes else "the decoder never sees quantized latents"
        _log.warning(message, losses.quantize_from, steps, why)
    if 0 < min(losses.restart_until, steps - 1) < losses.quantize_from + RESTART_PERIOD:
        message = "no code is restarted: the first restart would be at step %d, after the end or restart_until (%d)"
        _log.warning(message, losses.quantize_from + RESTART_PERIOD, losses.restart_until)
    if losses.discriminator_weight and losses.discriminator_start >= steps:
        message = "losses.discriminator_start (%d) is not reached in %d steps: nothing is learned from a discriminator"
        _log.warning(message, losses.discriminator_start, steps)


@torch.no_grad()
def start_codebook(vqgan: VQGAN, samples: Samples[Tensor], config: VQTrainConfig) -> None:
    """Set each code to the latent of a random patch of the training pictures, so that all codes start in use.

    If the pictures have fewer patches than there are codes, the other codes keep their random values.

    Further levels of a residual quantizer are set to what those before them leave. Bits and scalars have no codes.

    Source: https://arxiv.org/abs/2005.08520, section 3.3, where k-means chooses them.
    """
    codebooks = vqgan.codebooks()
    if not codebooks:
        return
    size, device = len(codebooks[0].weight), codebooks[0].weight.device
    per_picture = (config.image_size // vqgan.downsample_factor) ** 2
    # One latent in eight of each picture, because neighbours are alike.
    needed = min(math.ceil(8 * size / per_picture), len(samples))
    found: list[Tensor] = []
    for start in range(0, needed, _at_once(config)):
        places = range(start, min(start + _at_once(config), needed))
        keys = [(0, place * len(samples) // needed) for place in places]  # from all sources
        pixels = torch.stack([samples[key] for key in keys]).to(device)
        found.append(vqgan.latents(pixels).movedim(1, -1).flatten(0, 2).float())
    latents, before = torch.cat(found), None
    draw = torch.Generator().manual_seed(config.run.seed)
    for codebook in codebooks:
        latents = comparable(_rest_of(latents, before), codebook)
        chosen = torch.randperm(len(latents), generator=draw)[:size].to(device)
        codebook.weight[: len(chosen)] = latents[chosen]
        if dist.is_available() and dist.is_initialized():
            dist.broadcast(codebook.weight, 0)  # a GPU's sums may differ in the last bit, and would stay different
        before = codebook


def _rest_of(latents: Tensor, codebook: Codebook | None) -> Tensor:
    """Return what the nearest codes leave of latents (N, C): all of them without a codebook."""
    return latents if codebook is None else latents - F.embedding(codebook.nearest(latents), codebook.weight)


def _at_once(config: VQTrainConfig) -> int:
    """Return the number of pictures that a process takes at a time in training."""
    processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    return max(1, config.run.batch_size // (config.run.accumulate * processes))


def by_level(name: str, values: Sequence[_Value]) -> dict[str, _Value]:
    """Return the figures of the levels by name: of one level the name itself, else name_0, name_1, ...

    >>> by_level("use", [0.5]), by_level("use", [0.5, 1.0])
    ({'use': 0.5}, {'use_0': 0.5, 'use_1': 1.0})
    """
    return {name if len(values) == 1 else f"{name}_{level}": value for level, value in enumerate(values)}


def evaluate_vqgan(vqgan: nn.Module, pixels: Tensor, *, batch_size: int) -> Evaluation:
    """Return the mean PSNR in dB of clamped pictures, the codebook use, and eight pictures beside their originals.

    Every process evaluates its share of the pictures.

    Args:
        vqgan: VQGAN in evaluation mode.
        pixels: (N, 3, H, W) in [-1, 1].
        batch_size: number of pictures at a time.
    """
    assert isinstance(vqgan, VQGAN)
    ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)
    device = vqgan.quant_conv.weight.device
    quantizer = vqgan.quantizer()
    total = torch.zeros(2, dtype=torch.float64, device=device)
    seen: list[Tensor] = []
    shown: list[Tensor] = []
    for batch in torch.split(pixels[ranks[0] :: ranks[1]], batch_size):
        batch = batch.to(device)  # empty if there are more processes than pictures
        ids, _ = quantizer.search(vqgan.latents(batch).movedim(1, -1))
        rebuilt = vqgan.reconstruct(quantizer.embedding(ids)).float().clamp(-1, 1)
        seen.append(ids.flatten(0, -2).cpu())
        error = (rebuilt - batch).div(2).square().flatten(1).mean(1).clamp_min(1e-10)
        total += torch.stack([-10 * error.double().log10().sum(), error.new_tensor(len(batch)).double()])
        shown = shown or [torch.cat([batch[:8], rebuilt[:8]], dim=-1)]
    if ranks[1] > 1:
        everywhere: list[list[Tensor]] = [[] for _ in range(ranks[1])]
        dist.all_gather_object(everywhere, seen)
        seen = [ids for of_rank in everywhere for ids in of_rank]
        dist.all_reduce(total)
    counts = IdCounts(quantizer.embedding.codebook_sizes)
    counts.add(torch.cat(seen))
    use = counts.use()
    seen_ids = sum(map(len, seen))
    for level, (found, size) in enumerate(zip(use, quantizer.embedding.codebook_sizes, strict=True)):
        used = round(float(found.used) * size)
        if used < COLLAPSED * min(size, seen_ids) and ranks[0] == 0:
            where = f" of level {level}" if len(use) > 1 else ""
            advice = _AGAINST_COLLAPSE[vqgan.config.quantizer]
            message = "codebook collapse%s: %d of %d codes in use on %d held-out pictures; %s"
            _log.warning(message, where, used, size, len(pixels), advice)
    figures = {"psnr": float(total[0] / total[1])}
    figures |= by_level("codebook_used", [float(level.used) for level in use])
    figures |= by_level("codebook_perplexity", [float(level.perplexity) for level in use])
    return Evaluation(figures, {"reconstructions": torch.cat(shown)})
