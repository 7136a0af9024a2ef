"""Recall of pictures and captions: the definition, ties, shared captions, and the files that pairs come from."""

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from PIL import Image
from toklip_core.cli import cli
from toklip_core.config import Compute
from toklip_core.evaluation import evaluate_retrieval, karpathy_pairs, measure_retrieval, recall, table_pairs
from toklip_core.pictures import LazyPair, LazyPicture, PictureError, scene_pairs
from toklip_core.scenes import Scenes

from tests.support.refusals import last_error
from tests.support.small_models import small_clip, small_toklip

FAULTS = Path(__file__).parents[2] / "faults"


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


class Eyes:
    """A model that is right: the mean colour of a picture, and that which a text spells, "255 0 0"."""

    config = SimpleNamespace(image_size=8, resize="crop")
    logit_scale = torch.tensor(0.0)

    def __init__(self):
        self.texts = []

    def image_features(self, pixels):
        return F.normalize(pixels.mean((2, 3)), dim=-1)

    def text_features(self, texts):
        self.texts += texts
        return F.normalize(torch.tensor([[int(x) for x in text.split()[:3]] for text in texts]) / 127.5 - 1, dim=-1)


def pair(colour, *captions):
    def read():
        if colour is None:
            raise PictureError("cut short")
        return Image.new("RGB", (8, 8), colour)

    return LazyPair(LazyPicture(str(colour), read), captions)


def test_recall_is_its_definition():
    images, texts = unit(7, 16, seed=1), unit(20, 16, seed=2)
    picture_of = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 4, 4, 4, 5, 5, 6, 6, 6, 6])
    forward, back = recall(images, texts, torch.arange(20), picture_of)
    scores = images @ texts.T
    for k in (1, 5, 10):
        first = scores.argsort(1, descending=True)[:, :k]
        assert forward[f"R@{k}"] == pytest.approx(
            sum(i in picture_of[row] for i, row in enumerate(first)) / 7, abs=1e-12
        )
        first = scores.T.argsort(1, descending=True)[:, :k]
        assert back[f"R@{k}"] == pytest.approx(
            sum(i in row for i, row in zip(picture_of, first, strict=True)) / 20, abs=1e-12
        )


def test_any_caption_of_a_picture_is_a_hit():
    pairs = [pair((255, 0, 0), "0 0 255 wrong", "255 0 0"), pair((0, 0, 255), "0 0 255 right")]
    report = measure_retrieval(Eyes(), pairs)
    # The blue captions are tied: for the blue picture, the first is its own in half of the orders.
    assert report.image_to_text == {"R@1": 0.75, "R@5": 1, "R@10": 1}
    assert report.text_to_image == {"R@1": pytest.approx(2 / 3), "R@5": 1, "R@10": 1}


def test_a_model_that_scores_all_alike_recalls_what_chance_does():
    images, texts = torch.ones(30, 4), torch.ones(90, 4)
    picture_of = torch.arange(90) // 3
    forward, back = recall(images, texts, torch.arange(90), picture_of)
    assert forward == {f"R@{k}": pytest.approx(1 - math.comb(87, k) / math.comb(90, k)) for k in (1, 5, 10)}
    assert back == {f"R@{k}": pytest.approx(k / 30) for k in (1, 5, 10)}


def test_the_figures_of_chance_are_those_of_a_model_that_scores_all_alike():
    report = measure_retrieval(small_toklip(), scene_pairs(Scenes(30, size=32)))
    assert report.chance_text_to_image == {f"R@{k}": pytest.approx(k / 30) for k in (1, 5, 10)}
    assert report.chance_image_to_text["R@1"] == pytest.approx(1 / 30)


@pytest.mark.parametrize("scores", [1, 50, 2**24])
def test_the_size_of_the_pieces_changes_no_figure(scores):
    images, texts, picture_of = unit(9, 16, seed=1), unit(27, 16, seed=2), torch.arange(27) // 3
    whole = recall(images, texts, torch.arange(27), picture_of)
    assert recall(images, texts, torch.arange(27), picture_of, scores_at_once=scores) == whole


def test_a_text_that_is_written_often_is_encoded_once():
    model = Eyes()
    measure_retrieval(model, [pair((255, 0, 0), "255 0 0", "255 0 0"), pair((255, 0, 9), "255 0 0", "255 0 9")])
    assert model.texts == ["255 0 0", "255 0 9"]


def test_captions_of_several_pictures_lower_what_a_perfect_model_reaches_and_the_protocol_says_so():
    pairs = [pair((255, 0, 0), "255 0 0", "250 0 0"), pair((255, 0, 0), "255 0 0"), pair((0, 0, 255), "0 0 255")]
    report = measure_retrieval(Eyes(), pairs)
    said = report.protocol["text to image"]
    assert said.endswith("2 captions are those of other pictures too, so R@1 is 75.00% at most")
    assert report.text_to_image["R@1"] <= 0.75


def test_a_picture_that_cannot_be_read_is_left_out_with_its_captions():
    pairs = [pair((255, 0, 0), "255 0 0"), pair(None, "9 9 9", "8 8 8"), pair((0, 0, 255), "0 0 255")]
    report = measure_retrieval(Eyes(), pairs)
    assert (report.protocol["pictures"], report.protocol["captions"]) == (2, 2)
    assert report.image_to_text["R@1"] == report.text_to_image["R@1"] == 1
    assert report.unreadable == ("None: cut short",)


