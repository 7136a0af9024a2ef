"""A model of another package draws for `toklip generate` and is evaluated, by its name alone."""

import json
from textwrap import dedent

import pytest
from click.testing import CliRunner
from toklip_core import plugins
from toklip_core.cli import cli
from toklip_core.pictures import open_picture
from toklip_gen.generator import ModelSettings

#: A plugin with two models: one draws, one does not. It needs nothing of toklip-gen.
PLUGIN = """
from toklip_core.plugins import NamedModel, hookimpl

def load(*, device, dtype):
    import stripes_model
    return stripes_model.Stripes(device, dtype)

@hookimpl
def toklip_register_models():
    said = {"summary": "Draws stripes.", "size": 5, "licence": "MIT", "package": "stripes"}
    return [
        NamedModel(name="stripes", kind="painter", load=load, **said),
        NamedModel(name="mute", kind="language model", **said),
    ]
"""

#: The likeliest next id is the class; a row of ids is a row of the picture.
MODEL = """
import torch
from toklip_core import load_tokenizer
from toklip_core.drawing import Drawing, Guidance, IdLevels, Sampler

class State:
    def __init__(self, classes):
        self.classes = classes

    def keep(self, rows):
        self.classes = self.classes[:rows]

    def cut(self, positions):
        pass

class Ids:
    levels, grid, drawing = IdLevels((300,), (300,)), (8, 8), Drawing(guidance=Guidance(1.0), top_k=1)

    def __init__(self, device):
        self.device = device

    def count(self, condition):
        return len(condition)

    def prefill(self, condition, ids, *, guided, steps):
        classes = torch.cat([condition, condition * 0]) if guided else condition
        state = State(classes)
        return classes, state

    def step(self, ids, state):
        return state.classes[:, None].expand(-1, ids.shape[1])

    def logits(self, states, before, state):
        return torch.nn.functional.one_hot(states * 50, 300).float()

class Stripes:
    image_size, resize, classes = (32, 32), "crop", 5

    def __init__(self, device, dtype):
        self.device, self.dtype = torch.device(device), dtype or torch.float32
        self.tokenizer = load_tokenizer("mean-colour")
        self.drawing = Ids.drawing
        self._sampler = Sampler(Ids(self.device))

    def checksums(self):
        return ["stripes"]

    def refuse_prompts(self, prompts):
        if not {*prompts} <= {0, 1, 2, 3, 4}:
            raise ValueError(f"got the stripes {prompts}; wanted 0 to 4")

    def cut_texts(self, texts):
        return []

    def draw(self, prompts, **how):
        return self._sampler.draw(torch.tensor(prompts), **how)

    def pixels(self, ids):
        return self.tokenizer.decode(ids)
"""


@pytest.fixture
def stripes(toy, tmp_path, monkeypatch):
    """Install the plugin, as an installer does."""
    info = tmp_path / "stripes/stripes-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stripes\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[toklip]\nstripes = stripes_plugin\n")
    (info.parent / "stripes_plugin.py").write_text(dedent(PLUGIN))
    (info.parent / "stripes_model.py").write_text(dedent(MODEL))
    monkeypatch.syspath_prepend(str(info.parent))
    plugins.registry.cache_clear()
    yield
    plugins.registry.cache_clear()


def toklip(*words):
    return CliRunner().invoke(cli, [*map(str, words), "--device", "cpu"])


@pytest.mark.usefixtures("stripes")
def test_a_model_of_a_plugin_draws_by_its_name(tmp_path):
    out = tmp_path / "out.png"
    done = toklip("generate", "--class", 4, "--model", "stripes", "--out", out, "--json")
    assert done.exit_code == 0, done.output
    settings = json.loads(done.stdout)["settings"]
    assert settings["model"] == "stripes" and (settings["guidance"], settings["top_k"]) == (1.0, 1)
    grey = round((200 / 299) * 255)
    assert open_picture(out).getextrema() == ((grey, grey),) * 3
    refused = toklip("generate", "--class", 5, "--model", "stripes", "--out", out)
    assert refused.exit_code == 1 and "got the stripes [5]; wanted 0 to 4" in refused.stderr


@pytest.mark.usefixtures("stripes")
def test_it_goes_on_where_it_was_interrupted_and_begins_like_a_prefix(tmp_path):
    first = tmp_path / "first.png"
    assert toklip("generate", "--class", 4, "--model", "stripes", "--out", first).exit_code == 0
    words = ["generate", "--class", 1, "--model", "stripes", "--prefix", first, "--out", tmp_path / "second.png"]
    assert toklip(*words).exit_code == 0
    upper, lower = (open_picture(tmp_path / "second.png").getpixel((5, y))[0] for y in (15, 16))
    assert abs(upper - 200 / 299 * 255) < 2 and abs(lower - 50 / 299 * 255) < 2


@pytest.mark.usefixtures("stripes")
def test_a_prefix_may_be_a_scene(tmp_path):
    scene = "scenes:held-out?count=1&seed=7"
    open_picture(scene).save(tmp_path / "scene.png")
    pictures = []
    for prefix in (scene, tmp_path / "scene.png"):
        words = ["generate", "--class", 1, "--model", "stripes", "--prefix", prefix, "--out", tmp_path / "out.png"]
        assert toklip(*words).exit_code == 0
        pictures.append(open_picture(tmp_path / "out.png").tobytes())
    assert pictures[0] == pictures[1]
    words = ["generate", "--class", 1, "--model", "stripes", "--prefix", "scenes:train", "--out", tmp_path / "out.png"]
    assert "Error: the prefix 'scenes:train' cannot be read: it names 100 scenes" in toklip(*words).stderr


@pytest.mark.usefixtures("stripes")
def test_models_says_which_models_draw():
    rows = {row["name"]: row for row in json.loads(CliRunner().invoke(cli, ["models", "--json"]).stdout)}
    drawn = {name for name, row in rows.items() if row["draws"]}
    assert {"stripes", "toklip-gen-tiny", "llamagen-c2i-b-256"} <= drawn and not {"mute", "toklip-tiny"} & drawn
    assert "painter that draws, 0.0 MB" in CliRunner().invoke(cli, ["models"]).stdout


@pytest.mark.usefixtures("stripes")
def test_a_model_that_does_not_draw_is_refused_in_one_line(tmp_path):
    done = toklip("generate", "--class", 1, "--model", "mute", "--out", tmp_path / "out.png")
    assert done.exit_code == 1 and "'mute' is a language model and does not draw; `toklip models` says" in done.stderr
    done = toklip("generate", "--class", 1, "--model", "stripes", "--toklip", "x", "--out", tmp_path / "out.png")
    assert done.exit_code == 1 and "'stripes' is loaded without a TokLIP of yours; leave out toklip" in done.stderr


@pytest.mark.usefixtures("stripes")
def test_a_model_of_a_plugin_is_evaluated_by_its_name(tmp_path):
    from tests.support.small_models import small_clip

    small_clip().save_pretrained(tmp_path / "teacher")
    words = ["--generator", "stripes", "--per-class", 1, "--extractor", tmp_path / "teacher", "--json"]
    done = toklip("evaluate", "generation", *words)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["protocol"]["generator"] == "stripes, in float32"


def test_the_generator_in_the_package_is_found_by_the_same_way():
    pytest.importorskip("toklip_vq")
    assert ModelSettings("toklip-gen-tiny").load().image_size == (64, 64)
