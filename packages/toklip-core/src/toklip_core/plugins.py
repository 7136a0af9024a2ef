"""The plugin interface: the protocol of VQ tokenizers, the hooks of plugins, and their discovery.

A plugin is a package that names a module in the entry point group ``toklip``. The module implements one or more hooks
of this file. Hooks return descriptions (:class:`TokenizerSpec`, :class:`NamedModel`), whose factories import torch, so
``toklip --help`` stays fast with any number of plugins.

Shape letters: B batch, H and W picture sides, h and w the grid of ids, Q levels (ids per position), n positions of a
prefix.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import re
import sys
import traceback
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import pluggy

from toklip_core.files import read_json_object

if TYPE_CHECKING:
    import click
    import torch
    from PIL import Image
    from torch import Tensor

    from toklip_core.drawing import Drawing, DrawResult, Window
    from toklip_core.embeddings import CodeEmbedding
    from toklip_core.pictures import Resize

ENTRY_POINT_GROUP = "toklip"

#: Packages of this toolkit; they come first, so that no plugin can take their names.
_OURS = ("toklip-core", "toklip-vq", "toklip-mllm", "toklip-gen")

#: Argument of a tokenizer's factory: a file or folder of weights, or tensors by name.
Weights: TypeAlias = "Path | Mapping[str, Tensor]"

_NAME = r"[a-z0-9]+(-[a-z0-9]+)*"

#: Types of the fields of a description, by their annotations.
_TYPES = {
    "str": str,
    "int": int,
    "int | None": int | None,
    "tuple[int, ...]": tuple,
    "tuple[int, int] | None": tuple | None,
}

hookspec = pluggy.HookspecMarker("toklip")
hookimpl = pluggy.HookimplMarker("toklip")


@runtime_checkable
class VQTokenizer(Protocol):
    """A frozen tokenizer, from pictures to discrete ids, from ids to codes, and from ids to pictures.

    An implementation is a ``torch.nn.Module`` without trainable parameters, on which ``train()`` has no effect. After
    ``to(torch.bfloat16)`` its networks run in half precision, but the embedding and the search stay in float32, and so
    may pixels. :mod:`toklip_core.testing` checks all of this.

    >>> from toklip_core import load_tokenizer
    >>> tokenizer = load_tokenizer("vqgan-tiny")
    >>> isinstance(tokenizer, VQTokenizer)
    True
    >>> tokenizer.embedding.codebook_sizes, tokenizer.embedding.codebook_dim, tokenizer.grid(64, 96)
    ((1024, 1024, 1024, 1024), 8, (8, 12))
    """

    @property
    def embedding(self) -> CodeEmbedding:
        """From ids to codes, and the sizes of the codebooks: one of the modules of :mod:`toklip_core.embeddings`."""

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the grid (h, w) of the ids of a picture of height x width pixels.

        ValueError, with the sizes that the tokenizer takes, if it does not take this one; see
        :func:`toklip_core.pictures.grid_by_factor` and :func:`toklip_core.pictures.grid_of_size`.
        """

    def encode(self, pixels: Tensor) -> Tensor:
        """Return the ids (B, h, w, Q), int64, of pixels (B, 3, H, W) in [-1, 1].

        The nearest code is searched in float32, also under autocast. Ids do not depend on the rest of the batch,
        on a GPU but for rounding. No gradient. ValueError if pixels are integers, NaN or infinite, see
        :func:`toklip_core.pictures.refuse_pixels`, or of a size that ``grid`` refuses.
        """

    def decode(self, ids: Tensor) -> Tensor:
        """Return pixels (B, 3, H, W), float32, near [-1, 1], of ids (B, h, w, Q). No gradient."""


