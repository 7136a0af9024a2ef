"""The plugin interface: what a VQ tokenizer is, how a package offers one, and how it is found.

A package takes part by naming a module in the entry point group ``toklip``; that module
implements one hook of this file or more. Hooks return descriptions (:class:`TokenizerSpec`, :class:`NamedModel`);
torch is imported by the factories, so ``toklip --help`` stays quick however many plugins there are.

Shape letters: B batch, H and W picture sides, f downsampling factor, h = H/f, w = W/f, C codebook dim, n ids of a
prefix.
"""

from __future__ import annotations

import contextlib
import difflib
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar, runtime_checkable

import pluggy

if TYPE_CHECKING:
    import click
    import torch
    from torch import Tensor

    from toklip_core.drawing import Drawing
    from toklip_core.pictures import Resize

ENTRY_POINT_GROUP = "toklip"

#: Packages of this toolkit. They are asked first, so that nobody can take a name from them.
_OURS = ("toklip-core", "toklip-vq", "toklip-mllm", "toklip-gen")

#: What a tokenizer's factory is given: a file or folder of weights, or tensors by name.
Weights: TypeAlias = "Path | Mapping[str, Tensor]"

_NAME = r"[a-z0-9]+(-[a-z0-9]+)*"

hookspec = pluggy.HookspecMarker("toklip")
hookimpl = pluggy.HookimplMarker("toklip")


@runtime_checkable
class VQTokenizer(Protocol):
    """A frozen tokenizer: pictures to discrete ids, ids to codebook rows, ids to pictures.

    An implementation is a ``torch.nn.Module`` without trainable parameters, on which ``train()``
    has no effect. After ``to(torch.bfloat16)`` its networks run in half precision, the codebook and the
    search do not; pixels may stay float32. All laws are checked by :mod:`toklip_core.testing`.

    >>> from toklip_core import load_tokenizer
    >>> tokenizer = load_tokenizer("llamagen-tiny")
    >>> isinstance(tokenizer, VQTokenizer)
    True
    >>> tokenizer.codebook_size, tokenizer.codebook_dim, tokenizer.downsample_factor
    (1024, 8, 8)
    """

    @property
    def codebook_size(self) -> int:
        """K: ids lie in [0, K)."""

    @property
    def codebook_dim(self) -> int:
        """C: the width of a code."""

    @property
    def downsample_factor(self) -> int:
        """f: picture sides must be multiples of it; one id covers f x f pixels."""

    def encode(self, pixels: Tensor) -> Tensor:
        """Return the ids (B, h, w), int64, of pixels (B, 3, H, W) in [-1, 1].

        The nearest code is found in float32, whatever autocast says; ids do not depend on the
        rest of the batch. No gradient. Pixels that are integers, NaN or infinite are a ValueError, see
        :func:`toklip_core.pictures.refuse_pixels`.
        """

    def embed(self, ids: Tensor) -> Tensor:
        """Return the codebook rows (..., C) of ids (...): a bit-exact lookup."""

    def decode(self, ids: Tensor) -> Tensor:
        """Return pixels (B, 3, f h, f w), near [-1, 1], of ids (B, h, w). No gradient."""


class PictureModel(Protocol):
    """A model that draws pictures: classes or texts in, ids of a VQ tokenizer out, and pixels of these.

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
        """Way in which pictures were made square in training, and in which a prefix is."""

    @property
    def classes(self) -> int | None:
        """Number of classes that the model draws; None: it draws texts."""

    @property
    def drawing(self) -> Drawing:
        """The model's own settings, for what a caller leaves open."""

    @property
    def device(self) -> torch.device:
        """Device that the model is on."""

    @property
    def dtype(self) -> torch.dtype:
        """Precision that the model predicts ids in, for reports."""

    def checksums(self) -> list[str]:
        """Return all that the pictures depend on beside prompt, seed and settings: an interrupted call compares it."""

    def refuse_prompts(self, prompts: Sequence[int | str]) -> None:
        """ValueError for a prompt that the model cannot draw, or would cut; draws nothing."""

    def cut_texts(self, texts: Sequence[str]) -> list[str]:
        """Return those of the texts of which the model reads the first words alone."""

    def draw(
        self,
        prompts: Sequence[int | str],
        *,
        seeds: Sequence[int],
        drawing: Drawing = ...,
        prefix: Tensor | None = None,
        compiled: bool = False,
        progress: bool = False,
    ) -> Tensor:
        """Return ids (B, h, w), int64, one picture per prompt; prefix (B, n) are the ids that they start with.

        A picture depends on its prompt, prefix and seed, not on the rest of the batch. Settings that are None are the
        model's own. See :meth:`toklip_core.drawing.Sampler.draw`.
        """

    def pixels(self, ids: Tensor) -> Tensor:
        """Return pixels (B, 3, H, W), float32 in [-1, 1], for ids (B, h, w)."""


