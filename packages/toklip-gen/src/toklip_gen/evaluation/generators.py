"""Evaluation of a generator on pictures that it draws, from captions of Scenes or from all classes.

    captions or classes -draw-> pictures -> pictures.py and scene_match.py beside this file
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from toklip_core.config import refuse_counts, refuse_drawing, refuse_missing_device, refuse_outside
from toklip_core.drawing import Drawing
from toklip_core.pictures import refuse_output, to_rgb
from toklip_core.plugins import PictureModel
from toklip_core.scenes import Scenes
from toklip_core.training import derived_seed
from torch import Tensor
from tqdm import tqdm

from toklip_gen.evaluation.adm_npz import SampleWriter
from toklip_gen.evaluation.frechet import load_extractor, moments
from toklip_gen.evaluation.pictures import (
    GenerationReport,
    Measures,
    PictureWithCaption,
    gather,
    measure_pictures,
    refuse_other_size,
)
from toklip_gen.evaluation.references import Reference, ReferenceInfo
from toklip_gen.evaluation.scene_match import measure_match, scene_prompts
from toklip_gen.generator import ModelSettings


@dataclass(frozen=True)
class SamplingSettings:
    """Settings for sampling the pictures of an evaluation.

    Raises:
        ValueError: a number is out of its range.
    """

    #: Settings of drawing; those that are None are the model's own.
    drawing: Drawing = Drawing()
    #: Seed from which every picture's own is derived.
    seed: int = 0
    #: Run with torch.compile, for GPUs; see :meth:`toklip_core.drawing.Sampler.draw`.
    compiled: bool = False
    #: Number of pictures processed at once.
    batch_size: int = 32

    def __post_init__(self) -> None:
        refuse_counts(batch_size=self.batch_size)
        refuse_drawing(seeds=[self.seed])

    def of(self, model: PictureModel) -> SamplingSettings:
        """Return the settings with the model's own values in place of None."""
        return replace(self, drawing=self.drawing.completed(model.drawing))

    def as_text(self) -> str:
        """Return the settings as text for a protocol; call :meth:`of` first."""
        return f"{self.drawing.as_text()}, seed {self.seed}"


def evaluate_on_scenes(
    generator: ModelSettings,
    scenes: Scenes,
    measures: Measures = Measures(extractor=None),
    *,
    sampling: SamplingSettings = SamplingSettings(),
    progress: bool = False,
) -> GenerationReport:
    """Evaluate a text generator on captions of Scenes: the match of its pictures, and their distance to the scenes.

    Args:
        generator: generator of texts.
        scenes: scenes whose captions are drawn, on plain backgrounds and at the generator's own size; see
            :func:`toklip_gen.evaluation.scene_prompts`.
        measures: extractor for the Fréchet distance between pictures and scenes, which are the reference; and a CLIP or
            TokLIP that judges in addition to the pixels, and gives the CLIP score.
        sampling: settings of the sampling.
        progress: show a progress bar on stderr if that is a terminal.

    Raises:
        FileNotFoundError, LookupError, ValueError: a model is missing or does not fit, or the generator takes classes.
    """
    device, batch_size = generator.device, sampling.batch_size
    refuse_missing_device(device)
    _refuse_scenes(scenes)
    if measures.reference is not None:
        raise ValueError("got a reference, but pictures of captions are compared with their scenes; leave it out")
    pictures = generator.load()
    if pictures.classes is not None:
        raise ValueError(
            f"{str(generator.name)!r} draws classes, but scenes have captions; name a generator of texts, or "
            "leave the scenes out and give --per-class"
        )
    matcher, of_judge = measures.load_judge(device)
    extractor = None if measures.extractor is None else load_extractor(measures.extractor, device)
    sampling = sampling.of(pictures)
    side = pictures.image_size[0]
    count, split = len(scenes), scenes.split
    prompts = scene_prompts(count, split=split, seed=scenes.seed, size=side, objects=scenes.objects)
    drawn_of = f"{count} scenes of {split}" + (f", {scenes.objects} objects each" if scenes.objects else "")
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
        true = (PictureWithCaption(torch.from_numpy(prompt.scene.rgb).movedim(-1, 0), None) for prompt in prompts)
        real = gather(true, extractor=extractor, batch_size=batch_size)
        what = f"{drawn_of}, on plain backgrounds, seed {scenes.seed}, whose captions were drawn"
        info = ReferenceInfo(
            extractor=extractor.name,
            weights=extractor.weights,
            image_size=side,
            pictures=count,
            source=what,
        )
        reference = Reference(info, moments(real.features), real.features, what)
    texts = [prompt.text for prompt in prompts]
    rgb = to_rgb(torch.cat(drawn))
    measured = [PictureWithCaption(*pair) for pair in zip(rgb, texts, strict=True)]
    report = measure_pictures(measured, extractor=extractor, reference=reference, clip=matcher, batch_size=batch_size)
    protocol: dict[str, str | int] = {
        "generator": _described(generator, pictures),
        "drawn": f"captions of {drawn_of}, each on a plain background; {sampling.as_text()}",
        "pixels": "objects by contrast and connected parts, colour by hue, shape by the renderer",
    }
    if cut := pictures.cut_texts(texts):
        protocol["cut"] = f"{len(cut)} of {len(texts)} captions, longer than the generator reads"
    if of_judge:
        protocol["model"] = f"{of_judge['model']}, {of_judge['weights']}; the true caption against other words"
    return replace(report, match=match, protocol=protocol | report.protocol)