class PictureModel(Protocol):
    """A model that draws pictures: from classes or texts to ids of a VQ tokenizer, and from ids to pixels.

    ``toklip generate`` and ``toklip evaluate generation`` use these members; :attr:`NamedModel.load` returns such a
    model. Its ``draw`` can leave the loop to :class:`toklip_core.drawing.Sampler`.
    """

    @property
    def tokenizer(self) -> VQTokenizer:
        """VQ tokenizer whose ids are drawn."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Height H and width W of the pictures in pixels."""

    @property
    def resize(self) -> Resize:
        """Way to make pictures square, in training and for a prefix."""

    @property
    def classes(self) -> int | None:
        """Number of classes that the model draws; None: it draws texts."""

    @property
    def drawing(self) -> Drawing:
        """The model's own settings of drawing, used for settings that a caller leaves open."""

    @property
    def device(self) -> torch.device:
        """Device that the model is on."""

    @property
    def dtype(self) -> torch.dtype:
        """Precision that the model predicts ids in, for reports."""

    def checksums(self) -> list[str]:
        """Return checksums of everything that pictures depend on beside prompt, seed and settings, for resuming."""

    def refuse_prompts(self, prompts: Sequence[int | str]) -> None:
        """Raise ValueError for a prompt that the model cannot draw or would cut; nothing is drawn."""

    def cut_texts(self, texts: Sequence[str]) -> list[str]:
        """Return the texts that the model would cut."""

    def draw(
        self,
        prompts: Sequence[int | str],
        *,
        seeds: Sequence[int],
        drawing: Drawing = ...,
        prefix: Tensor | None = None,
        window: Window = 1,
        compiled: bool = False,
        progress: bool = False,
    ) -> DrawResult:
        """Return the ids (B, h, w, Q), int64, of one picture per prompt, with calls of the network and the window.

        The ids start with the ids ``prefix`` (B, n, Q). A picture depends on its prompt, prefix and seed, not on the
        rest of the batch. Settings that are None are the model's own. See
        :meth:`toklip_core.drawing.Sampler.draw`, which takes the same keywords.
        """

    def pixels(self, ids: Tensor) -> Tensor:
        """Return pixels (B, 3, H, W), float32 in [-1, 1], for ids (B, h, w, Q)."""


class PictureInAnswer(Protocol):
    """A picture that a model has drawn in a conversation."""

    @property
    def image(self) -> Image.Image:
        """The picture, RGB."""


class PictureChat(Protocol):
    """A conversation with a model that reads pictures, and may draw them; ``toklip app`` uses these members."""

    @property
    def draws(self) -> bool:
        """Whether the model can answer in pictures."""

    def say(
        self, text: str, pictures: Sequence[Image.Image | Path | str] = ()
    ) -> Generator[str | PictureInAnswer, None, Any]:
        """Yield the answer to a text that comes after pictures: words as they are generated, and drawn pictures.

        ValueError if a picture cannot be read, or the conversation is too long; it stays as it was before.
        """


#: Starts a conversation; the argument is the seed of what is drawn or sampled.
ChatStarter: TypeAlias = Callable[[int], PictureChat]


@dataclass(frozen=True, kw_only=True)
class TokenizerSpec:
    """Description of a tokenizer by a plugin, which needs no heavy imports.

    >>> from toklip_vq.vqgan import load_vqgan
    >>> spec = TokenizerSpec(name="mine", factory=load_vqgan, summary="VQGAN of my own pictures.", image_size=64)
    >>> spec.name, spec.image_size
    ('mine', 64)
    """

    #: Name that users type: words of a-z and 0-9, joined by hyphens.
    name: str
    #: Builds the tokenizer from a weights file or folder, from tensors by name (a model's file can have its tokenizer
    #: inside), or, given None, from the published or shipped weights; :func:`toklip_core.weights.read_weights` reads
    #: both a file and tensors. Import torch inside it.
    factory: Callable[[Weights | None], VQTokenizer]
    #: Summary in one line, for ``toklip tokenizers``.
    summary: str
    #: Default side of pictures for ``toklip encode``: the side of its training, or one that suits photographs.
    image_size: int = 256
    #: Place of the published weights, ``hub-repository/file``; empty if they are shipped or there are none.
    source: str = ""
    #: Licence of the weights; empty if it is not known, or there are none.
    licence: str = ""
    #: Size of the published or shipped file in bytes; None if it is not known, or there is none.
    size: int | None = None
    #: Codebook size of each level; empty if the weights decide.
    codebook_sizes: tuple[int, ...] = ()
    #: Grid (h, w) of the ids of a picture of ``image_size`` pixels; None if the weights decide.
    grid: tuple[int, int] | None = None
    #: Whether it takes pictures of ``image_size`` alone.
    fixed_size: bool = False
    #: Published rFID: the number, then its data set and its source; empty if there is none.
    rfid: str = ""

    @property
    def codebooks(self) -> str:
        """Number of levels and codebook size of each, such as ``8 x 4096``; empty if the weights decide."""
        sizes = (f"2^{math.log2(size):.3g}" if size >= 2**20 else f"{size}" for size in self.codebook_sizes)
        return f"{len(self.codebook_sizes)} x {', '.join(dict.fromkeys(sizes))}" if self.codebook_sizes else ""

    @property
    def factor(self) -> int | None:
        """Side in pixels of the square of a position; None if the weights decide, or positions are not squares."""
        return self.image_size // self.grid[0] if self.grid and self.grid[0] == self.grid[1] else None

    def refuse_size(self, side: int | None) -> None:
        """Raise ValueError if the tokenizer takes pictures of one size alone, and ``side`` is neither that nor None."""
        own = self.image_size
        if self.fixed_size and side not in (None, own):
            raise ValueError(
                f"got the size {side}, but {self.name!r} takes {own} x {own} alone; leave out the size, or give {own}"
            )

    @property
    def ids_per_picture(self) -> int | None:
        """Number of ids of a picture of ``image_size`` pixels, over all levels; None if the weights decide."""
        return math.prod(self.grid) * len(self.codebook_sizes) if self.grid and self.codebook_sizes else None

    @property
    def bits_per_picture(self) -> float | None:
        """Bits in the ids of a picture: h w times the sum of log2(K) over the levels; None if the weights decide.

        >>> from toklip_core.plugins import tokenizer_spec
        >>> tokenizer_spec("vqgan-tiny").bits_per_picture
        40960.0
        """
        if not (self.grid and self.codebook_sizes):
            return None
        return math.prod(self.grid) * sum(map(math.log2, self.codebook_sizes))

    def __post_init__(self) -> None:
        _refuse_fields(self, "tokenizer")


