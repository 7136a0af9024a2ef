"""Matching of pictures and texts by any model: ranks with ties, batches, and refused input."""

import itertools
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image
from toklip_core.config import Compute
from toklip_core.evaluation import (
    hit_chances,
    load_matcher,
    picture_features,
    refuse_unreadable,
    report_text,
    text_features,
)
from toklip_core.pictures import LazyPicture, PictureError, scene_pictures, to_pixels
from toklip_core.plugins import NamedModel, registry
from toklip_core.scenes import Scenes
from toklip_core.weights import weights_checksum

from tests.core.conftest import picture
from tests.support.mean_colour import MeanColour
from tests.support.small_models import small_clip, small_toklip
from tests.support.starved import raising, system_error


def pictures(count=5):
    return scene_pictures(Scenes(count, size=32))


def unreadable(name="broken.jpg"):
    def read() -> Image.Image:
        raise PictureError("cut short")

    return LazyPicture(name, read)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (system_error("EIO"), str(system_error("EIO"))),
        (MemoryError("Unable to allocate"), "there was not enough memory to read it"),
    ],
)
def test_a_picture_that_the_machine_cannot_read_is_named_and_the_others_are_used(error, reason):
    broken = LazyPicture("broken.jpg", raising(error))
    left_out: list[str] = []
    found = [*picture_features(small_toklip(), [*pictures(1), broken, *pictures(1)], left_out)]
    assert [places for places, _ in found] == [[0, 2]] and left_out == [f"broken.jpg: {reason}"]
    with pytest.raises(ValueError, match=r"^1 of 2 held-out pictures cannot be read, the first is broken\.jpg: "):
        refuse_unreadable([*pictures(1), broken])


def test_a_hit_is_as_likely_as_in_all_orders_of_the_candidates_that_are_tied():
    scores = torch.tensor([[3, 2, 2, 2, 1], [2, 2, 1, 1, 1], [0, 0, 0, 0, 0], [5, 4, 3, 2, 1]])
    own = torch.tensor([[0, 1, 0, 1, 0], [0, 0, 1, 1, 0], [1, 0, 1, 0, 1], [0, 0, 0, 1, 0]], dtype=torch.bool)
    expected = []
    for row, mine in zip(scores.tolist(), own.tolist(), strict=True):
        orders = list(itertools.permutations(range(5)))
        ranked = [sorted(order, key=lambda i, row=row: -row[i]) for order in orders]  # a stable sort
        expected.append([sum(any(mine[i] for i in one[:k]) for one in ranked) / len(orders) for k in (1, 2, 3, 5, 9)])
    torch.testing.assert_close(hit_chances(scores.float(), own, (1, 2, 3, 5, 9)), torch.tensor(expected).double())


@pytest.mark.parametrize("model", [small_toklip(), small_clip()], ids=["TokLIP", "CLIP"])
def test_features_are_those_of_the_model_whatever_the_batch(model):
    given = pictures()
    whole = dict(enumerate(next(picture_features(model, given, [], compute=Compute(batch_size=5)))[1]))
    for places, features in picture_features(model, given, [], compute=Compute(batch_size=2)):
        for place, feature in zip(places, features, strict=True):
            torch.testing.assert_close(feature, whole[place], rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.stack([*whole.values()]).norm(dim=1), torch.ones(5))


@pytest.mark.parametrize("model", [small_toklip(resize="squash"), small_clip()], ids=["TokLIP", "CLIP"])
@torch.no_grad()
def test_a_model_that_squashes_pictures_sees_the_whole_of_them(model):
    wide = picture(0, (96, 32))
    [(_, features)] = picture_features(model, [LazyPicture("wide.png", lambda: wide)], [])
    expected = {way: model.image_features(to_pixels(wide, 32, way)[None]) for way in ("squash", "crop")}
    assert torch.equal(features, expected["squash"]) and not torch.allclose(features, expected["crop"], atol=1e-3)


def test_a_picture_that_cannot_be_read_is_named_and_passed_over():
    left_out: list[str] = []
    given = [*pictures(2), unreadable(), *pictures(1)]
    batches = picture_features(small_toklip(), given, left_out, Compute(batch_size=2))
    places = [place for batch, _ in batches for place in batch]
    assert places == [0, 1, 3]
    assert left_out == ["broken.jpg: cut short"]