def evaluate_on_classes(
    generator: ModelSettings,
    per_class: int,
    measures: Measures = Measures(),
    *,
    sampling: SamplingSettings = SamplingSettings(),
    size: int | None = None,
    npz: Path | str | None = None,
    progress: bool = False,
) -> GenerationReport:
    """Evaluate a class generator on the same number of pictures per class.

    LlamaGen's figures are for 50,000 pictures of random classes.

    Args:
        generator: generator of classes.
        per_class: number of pictures per class; the classes take turns.
        measures: extractor and reference; there are no captions for a CLIP.
        sampling: settings of the sampling.
        size: side in pixels to resize the pictures to, as LlamaGen resizes those of 384 px to 256: bicubic, without
            antialiasing, as in its sample_c2i_ddp.py; None: keep their size.
        npz: file to write the pictures to as well, for ADM's evaluator.
        progress: show a progress bar on stderr if that is a terminal.

    Raises:
        FileNotFoundError, LookupError, ValueError: a model is missing or does not fit, the generator takes texts, or
            the reference has another size.
    """
    refuse_missing_device(generator.device)
    refuse_counts(per_class=per_class)
    if measures.clip is not None:
        raise ValueError("got a CLIP, but classes have no captions that it could judge; leave it out")
    if npz is not None:
        refuse_output(npz, measures.files, option="--npz", suffixes=[".npz"])
    extractor, known = measures.load_comparison(generator.device)
    pictures = generator.load()
    if pictures.classes is None:
        raise ValueError(
            f"{str(generator.name)!r} draws texts, and no classes; name a scenes: input in place of --per-class"
        )
    classes, batch_size = pictures.classes, sampling.batch_size
    drawn_size = pictures.image_size if size is None else (size, size)
    if known is not None:
        refuse_other_size(drawn_size, known, way_out=f"resize them by --size {known.info.image_size}")
    sampling = sampling.of(pictures)
    count = classes * per_class

    def drawn() -> Iterator[PictureWithCaption]:
        for start in tqdm(range(0, count, batch_size), disable=None if progress else True):
            prompts = [place % classes for place in range(start, min(start + batch_size, count))]
            pixels = _pixels(pictures, prompts, sampling, first=start)
            yield from (PictureWithCaption(rgb, None) for rgb in to_rgb(_resized(pixels, size)))

    with nullcontext() if npz is None else SampleWriter(npz) as writer:
        report = measure_pictures(drawn(), extractor=extractor, reference=known, npz=writer, batch_size=batch_size)
    protocol: dict[str, str | int] = {
        "generator": _described(generator, pictures),
        "drawn": f"{per_class} pictures of each of {classes} classes; {sampling.as_text()}",
    }
    if drawn_size != pictures.image_size:
        before, after = (" x ".join(map(str, shape)) for shape in (pictures.image_size, drawn_size))
        protocol["resized"] = f"from {before} to {after}, bicubic without antialiasing, as LlamaGen does"
    return replace(report, protocol=protocol | report.protocol)


def _refuse_scenes(scenes: Scenes) -> None:
    """Raise ValueError for options of scenes that change no caption that is drawn."""
    refuse_outside("count", len(scenes), len(scenes) > 1, "2 scenes or more")
    if scenes.background not in (None, "plain"):
        raise ValueError(f"got background={scenes.background}; captions are drawn on plain backgrounds: leave it out")
    if scenes.size != Scenes.size:
        raise ValueError(f"got size={scenes.size}; pictures are drawn at the generator's own size: leave it out")
    if scenes.places:
        raise ValueError("got places=1; the captions that are drawn do not say where objects are: leave it out")


def _described(generator: ModelSettings, model: PictureModel) -> str:
    return f"{generator.name}, in {str(model.dtype).removeprefix('torch.')}"


def _pixels(model: PictureModel, prompts: Sequence[int | str], how: SamplingSettings, *, first: int) -> Tensor:
    """Return pixels (B, 3, H, W), near [-1, 1]; the seed of picture n does not depend on batches."""
    seeds = [derived_seed(how.seed, first + place) for place in range(len(prompts))]
    ids = model.draw(prompts, seeds=seeds, drawing=how.drawing, compiled=how.compiled).ids
    return model.tokenizer.decode(ids).float().cpu()


def _resized(pixels: Tensor, size: int | None) -> Tensor:
    if size is None or pixels.shape[-1] == size:
        return pixels
    # As in published figures: without antialiasing, and without clamping to [-1, 1] before.
    return torch.nn.functional.interpolate(pixels, (size, size), mode="bicubic")
