"""``toklip train generator``: next-id prediction over a frozen tokenizer, with TokLIP's tokens at the input.

    pixels -tokenizer-> ids -inputs-> all but the last -+
    prompts -conditions, some dropped-----------------> generator -> logits <-cross entropy-> ids

From a token store no picture is read, and the tokenizer's networks are not touched.

Source: LlamaGen, https://arxiv.org/abs/2406.06525; autoregressive/train/train_c2i.py and train_t2i.py. That the input
has semantic tokens is TokLIP's, https://arxiv.org/abs/2505.05422.

Shape letters: B pictures, N = h w positions, Q ids of a position, L levels of them.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, cast

import torch
from toklip_core.config import RunConfig, validated
from toklip_core.drawing import IdLevels, Sampler
from toklip_core.model import TokLIP
from toklip_core.pictures import normalized
from toklip_core.scenes import CLASSES, Scenes
from toklip_core.store import TokenStore, refuse_other_squares
from toklip_core.tokenizer import Tokenizer, load_tokenizer
from toklip_core.training import (
    Evaluation,
    FitReport,
    Losses,
    ParameterGroup,
    Task,
    derived_seed,
    fit,
    next_id_loss,
    parameter_groups,
    with_sampled_levels,
)
from toklip_core.weights import weights_checksum
from torch import Tensor, nn

from toklip_gen.evaluation import match_by_pixels, scene_prompts
from toklip_gen.generator import (
    OF_TOKLIP,
    ClassCondition,
    Classes,
    Condition,
    Generator,
    GeneratorConfig,
    IdPredictor,
    Inputs,
    PictureGenerator,
    TextCondition,
    Texts,
    build_conditions,
    load_t5,
    load_transformer,
    toklip_checksum,
)
from toklip_gen.training.samples import Batch, GeneratorSamples, classes_of, collate
from toklip_gen.training.settings import GeneratorTrainConfig, Sampling, TextSetting

_log = logging.getLogger(__name__)

#: Number of pictures that an evaluation draws if the settings name none, and that it compares with captions.
_DRAWN, _MATCHED = 16, 32
#: Number of classes that are printed.
_SHOWN = 20


def train_generator(config: GeneratorTrainConfig, out: Path) -> FitReport:
    """Train a generator into the folder ``out``, or resume the run there; see :func:`toklip_core.training.fit`.

    The trained generator is ``out/model``, which :func:`toklip_gen.generator.load_generator` loads.

    Args:
        config: settings of the run.
        out: folder of the run.

    Raises:
        FileNotFoundError: data, tokenizer, TokLIP or text encoder are missing.
        ValueError: data and models do not fit one another, or ``fit`` raises it.
        LookupError, OSError: raised by ``fit``.
    """
    task = GeneratorTask(config)
    report = fit(task, config.run, out)
    if task.cut:
        _log.warning("%d captions were cut: they are longer than the generator reads", task.cut)
    return report


class GeneratorTask(Task):
    """Learn to predict the next id of a picture, from the ids before it and a class or a caption.

    Tokenizer, TokLIP and text encoder are frozen: :meth:`prepare` has them read pictures and captions.

    Args:
        config: settings of the run.

    Raises:
        FileNotFoundError, LookupError: data, tokenizer, TokLIP or text encoder are missing.
        ValueError: data and models do not fit one another.
    """

    model: Generator
    collate = staticmethod(collate)

    def __init__(self, config: GeneratorTrainConfig) -> None:
        networks = load_networks(config)
        self.samples = GeneratorSamples(config)
        self.order, self.grouped = self.samples.order, self.samples.stored is not None
        self.settings = {
            **config.model_dump(mode="json", exclude={"run"}),
            "checksums": {"tokenizer": networks.tokenizer.checksum, "toklip": networks.config.toklip_checksum},
        }
        if self.samples.stored is not None:
            networks.tokenizer.refuse_other_ids(self.samples.stored.tokenizer, "the token store")
            self.settings["checksums"]["stores"] = self.samples.store_checksums
        if self.samples.classes:
            networks = with_names(networks, list(self.samples.classes))
            print_classes(networks)
            self.settings["condition"] = networks.config.condition.model_dump(mode="json")
        held_out = held_out_prompts(config, networks, self.samples.classes)
        batch_size = micro_batch(config.run)
        torch.manual_seed(config.run.seed)
        self.model = Generator(networks.config, dropout=config.dropout)
        self.model.grad_checkpointing = config.generator.grad_checkpointing
        if config.start is not None:
            start_from(self.model, config.start, networks.tokenizer)
            self.settings["checksums"]["start"] = weights_checksum(self.model)
        self._scheduled_sampling = config.scheduled_sampling
        if held_out is not None:
            self.evaluate = lambda product: evaluate(
                cast(Generator, product), held_out, networks, batch_size=batch_size
            )
        self.networks = networks
        #: Number of captions of this process that were too long for the generator.
        self.cut = 0

    def prepare(self, batch: Batch) -> GeneratorBatch:
        """Return ids, inputs and condition of a batch, and count the captions that are cut."""
        texts = self.networks.conditions if isinstance(self.networks.conditions, Texts) else None
        before = texts.cut if texts else 0
        prepared = read_batch(batch, self.networks)
        self.cut += texts.cut - before if texts else 0
        return prepared

    def objective(self, model: nn.Module, prepared: GeneratorBatch, step: int) -> Losses:
        """Return the cross entropy of the next id."""
        if self._scheduled_sampling:
            prepared = with_sampled_ids(model, prepared, self.networks, largest_share=self._scheduled_sampling)
        return generator_losses(model, prepared)

    def export(self, tensors: dict[str, Tensor], folder: Path) -> None:
        """Write a generator."""
        result = Generator(self.networks.config)
        result.load_state_dict(tensors)
        PictureGenerator(result, tokenizer=self.networks.tokenizer, toklip=self.networks.toklip).save(folder)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return groups for embeddings and head, matrices of blocks, and vectors; only vectors have no weight decay."""
        groups = parameter_groups(self.model, decay_embeddings=True)
        return sorted(groups, key=lambda group: group.weight_decay is not None)


