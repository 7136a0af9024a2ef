"""Fixtures of the tests of the core: a plugin that is found like an installed one, and pictures."""

import sys

import numpy as np
import pytest
from PIL import Image
from toklip_core import plugins

from tests.support import mean_colour


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The tokenizers mean-colour and mean-colour-slow are registered; the value is the sys.path entry that does it."""
    folder = mean_colour.install(tmp_path / "site")
    monkeypatch.syspath_prepend(str(folder))
    plugins.registry.cache_clear()
    yield folder
    plugins.registry.cache_clear()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Teacher, pictures, tars and token store of tests.support.encoder_runs; the tokenizers of ``toy`` are in site/."""
    from tests.support.encoder_runs import write_world

    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(mean_colour.install(folder / "site")))
        plugins.registry.cache_clear()
        write_world(folder)
        yield folder
    plugins.registry.cache_clear()


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An empty folder on sys.path; what is imported from it is forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def photos(tmp_path):
    """A folder of five pictures, no two alike, in two levels; the value is its path."""
    folder = tmp_path / "photos"
    for number, name in enumerate(["a.jpg", "b.png", "c.webp", "deep/d.jpg", "deep/e.bmp"]):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)
    return folder


def picture(seed, size=(48, 40)):
    """A picture of soft colours: noise, enlarged."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
