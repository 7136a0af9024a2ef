"""A generator is measured on what it draws: captions of Scenes, or every class alike.

    captions or classes -draw-> pictures -> pictures.py and scene_match.py beside this file
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from toklip_core.devices import Compute, refuse_missing_device
from toklip_core.evaluation import load_matcher
from toklip_core.outputs import refuse_output
from toklip_core.pictures import to_levels
from toklip_core.ranges import refuse_counts, refuse_drawing
from toklip_core.training import derived_seed
from torch import Tensor
from tqdm import tqdm

from toklip_gen.evaluation.adm_npz import SampleWriter
from toklip_gen.evaluation.frechet import INCEPTION, load_extractor, moments
from toklip_gen.evaluation.pictures import Drawn, GenerationReport, gather, measure_pictures, refuse_other_size
from toklip_gen.evaluation.references import Reference, ReferenceInfo, load_reference
from toklip_gen.evaluation.scene_match import measure_match, scene_prompts
from toklip_gen.generator import (
    ClassCondition,
    GeneratorConfig,
    Guidance,
    PictureGenerator,
    Texts,
    load_generator,
    refuse_guidance,
)


class Sampling(NamedTuple):
    """Settings for sampling pictures."""

    #: Guidance scale; 1 turns guidance off. None: the generator's own.
    guidance: float | None = None
    temperature: float = 1.0
    #: Number of the likeliest ids to sample from; 0 means all. None: the generator's own.
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0
    #: Run with torch.compile, for GPUs; see :func:`toklip_gen.generator.sample`.
    compiled: bool = False

    def refuse(self) -> None:
        """ValueError if a value is out of its range."""
        if self.guidance is not None:
            refuse_guidance(Guidance(self.guidance))
        refuse_drawing(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k or 0, seeds=[self.seed])

    def of(self, config: GeneratorConfig) -> Sampling:
        """Return the settings with the generator's own values in place of None."""
        return self._replace(
            guidance=config.guidance if self.guidance is None else self.guidance,
            top_k=config.top_k if self.top_k is None else self.top_k,
        )

    def as_text(self) -> str:
        """Return the settings as text for a protocol; call :meth:`of` first."""
        return (
            f"guidance {self.guidance:g}, temperature {self.temperature:g}, top-k {self.top_k or 'all'}, "
            f"top-p {self.top_p:g}, seed {self.seed}"
        )