def test_pictures_are_read_by_several_threads_in_order_and_not_many_ahead_of_what_is_needed():
    together = threading.Barrier(2, timeout=20)
    read: list[int] = []

    def given(number: int) -> LazyPicture:
        def picture_of_it() -> Image.Image:
            if number < 2:
                together.wait()  # which only two threads pass
            read.append(number)
            return picture(number, (32, 32))

        return LazyPicture(str(number), picture_of_it)

    model = small_toklip()
    batches = picture_features(model, [given(number) for number in range(100)], [], Compute(batch_size=2))
    places, features = next(batches)
    for place, feature in zip(places, features, strict=True):
        with torch.no_grad():
            [expected] = model.image_features(to_pixels(picture(place, (32, 32)), 32)[None])
        torch.testing.assert_close(feature, expected, rtol=0, atol=1e-5)
    batches.close()
    assert places == [0, 1] and len(read) <= 2 + 17


def test_where_no_picture_can_be_read_the_first_is_named():
    with pytest.raises(ValueError, match=r"none of 2 pictures can be read; the first is a\.jpg: cut short"):
        list(picture_features(small_toklip(), [unreadable("a.jpg"), unreadable("b.jpg")], []))


def test_a_feature_that_is_no_number_is_refused_with_its_picture():
    model = small_toklip()
    model.encoder.norm.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"feature of 'scenes/train,size=32/000000\.png' is not finite"):
        list(picture_features(model, pictures(), []))


def test_a_feature_that_is_no_number_is_refused_with_its_text():
    model = small_toklip()
    model.text.network.token_embedding.weight.data[model.text.ids(["blue"])[0, 0]] = torch.nan
    with pytest.raises(ValueError, match="feature of 'a blue circle' is not finite"):
        text_features(model, ["a red circle", "a blue circle"])


def test_no_text_is_refused():
    with pytest.raises(ValueError, match="got no text"):
        text_features(small_toklip(), [])


def test_a_loaded_model_is_the_saved_one_and_named_with_its_checksums(toy, tmp_path):
    saved = small_toklip()
    saved.save_pretrained(tmp_path / "model")
    model, protocol = load_matcher(tmp_path / "model", checksums=True)
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(model.image_features(pixels), saved.image_features(pixels), rtol=0, atol=0)
    assert protocol == {
        "model": str(tmp_path / "model"),
        "weights": f"sha256 {weights_checksum(saved)}",
        "tokenizer": f"mean-colour, sha256 {weights_checksum(MeanColour())}",
        "computed": "in float32 on cpu",
        "size": "32 x 32, resize crop",
    }


@pytest.mark.parametrize(("name", "given"), [("mine", None), ("mine=weights/a.pth", Path("weights/a.pth"))])
def test_a_plugins_model_that_compares_is_loaded_by_name_with_its_weights(monkeypatch, name, given):
    asked = []
    spec = NamedModel(
        name="mine",
        kind="CLIP",
        summary="For tests.",
        size=1,
        licence="",
        match=lambda weights: asked.append(weights) or small_clip(),
    )
    monkeypatch.setitem(registry().models, "mine", spec)
    model, protocol = load_matcher(name)
    assert (asked, protocol["model"], model.training) == ([given], name, False)


def test_half_precision_changes_features_a_little_and_no_checksum(toy, tmp_path):
    small_toklip().save_pretrained(tmp_path / "model")
    whole, protocol = load_matcher(tmp_path / "model", checksums=True)
    half, of_half = load_matcher(tmp_path / "model", Compute(dtype="bfloat16"), checksums=True)
    [(_, one)], [(_, other)] = (list(picture_features(model, pictures(), [])) for model in (whole, half))
    assert other.dtype == torch.float32
    assert 0.99 < (one * other).sum(1).min() < 1
    assert of_half["weights"] == protocol["weights"]
    assert of_half["computed"] == "in bfloat16 on cpu"


def test_a_device_that_is_not_there_is_refused_before_anything_is_loaded():
    with pytest.raises(ValueError, match="got the device 'abacus'"):
        load_matcher("no-such-model", Compute(device="abacus"))


def test_a_report_has_figures_in_columns_then_the_protocol_then_what_is_missing():
    text = report_text([("", "R@1"), ("image", "5 %")], {"model": "x"}, ["a.jpg: cut short"])
    figures, protocol, unreadable = text.split("\n\n")
    assert figures == "       R@1\nimage  5 %"
    assert protocol == "Protocol\n  model         x"
    assert unreadable == "Unreadable, in no figure: 1\n  a.jpg: cut short"
