"""Laws of scenes as an input: it equals the folder that `toklip scenes` writes, and wrong input gives one line."""

import pytest
import torch
from click.testing import CliRunner
from toklip_core.captioned import CaptionedPictures, PictureFiles
from toklip_core.cli import cli
from toklip_core.pictures import PictureError, entries, find_pictures, labelled_scenes, share_of_rank, share_of_worker
from toklip_core.scenes import Scenes, parse_scenes
from toklip_core.store import TokenStore

from tests.support.encoding import encode_with

EVERYTHING = "scenes:held-out?count=6&seed=5&size=40&objects=2&background=plain&places=1"


def scenes_folder(out, *options):
    done = CliRunner().invoke(cli, ["scenes", str(out), *options])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("text", "scenes"),
    [
        ("scenes:train", Scenes(100)),
        ("scenes:train?", Scenes(100)),
        ("scenes:validation?count=7", Scenes(7, split="validation")),
        (EVERYTHING, Scenes(6, seed=5, split="held-out", size=40, objects=2, background="plain", places=True)),
        ("photographs", None),
        ("./scenes:train", None),
    ],
)
def test_an_input_has_the_options_and_defaults_of_the_command(text, scenes):
    assert parse_scenes(text) == scenes


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--count", "6"], "scenes:train?count=6"),
        ("--count 6 --split held-out --seed 5 --size 40 --objects 2 --background plain --places".split(), EVERYTHING),
    ],
)
@pytest.mark.parametrize("way", [{}, {"workers": 2, "batch_size": 2}, {"shuffle": True}])
def test_its_store_is_that_of_the_folder_which_the_command_writes(toy, tmp_path, monkeypatch, options, text, way):
    monkeypatch.chdir(tmp_path)
    scenes_folder("folder", *options)
    settings = {"tokenizer": "mean-colour", "image_size": 32}
    encode_with(["folder"], "of-folder", **settings)
    encode_with([text], "of-scenes", **settings, **way)
    folder, scenes = (
        {row.key.rpartition("/")[2]: row for row in TokenStore(store)} for store in ("of-folder", "of-scenes")
    )
    assert len(scenes) == 6 and scenes.keys() == folder.keys()
    for name, row in folder.items():
        assert torch.equal(row.ids, scenes[name].ids) and row.caption == scenes[name].caption


def test_more_scenes_go_into_the_same_store(toy, tmp_path):
    for count, new in ((4, 4), (9, 5)):
        report = encode_with([f"scenes:train?count={count}"], tmp_path / "store", tokenizer="mean-colour")
        assert (report.pictures, report.skipped) == (new, count - new)
    assert encode_with(["scenes:train?count=9&seed=1"], tmp_path / "store", tokenizer="mean-colour").pictures == 9


def test_scenes_are_shared_among_ranks_and_workers_as_files_are(photos, monkeypatch):
    found = find_pictures([photos, "scenes:train?count=40", "scenes:train?count=10"])
    shares = [
        [entry.key for entry in entries(share_of_worker(share_of_rank(found, rank, 2), worker, 2))]
        for rank in range(2)
        for worker in range(2)
    ]
    assert all(shares) and sorted(key for share in shares for key in share) == sorted(e.key for e in entries(found))
    assert len(found) == 45  # each scene once


def test_a_scene_has_its_captions_and_its_class():
    scenes = Scenes(3, split="validation", objects=1)
    found = list(entries(find_pictures(["scenes:validation?count=3&objects=1"])))
    assert [tuple(entry.captions()) for entry in found] == [scene.captions for scene in scenes]
    assert [entry.key for entry in found] == [picture.name for picture in labelled_scenes(scenes).pictures]


def test_a_scene_above_the_limit_of_pixels_is_not_drawn():
    (entry,) = entries(find_pictures(["scenes:train?count=1&size=100"], max_pixels=9_999))
    with pytest.raises(PictureError, match="a scene of 100 px has more than 9999 pixels"):
        entry.image()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("scenes:", "no split ''"),
        ("scenes:test", "no split 'test'"),
        ("scenes:train?count=0", "'count=0' does not fit"),
        ("scenes:train?count=ten", "'count=ten' does not fit"),
        ("scenes:train?size=7", "'size=7' does not fit"),
        ("scenes:train?objects=4", "'objects=4' does not fit"),
        ("scenes:train?background=foggy", "'background=foggy' does not fit"),
        ("scenes:train?colour=red", "'colour=red' does not fit"),
        ("scenes:train?count=1&", "'=' does not fit"),
        ("scenes:train?count=1&count=1", "a name occurs twice"),
    ],
)
def test_a_wrong_one_says_what_is_wanted_in_one_line(text, problem):
    with pytest.raises(ValueError, match="wanted scenes:SPLIT") as refused:
        find_pictures([text])
    message = str(refused.value)
    assert f"got {text!r}: {problem}; wanted" in message and "\n" not in message and len(message) <= 360


@pytest.mark.parametrize("text", [f"scenes:{'x' * 500}?{'y' * 500}=1", f"scenes:train?seed={'9' * 5000}"])
def test_a_long_wrong_one_is_cut_in_its_message(text):
    with pytest.raises(ValueError, match="wanted scenes:SPLIT") as refused:
        parse_scenes(text)
    assert len(str(refused.value)) <= 360


def test_a_training_that_names_them_as_files_is_told_of_their_own_kind():
    with pytest.raises(ValueError, match="is read with kind = 'scenes'"):
        PictureFiles(CaptionedPictures(kind="pictures", inputs=("scenes:train?count=2",)))