def evaluate_on_scenes(
    generator: str,
    count: int,
    *,
    split: str = "held-out",
    sampling: Sampling | None = None,
    judge: str | None = None,
    features: str | None = None,
    batch_size: int = 32,
    toklip: Path | str | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> GenerationReport:
    """Evaluate a text generator on captions of Scenes: do pictures show them, and how far are they from the scenes.

    Args:
        generator: see :func:`toklip_gen.generator.load_generator`, also for ``toklip`` and ``dtype``.
        count: number of captions.
        split: split of the scenes, whose backgrounds are plain; see :func:`toklip_gen.evaluation.scene_prompts`.
        sampling: settings of the sampling; None: the generator's own.
        judge: CLIP or TokLIP that judges in addition to the pixels, and gives the CLIP score.
        features: extractor for the Fréchet distance between pictures and scenes; None leaves it out.
        batch_size: number of pictures processed at once.
        device: device to compute on.
        progress: show a progress bar on stderr if that is a terminal.

    Raises:
        FileNotFoundError, LookupError, ValueError: a model is missing or does not fit, or the generator takes classes.
    """
    refuse_missing_device(device)
    refuse_counts(count=count, batch_size=batch_size)
    (sampling or Sampling()).refuse()
    pictures = load_generator(generator, toklip=toklip, dtype=dtype, device=device)
    if isinstance(pictures.config.condition, ClassCondition):
        raise ValueError(f"{generator!r} draws classes, and Scenes have captions; leave out --scenes, or name another")
    matcher, of_judge = (None, {}) if judge is None else load_matcher(judge, Compute(device=device), checksums=True)
    extractor = None if features is None else load_extractor(features, device)
    sampling = (sampling or Sampling()).of(pictures.config)
    side = pictures.config.grid[0] * pictures.tokenizer.downsample_factor
    prompts = scene_prompts(count, split=split, size=side)
    drawn: list[Tensor] = []
    with tqdm(total=count, unit=" pictures", disable=None if progress else True) as bar:

        def draw(texts: Sequence[str]) -> Tensor:
            drawn.append(_pixels(pictures, texts, sampling, first=sum(map(len, drawn))).clamp(-1, 1))
            bar.update(len(texts))
            return drawn[-1]

        match = measure_match(
            draw, prompts, tokenizer=pictures.tokenizer, model=matcher, device=device, batch_size=batch_size
        )
    reference = None
    if extractor is not None:
        scenes = (Drawn(torch.from_numpy(prompt.scene.pixels).movedim(-1, 0), None) for prompt in prompts)
        real = gather(scenes, extractor=extractor, batch_size=batch_size)
        what = f"{count} scenes of {split} on plain backgrounds, seed 0, whose captions were drawn"
        info = ReferenceInfo(
            purpose="generation",
            extractor=extractor.name,
            weights=extractor.weights,
            image_size=side,
            pictures=count,
            source=what,
        )
        reference = Reference(info, moments(real.features), real.features, what)
    texts = [prompt.text for prompt in prompts]
    measured = [Drawn(levels, text) for levels, text in zip(to_levels(torch.cat(drawn)), texts, strict=True)]
    report = measure_pictures(measured, extractor=extractor, reference=reference, clip=matcher, batch_size=batch_size)
    protocol: dict[str, str | int] = {
        "generator": f"{generator}, in {str(pictures.generator.head.weight.dtype).removeprefix('torch.')}",
        "drawn": f"captions of {count} scenes of {split}, each on a plain background; {sampling.as_text()}",
        "pixels": "objects by contrast and connected parts, colour by hue, shape by the renderer",
    }
    if isinstance(pictures.conditions, Texts) and (cut := pictures.conditions.cut_texts(texts)):
        protocol["cut"] = f"{len(cut)} of {len(texts)} captions, longer than the generator reads"
    if of_judge:
        protocol["model"] = f"{of_judge['model']}, {of_judge['weights']}; the true caption against other words"
    return replace(report, match=match, protocol=protocol | report.protocol)


def evaluate_on_classes(
    generator: str,
    per_class: int,
    *,
    sampling: Sampling | None = None,
    reference: Path | str | None = None,
    features: str = INCEPTION,
    size: int | None = None,
    npz: Path | str | None = None,
    batch_size: int = 32,
    toklip: Path | str | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> GenerationReport:
    """Evaluate a class generator on the same number of pictures per class.

    LlamaGen's figures are for 50,000 pictures of random classes.

    Args:
        generator: see :func:`toklip_gen.generator.load_generator`, also for ``toklip`` and ``dtype``.
        per_class: number of pictures per class; the classes take turns.
        sampling: settings of the sampling; None: the generator's own.
        reference: see :func:`toklip_gen.evaluation.load_reference`.
        features: see :func:`toklip_gen.evaluation.load_extractor`.
        size: side in pixels to resize the pictures to, as LlamaGen resizes those of 384 px to 256: bicubic, without
            antialiasing, as in its sample_c2i_ddp.py; None: keep their size.
        npz: file to write the pictures to as well, for ADM's evaluator.
        batch_size: number of pictures processed at once.
        device: device to compute on.
        progress: show a progress bar on stderr if that is a terminal.

    Raises:
        FileNotFoundError, LookupError, ValueError: a model is missing or does not fit, the generator takes texts, or
            the reference has another size.
    """
    refuse_missing_device(device)
    refuse_counts(per_class=per_class, batch_size=batch_size)
    (sampling or Sampling()).refuse()
    if npz is not None:
        refuse_output(npz, [] if reference is None else [reference], option="--npz", suffixes=[".npz"])
    extractor = load_extractor(features, device)
    known = None if reference is None else load_reference(reference, extractor)
    pictures = load_generator(generator, toklip=toklip, dtype=dtype, device=device)
    condition = pictures.config.condition
    if not isinstance(condition, ClassCondition):
        raise ValueError(f"{generator!r} draws texts, and no classes; name --scenes in place of --per-class")
    drawn_size = pictures.image_size if size is None else (size, size)
    if known is not None:
        refuse_other_size(drawn_size, known, way_out=f"resize them by --size {known.info.image_size}")
    sampling = (sampling or Sampling()).of(pictures.config)
    count = condition.classes * per_class

    def drawn() -> Iterator[Drawn]:
        for start in tqdm(range(0, count, batch_size), disable=None if progress else True):
            classes = [place % condition.classes for place in range(start, min(start + batch_size, count))]
            pixels = _pixels(pictures, classes, sampling, first=start)
            yield from (Drawn(levels, None) for levels in to_levels(_resized(pixels, size)))

    with nullcontext() if npz is None else SampleWriter(npz) as writer:
        report = measure_pictures(drawn(), extractor=extractor, reference=known, npz=writer, batch_size=batch_size)
    protocol: dict[str, str | int] = {
        "generator": f"{generator}, in {str(pictures.generator.head.weight.dtype).removeprefix('torch.')}",
        "drawn": f"{per_class} pictures of each of {condition.classes} classes; {sampling.as_text()}",
    }
    if drawn_size != pictures.image_size:
        before, after = (" x ".join(map(str, shape)) for shape in (pictures.image_size, drawn_size))
        protocol["resized"] = f"from {before} to {after}, bicubic without antialiasing, as LlamaGen does"
    return replace(report, protocol=protocol | report.protocol)


def _pixels(pictures: PictureGenerator, prompts: Sequence[int] | Sequence[str], how: Sampling, *, first: int) -> Tensor:
    """(B, 3, H, W), near [-1, 1]; picture n of a run has a seed of its own, whatever the batches."""
    ids = pictures.draw(
        prompts,
        seeds=[derived_seed(how.seed, first + place) for place in range(len(prompts))],
        guidance=how.guidance,
        temperature=how.temperature,
        top_k=how.top_k,
        top_p=how.top_p,
        compiled=how.compiled,
    )
    return pictures.tokenizer.decode(ids).float().cpu()


def _resized(pixels: Tensor, size: int | None) -> Tensor:
    if size is None or pixels.shape[-1] == size:
        return pixels
    # As the published figures have it: neither antialiased nor cut to [-1, 1] before.
    return torch.nn.functional.interpolate(pixels, (size, size), mode="bicubic")