@dataclass(frozen=True, kw_only=True)
class NamedModel:
    """Description of a named model by a plugin: a line of ``toklip models``."""

    #: Name that its command takes.
    name: str
    #: Kind in a word or two, such as generator or language model.
    kind: str
    #: Summary in one line.
    summary: str
    #: Size of its files in bytes.
    size: int
    licence: str
    #: Place on the hub, as repository/file or a repository; empty if it ships with a package.
    source: str = ""
    #: Package that it ships with; empty if there is none.
    package: str = ""
    #: Side of the pictures that it reads or draws, and number of tokens per picture; None if it has none.
    image_size: int | None = None
    tokens: int | None = None
    #: Loads a model that draws, for ``toklip generate --model NAME``: called with the keywords ``device`` and ``dtype``
    #: (None: as stored), and with ``toklip``, the path of its TokLIP, if the user names one. Import torch inside it.
    #: None: the model does not draw.
    load: Callable[..., PictureModel] | None = field(default=None, repr=False)
    #: The ``model_type``, or else ``kind``, in config.json of folders with models of this kind; empty if there is none.
    model_type: str = ""
    #: Loads a model that draws from such a folder, for ``toklip generate --model FOLDER``: called as ``load`` is, with
    #: the folder first. None: no model of this kind draws.
    load_folder: Callable[..., PictureModel] | None = field(default=None, repr=False)
    #: Loads a model that one can talk with, for ``toklip app --model NAME``: called with the name of this model, the
    #: folder of another of its kind, or owner/name on the hub, and with the keyword ``device``. Import torch inside it.
    #: None: models of this kind do not chat.
    chat: Callable[..., ChatStarter] | None = field(default=None, repr=False)
    #: Loads a model that compares pictures with texts, for ``--model NAME`` of ``toklip classify``, ``search``,
    #: ``evaluate zero-shot`` and ``retrieval``: an ``nn.Module`` that is a :class:`toklip_core.evaluation.Matcher`.
    #: Called with the path of its weights, which the user names as NAME=PATH, or None for the published ones. Import
    #: torch inside it. None: the model does not compare.
    match: Callable[[Path | None], torch.nn.Module] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _refuse_fields(self, "model")


@hookspec
def toklip_register_tokenizers() -> Iterable[TokenizerSpec]:
    """Return the VQ tokenizers that this plugin offers.

    Called once per process, also by ``toklip --help``: return specs, import torch
    inside their factories.
    """
    raise NotImplementedError


@hookspec
def toklip_register_models() -> Iterable[NamedModel]:
    """Return the models that ``toklip models`` lists beside the TokLIPs. Called once per process."""
    raise NotImplementedError


@hookspec
def toklip_register_commands(cli: click.Group, train: click.Group, evaluate: click.Group) -> None:
    """Add commands to ``toklip``, ``toklip train`` or ``toklip evaluate``.

    Called the first time that the command line looks for a command. Import click at the top of the module, and
    everything else inside the commands.
    """
    raise NotImplementedError


