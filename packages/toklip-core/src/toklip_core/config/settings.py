"""Settings: pydantic models, read from TOML files or recipes, changed by ``--set key=value``.

``Field(description=...)`` is the one place where a setting is explained; the reference in docs/ is
generated from it. A setting that does not exist is an error: a misspelt learning rate must not train for a
week at the default.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, model_validator

from toklip_core.config.ranges import LARGEST_MAX_PIXELS, LARGEST_SEED, MOST_WORKERS
from toklip_core.files import one_line, read_text, refuse_special

#: Names that a config may give to a file or folder beside it: no path, and nothing that begins with a dot.
_FILE_NAME = r"^[\w-][\w.-]*$"
FileName = Annotated[str, Field(pattern=_FILE_NAME)]

#: Number of settings that one message names.
_NAMED = 3

#: The limit of the pictures that a setting reads.
MaxPixels = Annotated[
    int,
    Field(
        gt=0,
        le=LARGEST_MAX_PIXELS,
        description="Maximum number of pixels (width x height) of a picture; larger ones are skipped without being "
        "read.",
    ),
]
#: The setting of :func:`toklip_core.pictures.resized`.
ResizeSetting = Annotated[
    Literal["crop", "squash", "pad"],
    Field(
        description="How a picture is made square: crop takes the centre, squash ignores the aspect ratio, pad adds "
        "grey."
    ),
]

_Decay = Annotated[float, Field(ge=0, lt=1)]


def is_file_name(name: object) -> bool:
    """Return whether a name is one that a config may give to a file beside it; see :data:`FileName`.

    >>> is_file_name("vq.safetensors"), is_file_name(".."), is_file_name("../model.safetensors")
    (True, False, False)
    """
    return isinstance(name, str) and re.fullmatch(_FILE_NAME, name) is not None


class Config(BaseModel):
    """Base of all settings: immutable, and unknown keys, NaN and infinity are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class HeldOut(Config):
    """Held-out data, on which a run is evaluated and never trained: scenes, or your own data. None by default."""

    #: The settings that name data of your own.
    own: ClassVar[tuple[str, ...]] = ()

    scenes: int = Field(default=0, ge=0, description="Number of held-out scenes.")

    @model_validator(mode="after")
    def _scenes_or_own_data(self) -> Self:
        if self.scenes and any(getattr(self, name) is not None for name in self.own):
            raise ValueError(f"give scenes, or {' and '.join(self.own)}, and not both")
        return self


