"""The model in the package that reads and draws: its size, its name, what it answers, and the page of a chat."""

import json
import re
from operator import eq

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from toklip_core.cli import cli
from toklip_core.config import Compute
from toklip_core.pictures import to_rgb
from toklip_core.scenes import Scenes
from toklip_core.scenes.language import place_of
from toklip_core.scenes.reading import read_scene
from toklip_mllm import Chat, ChatSettings, load_language_model
from toklip_mllm.drawing import load_drawer
from toklip_mllm.evaluation import evaluate_vqa
from toklip_mllm.published import FOLDERS, UNIFIED_NAME

from tests.support.pages import ROOT, blocks

pytest.importorskip("toklip_vq")


def test_it_is_under_twenty_five_megabytes():
    assert sum(file.stat().st_size for file in FOLDERS[UNIFIED_NAME].iterdir()) < 25e6


def test_models_lists_it_as_one_that_draws():
    done = CliRunner().invoke(cli, ["models", "--json"])
    (found,) = [row for row in json.loads(done.stdout) if row["name"] == UNIFIED_NAME]
    assert found["image_size"] == 64 and found["tokens"] == 64 and found["package"] == "toklip-mllm" and found["draws"]


@pytest.mark.slow
def test_it_answers_questions_of_every_kind_about_combinations_that_training_never_shows():
    report = evaluate_vqa(UNIFIED_NAME, "scenes:held-out?count=40", compute=Compute(batch_size=64))
    assert report.exact_match is not None and report.exact_match.right > 0.9
    assert min(share.right for share in report.by_type.values()) > 0.75


@pytest.mark.slow
def test_it_draws_what_captions_of_one_object_ask_for():
    scenes = Scenes(16, split="held-out", seed=5, objects=1, background="plain")
    drawer = load_drawer(UNIFIED_NAME)
    ids = drawer.draw([scene.caption for scene in scenes], seeds=[*range(16)]).ids
    pictures = to_rgb(drawer.pixels(ids)).movedim(1, -1).numpy()
    drawn = [[(thing.colour, thing.shape) for thing in read_scene(picture)] for picture in pictures]
    asked = [[(thing.colour, thing.shape) for thing in scene.objects] for scene in scenes]
    assert sum(map(eq, drawn, asked)) > 8


@pytest.mark.slow
def test_it_draws_one_picture_after_another_and_answers_what_only_the_last_one_shows():
    model, processor = load_language_model(UNIFIED_NAME)
    right = []
    for seed in range(4):
        chat = Chat(model, processor, ChatSettings(seed=10 * seed))
        for name in ("red circle", "yellow ring"):
            (picture,) = chat.ask(f"draw a {name}").pictures
            things = read_scene(np.asarray(picture.image))
            where = chat.ask(f"where is the {name}?").text
            right.append([(thing.colour, place_of(thing)) for thing in things] == [(name.split()[0], where)])
    assert sum(right) >= 5, "of 8: a second picture may be empty, and one of nine places is guessed"


@pytest.mark.slow
def test_it_answers_about_a_picture_that_is_shown(tmp_path):
    path = tmp_path / "scene.png"
    scene = Scenes(4, split="validation", seed=4, objects=1)[2]
    Image.fromarray(scene.rgb).save(path)
    chat = Chat(*load_language_model(UNIFIED_NAME), ChatSettings(seed=0))
    (thing,) = scene.objects
    assert chat.ask("what colour is it?", [path]).text == thing.colour
    assert chat.ask("what shape is it?").text == thing.shape


@pytest.mark.slow
def test_the_conversation_on_the_page_is_what_the_command_prints(tmp_path, monkeypatch):
    command, transcript = blocks(ROOT / "docs/how-to/chat.md")[:2]
    assert command.language == "bash" and transcript.language == "text"
    words, options = re.fullmatch(r"printf '(.*)' \| toklip chat(.*)\n", command.code).groups()
    monkeypatch.chdir(tmp_path)
    typed = words.replace("\\n", "\n")
    done = CliRunner().invoke(cli, ["chat", *options.split()], input=typed, catch_exceptions=False)
    assert done.stdout == transcript.code