@dataclass(frozen=True)
class Plugin:
    """A plugin: its entry point, and the result of loading it."""

    name: str
    module: str
    distribution: str
    version: str
    #: Reason why the plugin is left out; empty if it is used.
    error: str = ""
    #: Caller of the hooks of this plugin alone, so that its errors do not affect other plugins.
    hook: pluggy.HookRelay | None = field(default=None, repr=False)

    def __str__(self) -> str:
        origin = f"{self.distribution} {self.version}".strip() or "no distribution"
        return f"{self.name} ({self.module}, {origin})"


@dataclass(frozen=True, eq=False)
class Registry:
    """Result of discovery, from :func:`registry`, or in tests from :func:`discover` with their own entry points."""

    plugins: tuple[Plugin, ...]
    tokenizers: dict[str, TokenizerSpec]
    models: dict[str, NamedModel] = field(default_factory=dict)


@cache
def registry() -> Registry:
    """Return the plugins that are installed, discovered once per process."""
    return discover(entry_points(group=ENTRY_POINT_GROUP))


def discover(found: Iterable[EntryPoint]) -> Registry:
    """Load plugins; those that fail are left out, with the reason.

    A plugin fails if it cannot be imported, if one of its hooks is misspelt, has a wrong signature, raises or returns
    something else, or if it uses the name of another tokenizer or model. This toolkit's packages come first, then the
    others by the names of distribution and entry point, so that the order of installation does not matter.
    """
    plugins: list[Plugin] = []
    specs: dict[str, TokenizerSpec] = {}
    models: dict[str, NamedModel] = {}
    owners: dict[str, dict[str, Plugin]] = {"tokenizer": {}, "model": {}}
    for entry_point in sorted(found, key=_order):
        plugin = Plugin(entry_point.name, entry_point.value, *_origin(entry_point))
        try:
            # Modules may print while they are imported, which must not get into JSON on stdout.
            with contextlib.redirect_stdout(sys.stderr):
                hook = _hook(entry_point)
                offered = _offered(hook.toklip_register_tokenizers, TokenizerSpec, "tokenizer")
                offered_models = _offered(hook.toklip_register_models, NamedModel, "model")
            _refuse_taken_names("tokenizer", offered, plugin, owners["tokenizer"])
            _refuse_taken_names("model", offered_models, plugin, owners["model"])
        except KeyboardInterrupt:
            raise
        except BaseException as failure:  # also SystemExit and panics of Rust extensions, which must not end `toklip`
            plugin = replace(plugin, error=reason(failure))
        else:
            plugin = replace(plugin, hook=hook)
            specs |= offered
            models |= offered_models
            owners["tokenizer"] |= dict.fromkeys(offered, plugin)
            owners["model"] |= dict.fromkeys(offered_models, plugin)
        plugins.append(plugin)
    return Registry(tuple(plugins), dict(sorted(specs.items())), dict(sorted(models.items())))


def reason(failure: BaseException) -> str:
    """Return an exception of a plugin as one line: type, message, and for a syntax error the place."""
    return " ".join("".join(traceback.format_exception_only(failure)).split())