@dataclass(frozen=True)
class FrozenNetworks:
    """Frozen networks that a generator reads through, and its config."""

    config: GeneratorConfig
    tokenizer: Tokenizer
    toklip: TokLIP | None
    inputs: Inputs
    conditions: Classes | Texts

    def to(self, device: torch.device) -> None:
        """Move what reads ids, pictures and prompts to a device."""
        self.conditions.to(device)
        self.tokenizer.to(device)
        if self.inputs.encoder is not None:
            self.inputs.encoder.to(device)


def load_networks(config: GeneratorTrainConfig) -> FrozenNetworks:
    """Load tokenizer, TokLIP and text encoder, and derive the config of a generator over them.

    Raises:
        FileNotFoundError, LookupError: one of them is missing.
        ValueError: they do not fit one another.
    """
    tokenizer = toklip = None
    if config.tokenizer is not None:
        tokenizer = load_tokenizer(config.tokenizer, config.tokenizer_weights, image_size=config.image_size)
    if config.toklip is not None:
        text = isinstance(config.condition, TextSetting) and config.condition.encoder in OF_TOKLIP
        toklip = TokLIP.from_pretrained(config.toklip, tokenizer=tokenizer is None, text=text, dtype=torch.float32)
        toklip.requires_grad_(False)
    if tokenizer is None:
        assert toklip is not None
        tokenizer = toklip.tokenizer
    features = config.generator.features
    if toklip is not None and features == "concat":
        _refuse_other_toklip(config, toklip, tokenizer)
    levels = IdLevels.of_embedding(tokenizer.embedding)
    grid = _grid(tokenizer, config.image_size)
    inputs = Inputs(features, tokenizer=tokenizer, encoder=None if toklip is None else toklip.encoder)
    condition, conditions = _condition(config.condition, toklip)
    sizes = config.generator.sizes
    values = dict(
        tokenizer=tokenizer.record,
        toklip=config.toklip,
        codebook_sizes=levels.codebook_sizes,
        levels=levels.sizes,
        level_blocks=config.generator.level_blocks_for(residual=tokenizer.embedding.levels_are_residual),
        image_size=(config.image_size, config.image_size),
        grid=grid,
        resize=config.resize,
        width=sizes.width,
        depth=sizes.depth,
        heads=sizes.heads,
        kv_heads=config.generator.kv_heads,
        hidden_width=config.generator.hidden_width,
        features=features,
        feature_width=inputs.width,
        condition=condition,
        condition_keys=config.generator.condition_keys,
        qk_norm=config.generator.qk_norm,
        guidance=config.sampling.guidance,
        top_k=config.sampling.top_k,
    )
    settings = validated(GeneratorConfig, values, "the generator of these settings")
    if toklip is not None:
        settings = settings.model_copy(update={"toklip_checksum": toklip_checksum(toklip, settings)})
    return FrozenNetworks(settings, tokenizer, toklip, inputs, conditions)