@dataclass(frozen=True, kw_only=True)
class TokenizerSpec:
    """What a plugin says about a tokenizer before anything heavy is imported.

    >>> from toklip_vq.vqgan import load_vqgan
    >>> spec = TokenizerSpec(name="mine", factory=load_vqgan, summary="VQGAN of my own pictures.", image_size=64)
    >>> spec.name, spec.image_size
    ('mine', 64)
    """

    #: The name that users type: words of a-z and 0-9, joined by hyphens.
    name: str
    #: Builds the tokenizer from a weights file or folder, from tensors by name (a model's file can have its tokenizer
    #: inside), or, given None, from the published or shipped weights; :func:`toklip_core.weights.read_weights` reads
    #: both a file and tensors. Import torch inside it.
    factory: Callable[[Weights | None], VQTokenizer]
    #: One line for ``toklip tokenizers``.
    summary: str
    #: The picture side that ``toklip encode`` takes by default: what it was trained at, or what suits photographs.
    image_size: int = 256
    #: Where the published weights are, ``hub-repository/file``; empty if they are shipped or there are none.
    source: str = ""
    #: Licence of the weights; empty if it is not known, or there are none.
    licence: str = ""
    #: Bytes of the published or shipped file; None if that is not known, or there is none.
    size: int | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(_NAME, self.name):
            raise ValueError(f"got the tokenizer name {self.name!r}; use words of a-z and 0-9, joined by hyphens")


@dataclass(frozen=True, kw_only=True)
class NamedModel:
    """What a plugin says of a model of its own kind that has a name: a line of ``toklip models``."""

    #: As the command that uses it takes it.
    name: str
    #: What it is, in a word or two: generator, language model.
    kind: str
    #: One line.
    summary: str
    #: Bytes of the file, or of all files.
    size: int
    licence: str
    #: Where it is on the hub: repository/file, or a repository; empty if it is in the package.
    source: str = ""
    #: The package that it is in, if it is in one.
    package: str = ""
    #: Side of the pictures that it reads or draws, and tokens of one; None where it has none.
    image_size: int | None = None
    tokens: int | None = None
    #: Loads a model that draws, for ``toklip generate --model NAME``: called with the keywords ``device`` and ``dtype``
    #: (None: as stored), and with ``toklip``, the path of its TokLIP, if the user names one. Import torch inside it.
    #: None: the model does not draw.
    load: Callable[..., PictureModel] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not re.fullmatch(_NAME, self.name):
            raise ValueError(f"got the model name {self.name!r}; use words of a-z and 0-9, joined by hyphens")


@hookspec
def toklip_register_tokenizers() -> Iterable[TokenizerSpec]:
    """Return the VQ tokenizers that this plugin offers.

    Called once per process, also by ``toklip --help``: return specs, import torch
    inside their factories.
    """
    raise NotImplementedError


@hookspec
def toklip_register_models() -> Iterable[NamedModel]:
    """Return the models that ``toklip models`` lists beside the TokLIPs. Called once per process, as the others are."""
    raise NotImplementedError


@hookspec
def toklip_register_commands(cli: click.Group, train: click.Group, evaluate: click.Group) -> None:
    """Add commands to ``toklip``, ``toklip train`` or ``toklip evaluate``.

    Called the first time that the command line looks for a command. Import click at the top of
    the module, everything else inside the commands.
    """
    raise NotImplementedError