class RunConfig(Config):
    """Settings of a training run: its length, optimizer and precision, and how often it logs, evaluates and saves."""

    steps: int = Field(gt=0, description="Number of optimizer steps.")
    batch_size: int = Field(
        gt=0, description="Number of samples per step, summed over all processes and micro-batches."
    )
    accumulate: int = Field(
        default=1,
        gt=0,
        description="Number of micro-batches per step (gradient accumulation); more of them need less memory. The "
        "gradients are those of the whole batch for losses that are means over samples, tokens or drawn ids, and, at "
        "the cost of one more forward pass, for contrastive losses. Codebook entropy and batch-norm statistics are "
        "computed per micro-batch.",
    )
    learning_rate: float = Field(gt=0, description="Peak learning rate, reached at the end of the warm-up.")
    schedule: Literal["constant", "cosine", "multi-step"] = Field(
        default="constant",
        description="Learning-rate schedule after the warm-up; multi-step multiplies by `drop` at each of "
        "`milestones`.",
    )
    warmup_steps: int = Field(default=0, ge=0, description="Number of steps of linear warm-up.")
    final_learning_rate: float = Field(
        default=0.0, ge=0, description="Learning rate at the end of the cosine schedule."
    )
    milestones: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        default=(),
        description="Steps at which multi-step drops the learning rate; a shorter run leaves out later ones.",
    )
    drop: float = Field(
        default=0.1, gt=0, le=1, description="Factor that multi-step multiplies the learning rate by at each milestone."
    )
    betas: tuple[_Decay, _Decay] = Field(
        default=(0.9, 0.95), description="Adam's decay rates for the first and second moments."
    )
    weight_decay: float = Field(default=0.0, ge=0, description="Decoupled weight decay, as in AdamW.")
    muon_learning_rate: float = Field(
        default=0.0,
        ge=0,
        description="Peak learning rate of Muon, which trains the weight matrices of transformer blocks while AdamW "
        "trains the rest; 0 uses AdamW for everything. The schedule and final_learning_rate scale both rates alike. "
        "weight_decay is multiplied by the learning rate, so it acts more strongly with Muon. Needs torch 2.9 or "
        "newer, precision bf16 or no, and no FSDP; tokenizers have no such matrices.",
    )
    max_grad_norm: float = Field(
        default=0.0, ge=0, description="Gradient norm above which gradients are clipped; 0 turns clipping off."
    )
    ema_decay: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Decay rate per step of the moving average of the weights (EMA); 0 turns it off.",
    )
    precision: Literal["no", "bf16", "fp16"] = Field(
        default="no", description="Autocast precision of the forward pass; weights stay float32. fp16 needs a GPU."
    )
    seed: int = Field(
        default=0,
        ge=0,
        le=LARGEST_SEED,
        description="Seed of the initial weights, the order of the data, and augmentation.",
    )
    workers: int = Field(
        default=0,
        ge=0,
        le=MOST_WORKERS,
        description="Number of data-loading processes; 0 loads in the training process.",
    )
    log_every: int = Field(
        default=50, gt=0, description="Steps between two lines of the log; each line has the means over these steps."
    )
    evaluate_every: int = Field(
        default=1000, gt=0, description="Steps between two evaluations; there is also one at the end."
    )
    save_every: int = Field(
        default=1000, gt=0, description="Steps between two checkpoints; there is also one at the end."
    )
    keep: int = Field(default=2, gt=0, description="Number of checkpoints to keep; older ones are deleted.")
    wandb: str | None = Field(
        default=None,
        min_length=1,
        description="Weights & Biases project to which metrics are also logged.",
    )

    @model_validator(mode="after")
    def _schedule_fits(self) -> Self:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must be below steps ({self.steps})")
        if bool(self.milestones) != (self.schedule == "multi-step"):
            raise ValueError("milestones and schedule = 'multi-step' go together; set both or none")
        for name, schedule in {"final_learning_rate": "cosine", "drop": "multi-step"}.items():
            if self.schedule != schedule:
                refuse_without_effect(self, (name,), f"without schedule = {schedule!r}", instead="set both")
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size ({self.batch_size}) must be a multiple of accumulate ({self.accumulate})")
        return self


_Model = TypeVar("_Model", bound=BaseModel)


def load_config(
    source: str | Path, model: type[_Model], overrides: Sequence[str] = (), recipes: Traversable | None = None
) -> _Model:
    """Return the validated settings of a TOML file or recipe.

    Args:
        source: path of a TOML file (it ends in .toml or exists), or name of a recipe.
        model: class of the settings.
        overrides: changes of the form ``key=value``; the key is dotted (``run.steps``, ``data.0.folder``), and the
            value is TOML, or a string if it is not TOML.
        recipes: folder with the recipes, files NAME.toml.

    Raises:
        LookupError: no recipe has the name.
        FileNotFoundError: the file is missing.
        ValueError: the file is not TOML, or a setting is unknown or has a wrong value; one line names the first ones.

    >>> from toklip_core.tasks import ENCODER_RECIPES, EncoderTrainConfig
    >>> config = load_config("scenes-tiny", EncoderTrainConfig, ["run.steps=100"], ENCODER_RECIPES)
    >>> config.run.steps, config.tokenizer
    (100, 'vqgan-tiny')
    """
    path, values = _read(source, recipes)
    changed = set[str]()
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ValueError(f"got --set {override!r}, but it needs the form key=value, such as run.steps=100")
        _assign(values, key.strip().split("."), _toml_value(text.strip()), key)
        changed.add(key.strip())
    return validated(model, values, path, changed=changed)