def start_from(model: Generator, name: str, tokenizer: Tokenizer) -> None:
    """Give a generator over a tokenizer the weights of another one, which reads and predicts the same.

    Raises:
        LookupError, FileNotFoundError: there is no such generator.
        ValueError: it has other ids, another size or other classes, or reads something else.
    """
    other = load_transformer(name, torch.float32)
    where = f"start: the generator {name!r}"
    tokenizer.refuse_other_ids(other.config.tokenizer, where)
    ours, theirs = _what_weights_mean(model.config), _what_weights_mean(other.config)
    if different := [
        f"its {key} is {theirs[key]!r}, and that of these settings {ours[key]!r}"
        for key in ours
        if ours[key] != theirs[key]
    ]:
        raise ValueError(f"{where} is another one than that of these settings: {'; '.join(different)}")
    names = zip(_names(model.config), _names(other.config), strict=False)  # one of them may have none
    for number, (our, their) in enumerate(names):
        if our != their:
            raise ValueError(
                f"{where} has {their!r} as class {number}, and these settings {our!r}: set condition.names in its order"
            )
    model.load_state_dict(other.state_dict())


def _what_weights_mean(config: GeneratorConfig) -> dict[str, object]:
    """Return the values of a config that decide what its weights compute, with the defaults filled in."""
    return config.model_dump(exclude={"tokenizer", "toklip", "resize", "guidance", "top_k"}) | {
        "levels": config.id_levels.sizes,
        "hidden_width": config.mlp_width,
        "kv_heads": config.kv_heads or config.heads,
        "condition": config.condition.model_dump(exclude={"names"}),
    }


def _names(config: GeneratorConfig) -> tuple[str, ...]:
    """Return the names of the classes, in the order of their numbers; none for texts."""
    return (config.condition.names or ()) if isinstance(config.condition, ClassCondition) else ()


def with_names(networks: FrozenNetworks, names: Sequence[str]) -> FrozenNetworks:
    """Return networks whose config has the names of the classes."""
    condition = ClassCondition(classes=len(names), names=tuple(names))
    config = networks.config.model_copy(update={"condition": condition})
    return replace(networks, config=config, conditions=Classes(condition))


def print_classes(networks: FrozenNetworks) -> None:
    """Print the numbers and names of classes to stderr, in the first process."""
    names = cast(ClassCondition, networks.config.condition).names or ()
    if os.environ.get("RANK", "0") == "0":
        shown = ", ".join(f"{number} {name}" for number, name in enumerate(names[:_SHOWN]))
        rest = f", ... ({len(names)} in all: see condition.names in config.json)" if len(names) > _SHOWN else ""
        print(f"classes: {shown}{rest}", file=sys.stderr)


class GeneratorBatch(NamedTuple):
    """Inputs of the generator for a batch."""

    #: Levels of the ids, (B, N, L), int64.
    levels: Tensor
    #: (B, N - 1, Q), int64, or (B, N - 1, F).
    inputs: Tensor
    condition: Condition
    #: (B,), bool.
    drop: Tensor


@torch.no_grad()
def read_batch(batch: Batch, networks: FrozenNetworks) -> GeneratorBatch:
    """Return the generator's inputs for a batch; frozen networks move to the device of the batch."""
    device = batch["drop"].device
    networks.to(device)
    ids = batch["ids"] if "ids" in batch else networks.tokenizer.encode(normalized(batch["rgb"]))
    condition = networks.conditions(batch["prompts"]).to(device)
    levels = networks.config.id_levels.split(ids.flatten(1, 2))
    return GeneratorBatch(levels, networks.inputs(ids)[:, :-1], condition, batch["drop"])


