"""A generator with everything that it needs to turn classes or texts into pictures.

    prompts --conditions--> condition --sampler, over generator and inputs--> ids --tokenizer--> pixels

Shape letters: B pictures, H and W picture sides, h and w grid, Q ids of a position, n positions of a prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from toklip_core.config import validated
from toklip_core.drawing import Drawing, DrawResult, IdLevels, Sampler, Window
from toklip_core.evaluation import warn_of_unknown_words
from toklip_core.model import TokLIP
from toklip_core.pictures import Resize
from toklip_core.tokenizer import Tokenizer
from toklip_core.weights import (
    CONFIG_FILE,
    hub_file,
    load_strict,
    read_model_folder,
    refuse_other_kind,
    save_model_folder,
    stored_dtype,
    weights_checksum,
    without_values,
)
from torch import Tensor, nn

from toklip_gen.generator.conditions import Classes, Texts, as_texts, build_conditions
from toklip_gen.generator.config import ClassCondition, GeneratorConfig
from toklip_gen.generator.inputs import Inputs, toklip_checksum
from toklip_gen.generator.llamagen import load_official
from toklip_gen.generator.model import Generator
from toklip_gen.generator.predictor import IdPredictor
from toklip_gen.published import TINY, generators, unknown


class PictureGenerator:
    """Generator with everything that it needs to turn classes or texts into pictures.

    It is a :class:`toklip_core.plugins.PictureModel`.

    Args:
        generator: the transformer.
        tokenizer: VQ tokenizer that decodes the ids.
        toklip: TokLIP that the generator's config names; None if it names none.

    Raises:
        ValueError: generator, tokenizer and TokLIP do not belong together.

    >>> pictures = load_generator("toklip-gen-tiny")
    >>> ids = pictures.draw(["a red circle", "a blue square"], seeds=[0, 1]).ids
    >>> tuple(ids.shape), tuple(pictures.pixels(ids).shape)
    ((2, 8, 8, 4), (2, 3, 64, 64))
    """

    def __init__(self, generator: Generator, *, tokenizer: Tokenizer, toklip: TokLIP | None = None) -> None:
        config = generator.config
        self.generator = generator
        self.tokenizer = tokenizer
        self.toklip = toklip
        tokenizer.refuse_other_ids(config.tokenizer, "the generator")
        _refuse_other_ids(tokenizer, config)
        if toklip is None and config.needs_toklip:
            raise ValueError(f"the generator reads the TokLIP {config.toklip!r}; got none")
        self.inputs = Inputs(config.features, tokenizer=tokenizer, encoder=toklip.encoder if toklip else None)
        if self.inputs.width != config.feature_width:
            raise ValueError(
                f"the generator reads inputs of width {config.feature_width}, and tokenizer and encoder give "
                f"{self.inputs.width}; they belong to different models"
            )
        if self.inputs.encoder is not None and self.inputs.encoder.config.grid != config.grid:
            grid = self.inputs.encoder.config.grid
            raise ValueError(f"the generator draws a grid of {config.grid}, and its encoder reads one of {grid}")
        self._sampler = Sampler(IdPredictor(generator, self.inputs))

    @cached_property
    def conditions(self) -> Classes | Texts:
        """Converter of classes or texts to the generator's conditions; built, and a T5 loaded, on first use."""
        conditions = build_conditions(self.config.condition, self.toklip)
        conditions.to(self.device)
        return conditions

    @property
    def config(self) -> GeneratorConfig:
        """Config of the generator."""
        return self.generator.config

    @property
    def resize(self) -> Resize:
        """Way in which pictures were made square in training, and in which a prefix is."""
        return self.config.resize

    @property
    def classes(self) -> int | None:
        """Number of classes that the generator draws; None: it draws texts."""
        return self.config.condition.classes if isinstance(self.config.condition, ClassCondition) else None

    @property
    def drawing(self) -> Drawing:
        """Settings that the generator's config recommends."""
        return self.config.drawing

    @property
    def device(self) -> torch.device:
        """Device that the generator is on."""
        return self.generator.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the generator."""
        return self.generator.norm.weight.dtype

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the pictures in pixels."""
        return self.config.image_size

    def to(self, device: torch.device | str) -> Self:
        """Move generator, tokenizer and TokLIP to a device."""
        self.generator.to(device)
        self.tokenizer.to(device)
        if self.toklip is not None:
            self.toklip.to(device)
        if "conditions" in self.__dict__:
            self.conditions.to(device)
        return self

    def checksums(self) -> list[str]:
        """Return the SHA-256 of the weights of tokenizer, generator and TokLIP, and the config, which names a T5."""
        parts: list[nn.Module] = [self.generator, *([] if self.toklip is None else [self.toklip.encoder])]
        if self.toklip is not None and self.toklip.text is not None:
            parts.append(self.toklip.text)
        return [self.tokenizer.checksum, *map(weights_checksum, parts), self.config.model_dump_json()]

    def refuse_prompts(self, prompts: Sequence[int | str]) -> None:
        """Check prompts before anything is drawn; doubtful ones are named in the log.

        Raises:
            ValueError: a prompt is not a class of the generator, is not text, is a text that it would cut, or one of
                which it reads nothing.
        """
        if isinstance(self.conditions, Classes):
            self.conditions(prompts)
            self.conditions.warn_of_names([prompt for prompt in prompts if isinstance(prompt, int)])
            return
        texts = as_texts(prompts)
        if self.config.reads_tower and self.toklip is not None and self.toklip.text is not None:
            warn_of_unknown_words(self.toklip.text, texts)
        self.conditions.refuse_cut(texts)
        self.conditions.refuse_empty(texts)

    def cut_texts(self, texts: Sequence[str]) -> list[str]:
        """Return the texts that the generator would cut."""
        return self.conditions.cut_texts(texts) if isinstance(self.conditions, Texts) else []

    def draw(
        self,
        prompts: Sequence[int | str],
        *,
        seeds: Sequence[int],
        drawing: Drawing = Drawing(),
        prefix: Tensor | None = None,
        window: Window = 1,
        compiled: bool = False,
        progress: bool = False,
    ) -> DrawResult:
        """Draw one picture per prompt, a class or a text; return ids (B, h, w, Q), calls of the generator, and window.

        Args:
            prompts: B classes, by number or name, or texts.
            seeds: see :meth:`toklip_core.drawing.Sampler.draw`, also for the rest.
            drawing: settings; those that are None are the generator's own.
            prefix: (B, n, Q) ids that the pictures start with, in raster order.
            window: largest number of positions that a call of the generator draws, or "auto".
            compiled: run with ``torch.compile``, for GPUs.
            progress: show a progress bar on stderr.

        Raises:
            ValueError: a prompt is not one for this generator, or ``Sampler.draw`` raises it.
        """
        was_training = self.generator.training
        self.generator.eval()
        try:
            return self._sampler.draw(
                self.conditions(prompts).to(self.device),
                seeds=seeds,
                drawing=drawing,
                prefix=None if prefix is None else prefix.to(self.device),
                window=window,
                compiled=compiled,
                progress=progress,
            )
        finally:
            self.generator.train(was_training)

    def pixels(self, ids: Tensor) -> Tensor:
        """Decode ids (B, h, w, Q) to pixels (B, 3, H, W), float32 in [-1, 1]; ValueError if one is not finite."""
        return self.tokenizer.decode_clamped(ids)

    def save(self, folder: Path | str) -> None:
        """Write a folder for :func:`load_generator`: config, weights, and the tokenizer's weights if it has its own.

        The TokLIP is named in the config, not copied.

        Raises:
            OSError: the folder cannot be written; its former contents are kept.
        """
        config = self.config.model_copy(update={"tokenizer": self.tokenizer.record})
        save_model_folder(folder, config.model_dump(mode="json"), self.generator, also=self.tokenizer.save_into)