@pytest.mark.parametrize("model", [small_toklip(), small_clip()], ids=["TokLIP", "CLIP"])
def test_scenes_have_four_captions_each(toy, tmp_path, model):
    model.save_pretrained(tmp_path / "model")
    report = evaluate_retrieval(tmp_path / "model", "scenes:validation?count=8&size=32", compute=Compute(batch_size=3))
    assert report.protocol["inputs"] == "scenes:validation?count=8&size=32"
    expected = sum(len(scene.captions) for scene in Scenes(8, split="validation"))
    assert (report.protocol["pictures"], report.protocol["captions"]) == (8, expected)
    data = json.loads(json.dumps(report.as_json()))
    assert data["image_to_text"] == report.image_to_text
    assert report.as_text().splitlines()[0].split() == ["R@1", "R@5", "R@10"]
    for line in report.protocol.values():
        assert str(line) in report.as_text()


def pictures(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 8), (255, 0, 0)).save(folder / name)
    return folder


def test_rows_of_a_table_are_pictures_with_captions(tmp_path):
    pictures(tmp_path / "root", "a.png", "b.png")
    rows = [{"file": "a.png", "text": ["one", "two"]}, {"file": "b.png", "text": "three"}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = table_pairs(tmp_path / "pairs.jsonl", tmp_path / "root", image="file", captions="text")
    assert [list(one.captions) for one in found] == [["one", "two"], ["three"]]
    assert [one.picture.name for one in found] == [str(tmp_path / "root" / name) for name in ("a.png", "b.png")]
    assert found[0].picture.read().size == (9, 8)


def test_rows_that_name_one_picture_are_one_picture_and_the_protocol_counts_both(toy, tmp_path):
    """A perfect model finds each of the four captions; by rows, each picture would be its own rival three times."""
    file = tmp_path / "rows.csv"
    file.write_text((FAULTS / "one-row-per-caption.csv").read_text())
    pictures(tmp_path, "000000.png", "000001.png")
    found = table_pairs(file, tmp_path, captions="caption")
    assert [len(pair.captions) for pair in found] == [4, 4]
    small_toklip().save_pretrained(tmp_path / "model")
    report = evaluate_retrieval(tmp_path / "model", file, captions="caption")
    assert (report.protocol["pictures"], report.protocol["captions"]) == (2, 8)
    assert report.chance_text_to_image["R@1"] == pytest.approx(1 / 2)


def karpathy(folder, **changes):
    def row(name, split, *texts):
        return {"filepath": "val2014", "filename": name, "split": split, "sentences": [{"raw": t} for t in texts]}

    rows = [row("a.jpg", "test", "one", "two"), row("b.jpg", "train", "no"), row("c.jpg", "test", "three")]
    (folder / "dataset_coco.json").write_text(json.dumps({"images": rows} | changes))
    return folder / "dataset_coco.json"


def test_a_karpathy_file_gives_the_pictures_of_a_split_with_all_their_captions(tmp_path):
    pictures(tmp_path, "val2014/a.jpg", "val2014/c.jpg")
    found = karpathy_pairs(karpathy(tmp_path), "test", tmp_path)
    assert [list(one.captions) for one in found] == [["one", "two"], ["three"]]
    assert [one.picture.name for one in found] == [str(tmp_path / "val2014" / name) for name in ("a.jpg", "c.jpg")]


def test_what_is_no_karpathy_file_or_has_no_such_split_or_no_pictures_is_refused(tmp_path):
    file = karpathy(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"are not below .*, the first is .*val2014/a\.jpg; name their root"):
        karpathy_pairs(file, "test", tmp_path)
    with pytest.raises(ValueError, match="no pictures of the split 'val'; it has test, train"):
        karpathy_pairs(file, "val", tmp_path)
    with pytest.raises(ValueError, match="is not a file of Karpathy's splits"):
        karpathy_pairs(karpathy(tmp_path, images=[{"file": "a.jpg"}]), "test", tmp_path)
    file.write_text("[1, 2")
    with pytest.raises(ValueError, match="is not a file of Karpathy's splits"):
        karpathy_pairs(file, "test", tmp_path)


@pytest.mark.parametrize(
    ("pairs", "options", "why"),
    [
        ("scenes:held-out?count=4", ["--root", "--image", "--captions"], "with scenes, which have no files"),
        ("dataset_coco.json", ["--image", "--captions"], "with Karpathy's splits (.json), which have keys of"),
    ],
)
def test_options_of_tables_are_refused_for_other_pairs(pairs, options, why):
    words = [word for option in options for word in (option, "x")]
    result = CliRunner().invoke(cli, ["evaluate", "retrieval", pairs, "--model", "nowhere", *words])
    assert result.exit_code == 2
    last_error(result.stderr, f"{', '.join(options)} have no effect {why}", "leave them out")


@pytest.mark.parametrize("pairs", ["x.jsonl", "scenes:held-out?count=4"])
def test_a_karpathy_split_of_another_file_is_refused(pairs):
    with pytest.raises(ValueError, match=f"got a Karpathy split for {re.escape(pairs)}"):
        evaluate_retrieval("no-model", pairs, karpathy_split="test")
