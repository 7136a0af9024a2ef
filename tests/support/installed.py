"""Installation of plugins into a folder, as an installer does it: a module with a .dist-info."""

from importlib.metadata import distributions
from pathlib import Path
from textwrap import dedent

from toklip_core.plugins import ENTRY_POINT_GROUP, Registry, discover

#: A plugin that is right: tokenizers by name, no torch.
RIGHT = """
from functools import partial
from toklip_core import TokenizerSpec, hookimpl

def build(name, weights):
    from torch import nn

    module = nn.Module()
    module.built_of = name, weights
    return module

@hookimpl
def toklip_register_tokenizers():
    return [TokenizerSpec(name=name, factory=partial(build, name), summary="For tests.") for name in {names}]
"""


def install(
    site: Path, distribution: str, source: str, *, entry: str = "", module: str = "", version: str = "1.2"
) -> None:
    """Install a distribution with one module and one entry point, by default named as the distribution."""
    module = module or distribution.replace("-", "_")
    info = site / f"{module}-{version}.dist-info"
    info.mkdir(parents=True)
    (site / f"{module}.py").write_text(dedent(source))
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[{ENTRY_POINT_GROUP}]\n{entry or module} = {module}\n")


def right(*names: str) -> str:
    """The source of a plugin that offers tokenizers of these names."""
    return RIGHT.format(names=list(names))


def found(site: Path) -> Registry:
    """Discover what is installed in the folder, and nothing else. It must be on sys.path."""
    return discover(
        point
        for distribution in distributions(path=[str(site)])
        for point in distribution.entry_points.select(group=ENTRY_POINT_GROUP)
    )