def load_generator(
    name: str | Path,
    *,
    toklip: str | Path | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> PictureGenerator:
    """Load a generator with its VQ tokenizer and TokLIP.

    Args:
        name: name that ``toklip models`` lists, a folder, or a file of LlamaGen under its published name. Files that a
            name needs are downloaded if they are not cached.
        toklip: path or name of the TokLIP; None: the one recorded in the generator's config.
        dtype: dtype of the generator and the semantic encoder; None: the generator's as it is stored, float16 as
            float32, and float32 for the encoder. The tokenizer stays in float32.
        device: device to load it on.

    Raises:
        LookupError: there is no such generator, tokenizer or TokLIP.
        FileNotFoundError: a file is missing and cannot be downloaded.
        ValueError: weights do not fit, or are not those that the generator was trained with; or a TokLIP is given to a
            generator that reads none.

    >>> load_generator("toklip-gen-tiny").generator.config.features
    'concat'
    """
    path = _located(name)
    generator = _transformer(path, dtype)
    config = generator.config
    if toklip is not None and not config.needs_toklip:
        raise ValueError(f"the generator {name} reads no TokLIP; leave out toklip (--toklip)")
    model = _toklip(config, toklip, dtype) if config.needs_toklip else None
    where = f"the generator {name}"
    if model is not None and config.features == "concat":
        tokenizer = model.tokenizer
    else:  # the text tower of a TokLIP goes with any tokenizer
        tokenizer = config.tokenizer.load(path, where=where)
    tokenizer.refuse_other_ids(config.tokenizer, where)
    return PictureGenerator(generator, tokenizer=tokenizer, toklip=model).to(device)


def load_transformer(name: str | Path, dtype: torch.dtype | None = None) -> Generator:
    """Load the transformer of a generator alone, without tokenizer and TokLIP; see :func:`load_generator`.

    >>> load_transformer("toklip-gen-tiny").config.features
    'concat'
    """
    return _transformer(_located(name), dtype)


def _transformer(path: Path, dtype: torch.dtype | None) -> Generator:
    return _of_folder(path, dtype) if path.is_dir() else load_official(path, None, dtype)


def _refuse_other_ids(tokenizer: Tokenizer, config: GeneratorConfig) -> None:
    """Raise ValueError unless a tokenizer has the ids that a generator predicts, and of every position its own code."""
    levels = IdLevels.of_embedding(tokenizer.embedding)
    if levels.codebook_sizes != config.codebook_sizes:
        raise ValueError(
            f"the tokenizer has codebooks of {levels.codebook_sizes}, and the generator predicts ids of codebooks of "
            f"{config.codebook_sizes}; they belong to different models"
        )
    grid = tokenizer.grid(*config.image_size)
    if grid != config.grid:
        raise ValueError(
            f"the generator draws a grid of {config.grid}, and the tokenizer has one of {grid} for pictures of "
            f"{config.image_size}; they belong to different models"
        )


def _located(name: str | Path) -> Path:
    """Return the folder or file of a generator."""
    if spec := generators().get(str(name)):
        if not spec.source:
            return TINY
        owner, repository, file = spec.source.split("/", 2)
        return hub_file(f"{owner}/{repository}", file, way_out="give its path as the model (PATH/{})")
    path = Path(name)
    if path.exists():
        return path
    if path.suffix in (".pt", ".pth", ".ckpt", ".safetensors"):
        raise FileNotFoundError(f"there is no file {str(name)!r}")
    raise LookupError(unknown(str(name)))


def _of_folder(folder: Path, dtype: torch.dtype | None) -> Generator:
    values, tensors = read_model_folder(folder)
    refuse_other_kind(values, folder, kind="generator", wanted="generator")
    config = validated(GeneratorConfig, values, folder / CONFIG_FILE)
    with without_values():
        generator = Generator(config)
    generator.to(dtype or stored_dtype(tensors.get("norm.weight")))
    load_strict(generator, tensors, source=folder, mapped=True)
    return generator.eval()


def _toklip(config: GeneratorConfig, given: str | Path | None, dtype: torch.dtype | None) -> TokLIP:
    name = given or config.toklip
    assert name is not None
    text = config.reads_tower
    try:
        model = TokLIP.from_pretrained(name, text=text, tokenizer=config.features == "concat", dtype=torch.float32)
    except (LookupError, FileNotFoundError) as error:
        way_out = f"the generator reads this TokLIP; say where it is now (`--toklip PATH`): {error}"
        raise FileNotFoundError(way_out) from error
    wanted = config.toklip_checksum
    if wanted is not None and wanted != (found := toklip_checksum(model, config)):
        raise ValueError(
            f"the TokLIP {str(name)!r} has other weights (sha256 {found[:16]}) than those the generator was trained "
            f"with ({wanted[:16]}); name the one that it was trained with (`--toklip PATH`)"
        )
    model.encoder.to(dtype)
    return model.eval()
