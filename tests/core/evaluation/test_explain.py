"""Maps of where a text is in a picture: their numbers and their drawing."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from toklip_core.evaluation import Explanation, draw_explanation, explain_picture
from toklip_core.pictures import PANEL_SIDE, open_picture, resized, to_pixels

from tests.support.small_models import small_clip, small_toklip


@pytest.fixture
def saved(toy, tmp_path):
    """The folder of a small TokLIP."""
    small_toklip().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def explanation(*texts, values=None, relative=False, causal=True):
    """An explanation that no model made; a grid of 2 x 4 for each text."""
    if values is None:
        values = torch.linspace(-0.2, 0.4, len(texts) * 8).reshape(-1, 2, 4)
    return Explanation(
        image=Image.new("RGB", (PANEL_SIDE, PANEL_SIDE), (90, 160, 210)),
        picture="sky.png",
        texts=texts,
        values=values,
        ids=torch.zeros(2, 4, 1, dtype=torch.int64),
        whole=tuple(0.1 for _ in texts),
        relative=relative,
        causal=causal,
        protocol={"model": "a-model"},
    )


def ink(image, box):
    """Whether anything is drawn in a part of a picture."""
    return np.asarray(image.crop(box).convert("L")).min() < 250


def test_the_values_are_cosines_of_each_token_pooled_alone(saved, photos):
    model, texts = small_toklip(), ["a red circle", "a blue star"]
    found = explain_picture(saved, photos / "a.jpg", texts)
    pixels = to_pixels(open_picture(photos / "a.jpg"), 32)[None]
    tokens = model(pixels).tokens
    alone = torch.stack([model.encoder.attn_pool(tokens[:, i : i + 1])[0] for i in range(64)])
    expected = (F.normalize(alone, dim=-1) @ model.text_features(texts).T).T.reshape(2, 8, 8)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-5)
    whole = (model.image_features(pixels) @ model.text_features(texts).T)[0]
    assert found.whole == pytest.approx(whole.tolist(), abs=1e-5)
    assert torch.equal(found.ids, model(pixels).ids[0])
    assert found.image.tobytes() == resized(open_picture(photos / "a.jpg"), PANEL_SIDE, "crop").tobytes()


def test_a_picture_that_lies_on_its_side_is_explained_upright(saved, photos, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(photos / "b.png") as image:
        image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "side.png", exif=exif)
    found, expected = (explain_picture(saved, path, ["a cat"]) for path in (tmp_path / "side.png", photos / "b.png"))
    assert torch.equal(found.values, expected.values) and found.image.tobytes() == expected.image.tobytes()


def test_relative_values_are_less_their_mean_over_the_texts(saved, photos):
    texts = ["a red circle", "a blue star", "a green heart"]
    plain, relative = (explain_picture(saved, photos / "a.jpg", texts, relative=x) for x in (False, True))
    torch.testing.assert_close(relative.values, plain.values - plain.values.mean(0))
    assert relative.whole == plain.whole


def test_as_data_it_is_one_grid_for_each_text(saved, photos):
    data = json.loads(json.dumps(explain_picture(saved, photos / "a.jpg", ["a star"]).as_json()))
    assert data["picture"] == str(photos / "a.jpg")
    assert data["texts"][0]["text"] == "a star"
    assert np.shape(data["texts"][0]["tokens"]) == (8, 8)
    assert np.shape(data["ids"]) == (8, 8, 1)
    assert data["protocol"]["model"] == str(saved)
    assert data["relative"] is False


def test_the_legend_says_what_a_token_has_seen_where_that_is_not_all(saved, photos):
    config = json.loads((saved / "config.json").read_text())
    config["encoder"]["causal"] = False
    (saved / "config.json").write_text(json.dumps(config))
    assert not explain_picture(saved, photos / "a.jpg", ["a star"]).causal
    assert draw_explanation(explanation("a", causal=False)).height < draw_explanation(explanation("a")).height


def test_what_cannot_be_explained_is_refused(saved, photos, tmp_path):
    with pytest.raises(ValueError, match=r"absent\.png: No such file"):
        explain_picture(saved, "absent.png", ["a star"])
    with pytest.raises(ValueError, match="got 1 text to compare"):
        explain_picture(saved, photos / "a.jpg", ["a star"], relative=True)
    small_clip().save_pretrained(tmp_path / "clip")
    with pytest.raises(ValueError, match="is a CLIP, which has no semantic tokens; name a TokLIP"):
        explain_picture(tmp_path / "clip", photos / "a.jpg", ["a star"])


def test_the_greatest_value_is_the_lightest_block_at_its_place():
    values = torch.zeros(1, 2, 4)
    values[0, 1, 2] = 1
    picture = draw_explanation(explanation("x", values=values))
    grey = np.asarray(picture.convert("L"), np.float32)
    panel = 24 + PANEL_SIDE + 24
    top = next(row for row in range(picture.height) if picture.getpixel((panel, row)) != (255, 255, 255))
    inside = grey[top : top + PANEL_SIDE, panel : panel + PANEL_SIDE]
    blocks = inside.reshape(2, PANEL_SIDE // 2, 4, PANEL_SIDE // 4).mean((1, 3))
    assert np.unravel_index(blocks.argmax(), blocks.shape) == (1, 2)
    assert np.ptp(np.delete(blocks.ravel(), 6)) < 0.5


def test_panels_stand_three_in_a_row_and_four_in_a_square():
    one, two, three, five = (draw_explanation(explanation(*[str(i) for i in range(n)])) for n in (1, 2, 3, 5))
    assert 2 * PANEL_SIDE < one.width == three.width < 3 * PANEL_SIDE < two.width == five.width < 4 * PANEL_SIDE
    assert PANEL_SIDE < one.height < 2 * PANEL_SIDE < three.height == five.height < 3 * PANEL_SIDE


@pytest.mark.parametrize("text", ["a red circle " * 30, "x" * 300, "ein großer Kreis, où ça", ""])
def test_any_text_fits_into_the_width_of_its_panel(text):
    picture = draw_explanation(explanation(text or " ", "b"))
    left = 24 + PANEL_SIDE + 24
    title = (left, 0, left + PANEL_SIDE, picture.height - PANEL_SIDE - 150)
    assert ink(picture, title)
    for gap in ((left - 24, 0, left, title[3]), (left + PANEL_SIDE, 0, left + PANEL_SIDE + 24, title[3])):
        assert not ink(picture, gap)
    assert not ink(picture, (0, 0, picture.width, 8))


def test_values_that_are_all_alike_are_drawn():
    draw_explanation(explanation("x", values=torch.full((1, 2, 4), 0.3)))