@torch.no_grad()
def with_sampled_ids(
    model: nn.Module, batch: GeneratorBatch, networks: FrozenNetworks, *, largest_share: float
) -> GeneratorBatch:
    """Return a batch whose inputs have, at random positions, ids that the model sampled there.

    They are sampled from all ids, at temperature 1, each after the picture's own ids before it. The ids that are
    predicted stay those of the picture; see :func:`toklip_core.training.with_sampled_levels`.
    """
    sampled = torch.stack(model(batch.inputs, None, batch.condition, batch.drop), dim=-1)
    torch.clear_autocast_cache()  # see with_sampled_levels
    levels = with_sampled_levels(batch.levels, sampled, largest_share=largest_share)
    ids = networks.config.id_levels.join(levels)
    return batch._replace(inputs=networks.inputs(ids.view(len(ids), *networks.config.grid, -1))[:, :-1])


def generator_losses(model: nn.Module, batch: GeneratorBatch) -> Losses:
    """Return the cross entropy of the next ids and the share that is predicted correctly, means over the levels."""
    logits: tuple[Tensor, ...] = model(batch.inputs, batch.levels, batch.condition, batch.drop)
    loss, accuracy = next_id_loss(logits, batch.levels)
    return Losses({"next_id": loss}, {"accuracy": accuracy})