def tokenizer_spec(name: str) -> TokenizerSpec:
    """Return the spec registered as ``name``; LookupError with the nearest names if there is none."""
    specs = registry().tokenizers
    if name in specs:
        return specs[name]
    near = difflib.get_close_matches(name, specs, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    known = "`toklip tokenizers` lists what is installed." if specs else "None is installed: pip install toklip-vq"
    broken = [plugin.name for plugin in registry().plugins if plugin.error]
    out = f" Left out, see `toklip plugins`: {', '.join(broken)}." if broken else ""
    raise LookupError(f"no VQ tokenizer is named {name!r}.{hint} {known}{out}")


def picture_loader(name: Path | str) -> Callable[..., PictureModel] | None:
    """Return the loader of a model that draws, by its name or folder; None if no plugin knows one that is named so.

    The loader takes the keywords of :attr:`NamedModel.load`.

    Raises:
        ValueError: the model does not draw.
    """
    models = registry().models
    if spec := models.get(str(name)):
        if spec.load is None:
            raise ValueError(f"{spec.name!r} is a {spec.kind} and does not draw; `toklip models` says which models do")
        return spec.load
    kind = _kind_of_folder(Path(name))
    loads = (spec.load_folder for spec in models.values() if kind and spec.model_type == kind)
    return next((partial(load, name) for load in loads if load is not None), None)


def chat_loader(name: Path | str) -> Callable[..., ChatStarter]:
    """Return the loader of a model that one can talk with; it takes the keyword ``device``.

    Args:
        name: name of a plugin's model, or folder or owner/name on the hub of a model of such a kind.

    Raises:
        LookupError: no plugin has models that one can talk with.
        ValueError: the model does not chat.
    """
    models = registry().models
    if spec := models.get(str(name)):
        if spec.chat is None:
            raise ValueError(f"{spec.name!r} is a {spec.kind}, which answers no questions; name a language model")
        return partial(spec.chat, name)
    kind = _kind_of_folder(Path(name))
    for spec in sorted(models.values(), key=lambda other: not kind or other.model_type != kind):
        if spec.chat is not None:
            return partial(spec.chat, name)
    raise LookupError("no plugin has a model that answers questions: pip install toklip-mllm")


def _kind_of_folder(folder: Path) -> str:
    """Return ``model_type`` or ``kind`` in the config.json of a folder; empty if there is none that can be read."""
    try:
        found = read_json_object(folder / "config.json")
    except (OSError, ValueError):
        return ""
    return str(found.get("model_type") or found.get("kind") or "")


def _refuse_fields(spec: TokenizerSpec | NamedModel, what: str) -> None:
    """Raise ValueError unless each text and number has its type, since one wrong field would break the list of all."""
    if not (isinstance(spec.name, str) and re.fullmatch(_NAME, spec.name)):
        raise ValueError(f"got the {what} name {spec.name!r}; use words of a-z and 0-9, joined by hyphens")
    for each in fields(spec):
        value, kind = getattr(spec, each.name), str(each.type)
        single = (value,) if each.name == "image_size" and value is not None else ()
        numbers = value if isinstance(value, tuple) else single
        wrong = any(type(number) is not int or number < 1 for number in numbers)
        wrong |= each.name == "grid" and value is not None and len(numbers) != 2
        wrong |= isinstance(value, bool) and kind.startswith("int")
        if wrong or not isinstance(value, _TYPES.get(kind, object)):
            positive = ", of 1 or more" if "int" in kind else ""
            raise ValueError(f"got {each.name}={value!r} of the {what} {spec.name!r}; wanted {kind}{positive}")


_Spec = TypeVar("_Spec", TokenizerSpec, NamedModel)


def _order(entry_point: EntryPoint) -> tuple[bool, str, str]:
    distribution, _ = _origin(entry_point)
    return distribution not in _OURS, distribution, entry_point.name


def _origin(entry_point: EntryPoint) -> tuple[str, str]:
    """Return the name and version of the distribution, empty if they are not known."""
    if entry_point.dist is None:
        return "", ""
    try:
        return entry_point.dist.name or "", entry_point.dist.version or ""
    except Exception:  # an installation without METADATA, for which every Python raises another error
        return "", ""


def _hook(entry_point: EntryPoint) -> pluggy.HookRelay:
    """Import a plugin and return the caller of its hooks; errors of the plugin or pluggy are passed on."""
    manager = pluggy.PluginManager("toklip")
    manager.add_hookspecs(sys.modules[__name__])
    module = entry_point.load()
    manager.register(module, name=entry_point.name)
    manager.check_pending()
    if not manager.get_hookcallers(module):
        raise ValueError(f"{entry_point.value} has no hook; put @hookimpl of toklip_core on its toklip_register_*")
    return manager.hook


def _offered(asked: pluggy.HookCaller, kind: type[_Spec], what: str) -> dict[str, _Spec]:
    """Return name -> tokenizer or model that a plugin offers."""
    if not asked.get_hookimpls():
        return {}
    specs = [*asked(), None][0]  # pluggy leaves out an answer that is None
    if not isinstance(specs, Iterable):
        raise TypeError(f"{asked.name} gives a {type(specs).__name__}; return a list of {kind.__name__}")
    offered: dict[str, _Spec] = {}
    for spec in specs:
        if not isinstance(spec, kind):
            raise TypeError(f"{asked.name} lists a {type(spec).__name__}; list {kind.__name__} only")
        if spec.name in offered:
            raise ValueError(f"the plugin offers two {what}s named {spec.name!r}; give each a name of its own")
        offered[spec.name] = spec
    return offered


def _refuse_taken_names(what: str, offered: Iterable[str], plugin: Plugin, owners: dict[str, Plugin]) -> None:
    for name in offered:
        if name in owners:
            raise ValueError(f"two plugins claim the {what} name {name!r}: {owners[name]} has it, so {plugin} is out")
