"""Fixtures of the tests of generation."""

import pytest
from toklip_core import plugins

from tests.core.conftest import toy
from tests.support import mean_colour
from tests.support.generator_runs import write_world

__all__ = ["toy"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A TokLIP, pictures and token stores: see write_world; the tokenizers of ``toy`` are in site/."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(mean_colour.install(folder / "site")))
        plugins.registry.cache_clear()
        write_world(folder)
        yield folder
    plugins.registry.cache_clear()