def validated(
    model: type[_Model],
    values: Mapping[str, Any],
    source: str | Path,
    *,
    changed: Collection[str] | None = None,
) -> _Model:
    """Return validated settings; the ValueError names the source and says what is wrong with the first settings.

    Args:
        model: class of the settings.
        values: settings, as they were read.
        source: where they come from, for messages.
        changed: dotted keys that ``--set`` changed, see :func:`changed_alone`; None where there is no ``--set`` that
            messages could advise.
    """
    try:
        return model.model_validate(values, context=changed)
    except ValidationError as error:
        problems = list(_explain(error, model, values, changed is not None))
        more = f"; and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        raise ValueError(one_line(f"{source}: {'; '.join(problems[:_NAMED])}{more}")) from error


def refuse_without_effect(
    settings: BaseModel, names: Iterable[str], why: str, *, inside: str = "", instead: str = ""
) -> None:
    """Refuse settings that have no effect and differ from their defaults.

    Defaults pass, because a file may list all settings, as that of a run to resume does.

    Args:
        settings: settings with these names.
        names: names of the settings without effect; each has a default.
        why: end of the sentence "SETTING has no effect ...", such as "without a discriminator".
        inside: path of ``settings`` in the file, such as "losses.".
        instead: what would give them an effect; otherwise the message says to set the defaults.

    Raises:
        ValueError: a value differs from its default; the message names all that do.

    >>> run = RunConfig(steps=9, batch_size=1, learning_rate=1, weight_decay=0.5)
    >>> refuse_without_effect(run, ["weight_decay"], "on this model", inside="run.")
    Traceback (most recent call last):
    ValueError: run.weight_decay has no effect on this model; set it to 0.0
    """
    fields = type(settings).model_fields
    usual = {name: fields[name].default for name in names if getattr(settings, name) != fields[name].default}
    if usual:
        named, defaults = ", ".join(inside + name for name in usual), ", ".join(map(json.dumps, usual.values()))
        has, it = ("has", "it") if len(usual) == 1 else ("have", "them")
        way = f"{instead}, or set" if instead else "set"
        raise ValueError(f"{named} {has} no effect {why}; {way} {it} to {defaults}")


def changed_alone(info: ValidationInfo, names: Iterable[str], switch: str, *, inside: str) -> list[str]:
    """Return those of some settings that ``--set`` changed without the setting that turns them on or off.

    Only such settings are refused: a recipe may list settings of a loss that it turns off, and a sweep may set a weight
    to 0.

    Args:
        info: what a validator gets; its context has the dotted keys that ``--set`` changed.
        names: names of settings.
        switch: dotted key of the setting that turns them on or off.
        inside: path of the settings in the file, such as "losses.".
    """
    changed = info.context or ()
    return [] if switch in changed else [name for name in names if inside + name in changed]


def recipe_names(recipes: Traversable) -> list[str]:
    """Return the names of the recipes in a folder, sorted."""
    return sorted(entry.name.removesuffix(".toml") for entry in recipes.iterdir() if entry.name.endswith(".toml"))