@dataclass(frozen=True)
class Plugin:
    """An entry point, and how its loading went."""

    name: str
    module: str
    distribution: str
    version: str
    #: Why the plugin was left out; empty if it is in use.
    error: str = ""
    #: Calls the hooks of this plugin and of no other, so that what one does wrong stays with it.
    hook: pluggy.HookRelay | None = field(default=None, repr=False)

    def __str__(self) -> str:
        origin = f"{self.distribution} {self.version}".strip() or "no distribution"
        return f"{self.name} ({self.module}, {origin})"


@dataclass(frozen=True, eq=False)
class Registry:
    """What discovery found: made by :func:`registry`, in tests by :func:`discover` with entry points of their own."""

    plugins: tuple[Plugin, ...]
    tokenizers: dict[str, TokenizerSpec]
    models: dict[str, NamedModel] = field(default_factory=dict)


@cache
def registry() -> Registry:
    """Return the plugins that are installed, discovered once per process."""
    return discover(entry_points(group=ENTRY_POINT_GROUP))


def discover(found: Iterable[EntryPoint]) -> Registry:
    """Load plugins; leave out, and say why, each one that fails.

    A plugin is left out if it does not import, if a hook of it is misspelt, has a wrong signature or raises, if
    it returns something else than it should, or if it claims the name of a tokenizer or model that is taken. This
    toolkit's packages come first, then the others by the names of distribution and entry point, so that the outcome
    does not depend on the order of installation.
    """
    plugins: list[Plugin] = []
    specs: dict[str, TokenizerSpec] = {}
    models: dict[str, NamedModel] = {}
    owners: dict[str, dict[str, Plugin]] = {"tokenizer": {}, "model": {}}
    for entry_point in sorted(found, key=_order):
        plugin = Plugin(entry_point.name, entry_point.value, *_origin(entry_point))
        try:
            # What a module prints while it is imported must not end up in the JSON on stdout.
            with contextlib.redirect_stdout(sys.stderr):
                hook = _hook(entry_point)
                offered = _offered(hook.toklip_register_tokenizers, TokenizerSpec, "tokenizer")
                offered_models = _offered(hook.toklip_register_models, NamedModel, "model")
            _refuse_taken_names("tokenizer", offered, plugin, owners["tokenizer"])
            _refuse_taken_names("model", offered_models, plugin, owners["model"])
        except KeyboardInterrupt:
            raise
        except BaseException as failure:  # SystemExit, the panics of Rust extensions: none may take `toklip` down
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
    """Return what a stranger's code raised as one line: type and message, and for a syntax error the place."""
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


_Spec = TypeVar("_Spec", TokenizerSpec, NamedModel)


def _order(entry_point: EntryPoint) -> tuple[bool, str, str]:
    distribution, _ = _origin(entry_point)
    return distribution not in _OURS, distribution, entry_point.name


def _origin(entry_point: EntryPoint) -> tuple[str, str]:
    """Name and version of the distribution; empty where there is none, or where it does not say."""
    if entry_point.dist is None:
        return "", ""
    try:
        return entry_point.dist.name or "", entry_point.dist.version or ""
    except Exception:  # An installation without METADATA: every Python raises something else.
        return "", ""


def _hook(entry_point: EntryPoint) -> pluggy.HookRelay:
    """Import a plugin and return the caller of its hooks; raises what the plugin or pluggy raises."""
    manager = pluggy.PluginManager("toklip")
    manager.add_hookspecs(sys.modules[__name__])
    module = entry_point.load()
    manager.register(module, name=entry_point.name)
    manager.check_pending()
    if not manager.get_hookcallers(module):
        raise ValueError(f"{entry_point.value} has no hook; put @hookimpl of toklip_core on its toklip_register_*")
    return manager.hook


def _offered(asked: pluggy.HookCaller, kind: type[_Spec], what: str) -> dict[str, _Spec]:
    """Ask a plugin for its tokenizers or models, by name."""
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
