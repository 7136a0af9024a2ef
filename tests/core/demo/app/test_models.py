"""What `toklip app` loads, and what it refuses."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from PIL import Image
from toklip_core.config import Compute
from toklip_core.demo.app.models import load_models, write_examples
from toklip_core.demo.app.settings import AppSettings
from toklip_core.plugins import NamedModel, chat_loader, discover, picture_loader, registry

from tests.support.refusals import refusing
from tests.support.small_models import small_toklip


@pytest.fixture
def saved(toy, tmp_path):
    """The folder of a small TokLIP."""
    small_toklip().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def models(toy):
    """The registry of this test, which `toy` throws away, with models that talk or draw in place of the installed."""
    found = registry()
    found.models.clear()

    def add(name, **members):
        spec = NamedModel(name=name, kind="toy", summary="Toy.", size=1, licence="none", package="toys", **members)
        found.models[name] = spec

    def talk(name, *, device):
        return lambda seed: SimpleNamespace(name=name, device=device, seed=seed, draws=name == "unified")

    add("draws", load=lambda **options: ("drawer", options), model_type="painter",
        load_folder=lambda folder, **options: ("drawer of", str(folder)))
    add("talks", chat=talk, model_type="talker")
    return SimpleNamespace(found=found, add=add, talk=talk)


def load(plugins, saved, photos, **options):
    given = {"model": None, "generator": None, "toklip": saved, "pictures": (str(photos),), "compute": Compute()}
    place = {"host": "127.0.0.1", "port": 0, "browser": False}
    return load_models(plugins, AppSettings(**given | place | options))


def test_without_other_packages_there_is_no_chat(saved, photos):
    found = load(discover([]), saved, photos)
    assert found.start is None and found.drawer is None and len(found.index) == 5


def test_the_models_in_the_packages_are_taken(saved, photos, models):
    found = load(models.found, saved, photos)
    assert (found.language_model, found.generator) == ("talks", "draws")
    assert found.start(7).seed == 7 and found.drawer == ("drawer", {"device": "cpu", "dtype": None})


def test_a_model_that_talks_and_draws_comes_before_one_that_only_talks_and_needs_no_generator(saved, photos, models):
    models.add("unified", chat=models.talk, load=lambda **options: None)
    loaded = load(models.found, saved, photos)
    assert loaded.language_model == "unified" and loaded.draws
    assert loaded.generator is None and loaded.drawer is None


def test_a_generator_that_is_named_draws_for_a_model_that_only_talks(saved, photos, models):
    models.add("unified", chat=models.talk, load=lambda **options: None)
    loaded = load(models.found, saved, photos, generator="draws")
    assert (loaded.language_model, loaded.generator) == ("talks", "draws")


def test_the_page_says_what_each_model_does_and_what_is_missing(saved, photos, models):
    both = load(models.found, saved, photos)
    assert "`talks` reads, `draws` draws; on cpu" in both.introduction and both.notes == []
    del models.found.models["draws"]
    (note,) = load(models.found, saved, photos).notes
    assert "pip install toklip-gen" in note
    models.add("unified", chat=models.talk, load=lambda **options: None)
    unified = load(models.found, saved, photos, model="unified")
    assert "`unified` reads and draws; on cpu" in unified.introduction and unified.notes == []
    alone = load(discover([]), saved, photos)
    assert "compares; on cpu" in alone.introduction
    assert ["pip install toklip-mllm" in note for note in alone.notes] == [True]
    (note,) = replace(both, matcher=None).notes
    assert "--toklip" in note


def test_a_generator_that_has_nothing_to_draw_is_refused(saved, photos, models):
    models.add("unified", chat=models.talk, load=lambda **options: None)
    with refusing("'draws'", "'unified' draws its own pictures", "leave --generator out"):
        load(models.found, saved, photos, model="unified", generator="draws")
    del models.found.models["talks"], models.found.models["unified"]
    with refusing("'draws'", "pip install toklip-mllm"):
        load(models.found, saved, photos, generator="draws")


def test_models_are_found_by_name_and_by_folder(models, tmp_path):
    (tmp_path / "config.json").write_text('{"kind": "painter"}')
    assert picture_loader(tmp_path)(device="cpu") == ("drawer of", str(tmp_path))
    assert picture_loader("somewhere") is None
    assert chat_loader("talks")(device="cpu")(0).name == "talks"
    assert chat_loader("owner/name")(device="cpu")(0).name == "owner/name"


def test_models_of_another_kind_are_refused(saved, photos, models):
    with refusing("'talks' is a toy and does not draw"):
        picture_loader("talks")
    with refusing("'draws' is a toy, which answers no questions"):
        chat_loader("draws")
    with refusing("'nowhere'", kind=LookupError):
        load(models.found, saved, photos, generator="nowhere")
    models.found.models.clear()
    with refusing("pip install toklip-mllm", kind=LookupError):
        load(models.found, saved, photos, model="some-folder")


def test_there_are_pictures_to_try(tmp_path):
    written = write_examples(tmp_path / "examples")
    assert len(written) == 6
    for file in written:
        with Image.open(file) as image:
            assert image.size in {(64, 64), (256, 256)}