def recipe_summaries(recipes: Traversable) -> dict[str, str]:
    """Return name -> summary of each recipe in a folder; the summary is the comment in its first line."""
    return {
        name: (recipes / f"{name}.toml").read_text("utf-8").splitlines()[0].lstrip("# ")
        for name in recipe_names(recipes)
    }


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the dotted keys in which two settings, given as JSON data, differ.

    >>> changed_keys({"seed": 0, "run": {"steps": 5}}, {"seed": 0, "run": {"steps": 9}})
    ['run.steps']
    """
    changed: list[str] = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changed += [f"{key}.{inner}" for inner in changed_keys(before, after)]
        elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
            # Lists are compared entry by entry, so that only the changed entries are named.
            nested = changed_keys(*({str(i): item for i, item in enumerate(items)} for items in (before, after)))
            changed += [f"{key}.{inner}" for inner in nested]
        elif before != after or (key in old) != (key in new):
            changed.append(key)
    return changed


def _read(source: str | Path, recipes: Traversable | None) -> tuple[str, dict[str, Any]]:
    path = Path(source)
    if path.suffix == ".toml" or path.is_file():
        refuse_special(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {str(path)!r}; give a TOML file{_recipe_hint(recipes)}")
        text = read_text(path)
    else:
        names = recipe_names(recipes) if recipes is not None else []
        if recipes is None or str(source) not in names:
            near = difflib.get_close_matches(str(source), names, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise LookupError(f"no recipe is named {str(source)!r}.{hint} Recipes: {', '.join(names) or 'none'}.")
        text = (recipes / f"{source}.toml").read_text(encoding="utf-8")
    try:
        return str(source), tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{source} is not TOML: {error}") from error


def _recipe_hint(recipes: Traversable | None) -> str:
    return f" or one of the recipes {', '.join(recipe_names(recipes))}" if recipes is not None else ""


def _toml_value(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _assign(values: dict[str, Any], keys: list[str], value: object, whole: str) -> None:
    place: object = values
    for position, key in enumerate(keys):
        last = position == len(keys) - 1
        if isinstance(place, dict):
            if last:
                place[key] = value
            place = place.setdefault(key, {})
        elif isinstance(place, list):
            if not key.isdecimal() or int(key) >= len(place):
                raise ValueError(f"got --set {whole}, but {key!r} is none of the {len(place)} entries, counted from 0")
            if last:
                place[int(key)] = value
            place = place[int(key)]
        else:
            raise ValueError(f"got --set {whole}, but {'.'.join(keys[:position])} is a value and has no {key!r}")


def _explain(
    error: ValidationError, model: type[BaseModel], values: Mapping[str, Any], typed: bool
) -> Iterable[str]:
    problems = error.errors()
    for problem in problems:
        place = problem["loc"]
        if problem["type"] == "too_short" and any(
            other["loc"][: len(place)] == place for other in problems if other is not problem
        ):
            continue  # pydantic counts the entries without the wrong ones
        where = ".".join(map(str, _keys_to(place, values)))
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(problem["loc"][-1]), _keys_beside(model, problem["loc"]), n=1)
            yield f"{where} is not a setting" + (f"; did you mean {near[0]!r}?" if near else "")
        elif problem["type"] == "missing":
            yield f"{where} is missing; set it in the file" + (f" or with --set {where}=..." if typed else "")
        elif problem["type"] == "value_error":
            message = problem["msg"].removeprefix("Value error, ")
            yield f"{where}: {message}" if where else message
        else:
            message = problem["msg"]
            got = one_line(repr(problem["input"]), longest=80)
            yield f"{where or 'all of it'}: got {got}, but {message[:1].lower()}{message[1:]}"


def _keys_to(location: tuple[int | str, ...], values: object) -> Iterable[int | str]:
    """Yield the keys to the place of a problem, without the kinds that pydantic adds to tell variants apart."""
    after_kind = False
    for key in location:
        if isinstance(values, Mapping):
            if key == values.get("kind") and not after_kind:
                after_kind = True
                continue
            values = values.get(key)
        elif isinstance(values, list | tuple) and isinstance(key, int) and key < len(values):
            values = values[key]
        else:
            values = None
        after_kind = False
        yield key


def _keys_beside(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Return the valid keys beside a misspelt one, from the JSON schema of the model."""
    schema = model.model_json_schema()
    nodes: list[dict[str, Any]] = [schema]
    for key in location[:-1]:
        nodes = [child for node in nodes for child in _children(_resolve(node, schema), key)]
    return [key for node in nodes for variant in _variants(node, schema) for key in variant.get("properties", {})]


def _children(node: dict[str, Any], key: int | str) -> Iterable[dict[str, Any]]:
    if isinstance(key, int):
        if "items" in node:
            yield node["items"]
    elif key in node.get("properties", {}):
        yield node["properties"][key]
    else:
        # The tag of a union: pydantic adds it to the location, but it is not a property in the schema.
        mapping = node.get("discriminator", {}).get("mapping", {})
        if key in mapping:
            yield {"$ref": mapping[key]}


def _resolve(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
    return node


def _variants(node: dict[str, Any], schema: dict[str, Any]) -> Iterable[dict[str, Any]]:
    node = _resolve(node, schema)
    for variant in [node, *node.get("anyOf", []), *node.get("oneOf", [])]:
        yield _resolve(variant, schema)
