"""A language model that draws with `toklip generate --model FOLDER`."""

import json

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from toklip_core import plugins
from toklip_core.cli import cli
from toklip_core.drawing.window import WidthChooser
from toklip_mllm.drawing import PictureDrawer, load_drawer

from tests.support.refusals import last_error
from tests.support.small_unified import COUNT, small_unified, to_draw, unified

pytestmark = pytest.mark.slow

@pytest.fixture
def folder(tmp_path, toy):
    model, processor = small_unified("mean-colour")
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path


def toklip(*words):
    return CliRunner().invoke(cli, list(map(str, words)), obj=plugins.registry())


def test_generate_draws_with_the_model_of_a_folder(folder):
    words = ["generate", "red circle", "one", "--model", folder / "model", "--device", "cpu", "--seed", 4]
    done = toklip(*words, "--out", folder / "drawn.png", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout[done.stdout.index("{") :])["settings"]["guidance"] == 3.0
    drawer = load_drawer(folder / "model")
    ids = drawer.draw(["red circle", "one"], seeds=[4, 4]).ids
    with Image.open(folder / "drawn.png") as grid:
        for place, picture in enumerate(drawer.processor.postprocess(ids)["pixel_values"]):
            assert grid.crop((0, place * 34, 32, place * 34 + 32)).tobytes() == picture.tobytes()
    batch = to_draw(drawer.processor, drawer.processor.apply_chat_template(
        [{"role": "user", "content": "one"}], add_generation_prompt=True
    ))
    assert torch.equal(drawer.model.generate(**batch, generation_mode="image", seeds=[4])[0], ids[1])
    done = toklip(*words, "--out", folder / "windows.png", "--window", 4)
    assert done.exit_code == 0, done.output
    assert (folder / "windows.png").read_bytes() == (folder / "drawn.png").read_bytes()


def test_the_calls_of_a_window_are_timed_once_for_all_batches(monkeypatch):
    choosers, note = set(), WidthChooser.note

    def noting(chooser, width, **call):
        choosers.add(chooser)
        note(chooser, width, **call)

    monkeypatch.setattr(WidthChooser, "note", noting)
    drawer = PictureDrawer(*unified())
    for seed in (1, 2):
        assert 0 < drawer.draw(["red circle"], seeds=[seed], window="auto").calls <= COUNT
    assert len(choosers) == 1


def test_what_such_a_model_cannot_draw_is_refused(folder):
    model = ["--model", folder / "model", "--out", folder / "drawn.png", "--device", "cpu"]
    for words, about in (
        (["--class", "3"], "draws texts, not classes"),
        (["red", "--compile"], "has no step that can be compiled"),
        (["red", "--toklip", "x"], "is loaded without a TokLIP of yours"),
        (["red " * 500], "the language model's context is 512"),
    ):
        done = toklip("generate", *words, *model)
        assert done.exit_code == 1 and about in last_error(done.output), done.output
    drawer = PictureDrawer(*unified())
    with pytest.raises(ValueError, match="got the class 3, but a language model draws texts; say what to draw"):
        drawer.draw([3], seeds=[0])
    assert drawer.cut_texts(["red"]) == [] and drawer.classes is None
