"""The plugin interface: what a VQ tokenizer is, how a package offers one, and how it is found.

A package takes part by naming a module in the entry point group ``toklip``; that module
implements one or both hooks of this file. Hooks return descriptions (:class:`TokenizerSpec`);
torch is imported by the factories, so ``toklip --help`` stays quick however many plugins there are.

Shape letters: B batch, H and W picture sides, f downsampling factor, h = H/f, w = W/f, C codebook dim.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import pluggy

if TYPE_CHECKING:
    import click
    from torch import Tensor

ENTRY_POINT_GROUP = "toklip"

hookspec = pluggy.HookspecMarker("toklip")
hookimpl = pluggy.HookimplMarker("toklip")


@runtime_checkable
class VQTokenizer(Protocol):
    """A frozen tokenizer: pictures to discrete ids, ids to codebook rows, ids to pictures.

    An implementation is a ``torch.nn.Module`` without trainable parameters, on which ``train()``
    has no effect. All laws are checked by :mod:`toklip_core.testing`.
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
        rest of the batch. No gradient.
        """

    def embed(self, ids: Tensor) -> Tensor:
        """Return the codebook rows (..., C) of ids (...): a bit-exact lookup."""

    def decode(self, ids: Tensor) -> Tensor:
        """Return pixels (B, 3, f h, f w), near [-1, 1], of ids (B, h, w). No gradient."""


@dataclass(frozen=True, kw_only=True)
class TokenizerSpec:
    """What a plugin says about a tokenizer before anything heavy is imported."""

    #: The name that users type: lower-case words joined by hyphens.
    name: str
    #: Builds the tokenizer. Gets the path of a weights file or folder, or None for the published
    #: (or shipped) weights. Import torch inside it.
    factory: Callable[[Path | None], VQTokenizer]
    #: One line for ``toklip tokenizers``.
    summary: str
    #: The picture side that it was trained at, the default of ``toklip encode``.
    image_size: int = 256
    #: Where the published weights are, ``hub-repository/file``; empty if they are shipped or there are none.
    source: str = ""


@hookspec
def toklip_register_tokenizers() -> Iterable[TokenizerSpec]:
    """Return the VQ tokenizers that this plugin offers.

    Called once per process, also by ``toklip --help``: return specs, import torch
    inside their factories.
    """
    raise NotImplementedError


@hookspec
def toklip_register_commands(cli: click.Group, train: click.Group, evaluate: click.Group) -> None:
    """Add commands to ``toklip``, ``toklip train`` or ``toklip evaluate``.

    Called the first time that the command line looks for a command. Import click at the top of
    the module, everything else inside the commands.
    """
    raise NotImplementedError


@dataclass(frozen=True)
class PluginReport:
    """One line of ``toklip plugins``: an entry point and how its loading went."""

    name: str
    module: str
    distribution: str
    version: str
    #: Why the plugin was left out; empty if it is in use.
    error: str = ""


@dataclass(frozen=True)
class Registry:
    """What discovery found. Made by :func:`registry`; tests may call :func:`discover` with entry points of their own."""

    manager: pluggy.PluginManager
    reports: tuple[PluginReport, ...]
    tokenizers: dict[str, TokenizerSpec]


@cache
def registry() -> Registry:
    """Return the plugins that are installed, discovered once per process."""
    return discover(entry_points(group=ENTRY_POINT_GROUP))


def discover(found: Iterable[EntryPoint]) -> Registry:
    """Load plugins; leave out, and report, each one that fails.

    A plugin is left out if it does not import, if a hook of it has a wrong signature or raises, or if
    it claims a tokenizer name that an earlier plugin holds. Plugins are taken in the order of
    their distribution and entry point names, ``toklip-*`` packages first, so that the outcome does not depend on
    the order of installation.
    """
    manager = pluggy.PluginManager("toklip")
    manager.add_hookspecs(_this_module())
    reports: list[PluginReport] = []
    tokenizers: dict[str, TokenizerSpec] = {}
    owners: dict[str, str] = {}
    for entry_point in sorted(found, key=_order):
        error = ""
        # Whatever a stranger's module raises at import, SystemExit included, must not take `toklip` down.
        try:
            plugin = entry_point.load()
            manager.register(plugin, name=entry_point.name)
            specs = _specs(manager, entry_point.name)
            _refuse_taken_names(specs, owners)
        except (Exception, SystemExit) as failure:
            error = f"{type(failure).__name__}: {failure}"
            if manager.has_plugin(entry_point.name):
                manager.unregister(name=entry_point.name)
        else:
            tokenizers |= {spec.name: spec for spec in specs}
            owners |= {spec.name: entry_point.name for spec in specs}
        reports.append(_report(entry_point, error))
    return Registry(manager, tuple(reports), dict(sorted(tokenizers.items())))


def load_tokenizer(name: str, weights: Path | str | None = None) -> VQTokenizer:
    """Build the tokenizer that a plugin registered as ``name``.

    Args:
        name: as ``toklip tokenizers`` lists them.
        weights: a file or folder to load instead of the published weights. None takes the shipped or
            published ones: this may download.

    Raises:
        LookupError: no plugin registered the name; the message has the nearest names.
        FileNotFoundError: the weights are not there, or cannot be downloaded.
        ValueError: the weights do not fit.
    """
    return tokenizer_spec(name).factory(None if weights is None else Path(weights))


def tokenizer_spec(name: str) -> TokenizerSpec:
    """Return the spec registered as ``name``; LookupError with the nearest names if there is none."""
    specs = registry().tokenizers
    if name in specs:
        return specs[name]
    near = difflib.get_close_matches(name, specs, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    known = f"Registered: {', '.join(specs)}." if specs else "None is installed: pip install toklip-vq"
    raise LookupError(f"no VQ tokenizer is named {name!r}.{hint} {known}")


def _order(entry_point: EntryPoint) -> tuple[bool, str, str]:
    distribution = entry_point.dist.name if entry_point.dist else ""
    return not distribution.startswith("toklip-"), distribution, entry_point.name


def _specs(manager: pluggy.PluginManager, plugin: str) -> list[TokenizerSpec]:
    others = [other for name, other in manager.list_name_plugin() if name != plugin]
    results: list[Any] = manager.subset_hook_caller("toklip_register_tokenizers", others)()
    return [spec for specs in results for spec in specs]


def _refuse_taken_names(specs: Iterable[TokenizerSpec], owners: dict[str, str]) -> None:
    for spec in specs:
        if spec.name in owners:
            raise ValueError(f"the tokenizer name {spec.name!r} is taken by the plugin {owners[spec.name]!r}")


def _report(entry_point: EntryPoint, error: str) -> PluginReport:
    distribution = entry_point.dist
    return PluginReport(
        name=entry_point.name,
        module=entry_point.value,
        distribution=distribution.name if distribution else "",
        version=distribution.version if distribution else "",
        error=error,
    )


def _this_module() -> Any:
    import toklip_core.plugins

    return toklip_core.plugins