def micro_batch(run: RunConfig) -> int:
    """Return the number of samples that a process of a run reads at once, which its memory has room for."""
    return max(1, run.batch_size // (run.accumulate * int(os.environ.get("WORLD_SIZE", "1"))))


@dataclass(frozen=True)
class HeldOutPrompts:
    """Held-out prompts of a run, and the ids of their pictures."""

    sampling: Sampling
    #: Whether the data are scenes, with whose captions drawn pictures are compared.
    scenes: bool
    #: Ids (n, h, w, Q); None: no loss is measured.
    ids: Tensor | None
    prompts: list[int] | list[str]
    #: Prompts of the pictures to draw.
    drawn: list[int] | list[str]


def held_out_prompts(
    config: GeneratorTrainConfig, networks: FrozenNetworks, classes: dict[str, int]
) -> HeldOutPrompts | None:
    """Return the held-out data of the settings, or None if they name none.

    Args:
        config: settings of the run.
        networks: frozen networks of the run.
        classes: name -> class of the training data.

    Raises:
        FileNotFoundError: the store is missing.
        ValueError: the store has another tokenizer, no captions, or a class that the training does not have.
    """
    settings, sampling = config.held_out, config.sampling
    of_class = isinstance(config.condition, ClassCondition)
    ids: Tensor | None = None
    prompts: list[int] | list[str] = []
    if settings.scenes:
        if of_class:
            # Held-out combinations would be unknown classes, so these are other scenes of the training's classes.
            scenes = list(Scenes(settings.scenes, split="validation", size=config.image_size, objects=1))
            prompts = [_number_of(CLASSES[scene.labels[0]], classes) for scene in scenes]
        else:
            found = scene_prompts(settings.scenes, size=config.image_size)
            scenes, prompts = [prompt.scene for prompt in found], [prompt.text for prompt in found]
        pixels = normalized(torch.stack([torch.from_numpy(scene.rgb) for scene in scenes]).movedim(-1, 1))
        ids = torch.cat([networks.tokenizer.encode(part) for part in torch.split(pixels, micro_batch(config.run))])
    elif settings.store is not None:
        store = TokenStore(settings.store, features=())
        networks.tokenizer.refuse_other_ids(store.info.tokenizer, "the token store")
        refuse_other_squares(store.info, store.path, image_size=config.image_size, resize=config.resize)
        last, most = len(store) - 1, min(len(store), settings.pictures)
        places = torch.linspace(0, last, most, dtype=torch.float64).round().long().tolist()
        rows = [store[place] for place in places]
        ids = torch.stack([row.ids for row in rows])
        if of_class:  # from all keys, because the rows may have only some of them
            numbers = classes_of(list(store.keys()), classes, str(store.path))
            prompts = [numbers[place] for place in places]
        else:
            store.refuse_missing_captions()
            prompts = [cast(str, row.caption) for row in rows]
    if ids is None and not sampling.prompts:
        return None
    drawn = list(sampling.prompts) or list(prompts[:_DRAWN])
    if isinstance(networks.conditions, Texts) and sampling.prompts:
        networks.conditions.refuse_cut(list(map(str, sampling.prompts)))
        networks.conditions.refuse_empty(list(map(str, sampling.prompts)))
    networks.conditions(cast(list[str], drawn))  # refuse prompts now instead of at the first evaluation
    return HeldOutPrompts(sampling, bool(settings.scenes), ids, prompts, cast(list[str], drawn))


def _number_of(name: str, classes: dict[str, int]) -> int:
    if name not in classes:
        raise ValueError(
            f"got held_out.scenes and a training without the class {name!r} of scenes; give held_out.store instead"
        )
    return classes[name]


def evaluate(
    generator: Generator, held_out: HeldOutPrompts, networks: FrozenNetworks, *, batch_size: int
) -> Evaluation:
    """Return the loss on held-out pictures, drawn pictures, and for captions of Scenes the match of the pictures.

    Every process does all of it, because a sharded model must be called equally often in all processes.

    Args:
        generator: generator in evaluation mode.
        held_out: held-out data.
        networks: frozen networks of the run.
        batch_size: number of pictures at a time; it changes rounding only.
    """
    device = next(generator.parameters()).device
    networks.to(device)  # a run that goes on may evaluate before it reads the first batch
    figures: dict[str, float] = {}
    if held_out.ids is not None:
        total = 0.0
        for start in range(0, len(held_out.ids), batch_size):
            ids = held_out.ids[start : start + batch_size].to(device)
            prompts = held_out.prompts[start : start + batch_size]
            batch = Batch(ids=ids, prompts=prompts, drop=torch.zeros(len(ids), dtype=torch.bool, device=device))
            total += len(ids) * float(generator_losses(generator, read_batch(batch, networks)).losses["next_id"])
        figures["next_id"] = total / len(held_out.ids)
    drawn = _draw(generator, networks, held_out.drawn, held_out.sampling, batch_size)
    if held_out.scenes and isinstance(networks.conditions, Texts):
        of_scenes = scene_prompts(_MATCHED, split="validation", size=drawn.shape[-1])
        texts = [prompt.text for prompt in of_scenes]
        matched = _draw(generator, networks, texts, held_out.sampling, batch_size)
        match = match_by_pixels(matched, [prompt.claims for prompt in of_scenes])
        figures |= {f"match_{name}": share for name, share in match.as_json().items() if share is not None}
    return Evaluation(figures, {"drawn": drawn.clamp(-1, 1)})


def _draw(
    generator: Generator,
    networks: FrozenNetworks,
    prompts: Sequence[int] | Sequence[str],
    settings: Sampling,
    batch_size: int,
) -> Tensor:
    """Return drawn pixels (B, 3, H, W), near [-1, 1], with the same seeds at every evaluation."""
    device = next(generator.parameters()).device
    sampler = Sampler(IdPredictor(generator, networks.inputs))
    drawn = []
    for start in range(0, len(prompts), batch_size):
        condition = networks.conditions(prompts[start : start + batch_size]).to(device)
        seeds = [derived_seed(place) for place in range(start, min(start + batch_size, len(prompts)))]
        ids = sampler.draw(condition, seeds=seeds, drawing=settings.drawing).ids
        drawn.append(networks.tokenizer.decode(ids).float())
    return torch.cat(drawn)


def _grid(tokenizer: Tokenizer, side: int) -> tuple[int, int]:
    try:
        return tokenizer.grid(side, side)
    except ValueError as error:
        raise ValueError(f"image_size does not fit {tokenizer.name!r}: {error}") from error


def _condition(
    setting: ClassCondition | TextSetting, toklip: TokLIP | None
) -> tuple[ClassCondition | TextCondition, Classes | Texts]:
    if isinstance(setting, ClassCondition):
        return setting, Classes(setting)
    if setting.encoder not in OF_TOKLIP:
        t5 = load_t5(setting.encoder, length=setting.length)
        condition = _text_condition(setting, t5.width)
        return condition, Texts(condition, t5)
    assert toklip is not None
    condition = _text_condition(setting, toklip.config.text.width)
    return condition, build_conditions(condition, toklip)


def _text_condition(setting: TextSetting, width: int) -> TextCondition:
    return validated(TextCondition, setting.model_dump() | {"width": width}, "the condition of these settings")


def _refuse_other_toklip(config: GeneratorTrainConfig, toklip: TokLIP, tokenizer: Tokenizer) -> None:
    tokenizer.refuse_other_ids(toklip.config.tokenizer, f"the TokLIP {config.toklip!r}")
    side = config.image_size
    if toklip.config.image_size != side:
        raise ValueError(
            f"{config.toklip!r} takes pictures of {toklip.config.image_size} px, but image_size is {side}; set it to "
            "that"
        )
