"""What a token of a picture says: cells of the grid, texts in order, ids."""

import pytest
import torch
from PIL import Image
from toklip_core.demo.app.tokens import (
    Cell,
    TokenMark,
    TokenView,
    cell_at,
    describe_token,
    draw_grid,
    marked_cell,
    matches_of,
    texts_for,
)
from toklip_core.evaluation import Explanation
from toklip_core.pictures import PANEL_SIDE


def explanation(texts, values, ids=None, causal=True):
    """An explanation that no model made, of a grid of 2 x 4."""
    ids = torch.arange(16).reshape(2, 4, 2) if ids is None else ids
    return Explanation(
        image=Image.new("RGB", (PANEL_SIDE, PANEL_SIDE), (90, 160, 210)),
        picture="sky.png",
        texts=tuple(texts),
        values=values,
        ids=ids,
        whole=tuple(0.1 for _ in texts),
        relative=False,
        causal=causal,
        protocol={"model": "a-model"},
    )


@pytest.fixture
def three():
    values = torch.zeros(3, 2, 4)
    values[:, 1, 2] = torch.tensor([0.1, 0.4, -0.1])
    return explanation(["red", "blue", "<b>green</b>"], values)


@pytest.mark.parametrize(
    ("point", "cell"),
    [((0, 0), (0, 0)), ((127, 255), (0, 0)), ((128, 256), (1, 1)), ((511, 511), (1, 3)), ((512, 512), (1, 3))],
)
def test_a_point_lies_in_the_cell_that_is_drawn_there(three, point, cell):
    assert cell_at(three, *point) == cell


def test_texts_come_by_their_cosine_with_shares_of_the_range_of_the_picture(three):
    found = matches_of(three, Cell(1, 2))
    assert [match.text for match in found] == ["blue", "red", "<b>green</b>"]
    assert [match.cosine for match in found] == pytest.approx([0.4, 0.1, -0.1])
    assert [match.share for match in found] == pytest.approx([1, 0.4, 0])
    assert len(matches_of(three, Cell(1, 2), 2)) == 2
    assert [match.text for match in matches_of(three, Cell(0, 0))] == ["red", "blue", "<b>green</b>"]


def test_the_cell_of_the_largest_cosine_is_shown_until_one_of_the_same_picture_is_clicked_on(three):
    view = TokenView("sky.png", three)
    assert marked_cell(view, None) == (1, 2)
    assert marked_cell(view, TokenMark("sky.png", Cell(0, 3))) == (0, 3)
    assert marked_cell(view, TokenMark("sea.png", Cell(0, 3))) == (1, 2)


def test_a_token_is_described_by_its_place_its_ids_and_texts_that_are_no_html(three):
    page = describe_token(three, Cell(1, 2))
    assert "Token 7</b> of 8" in page and "row 2, column 3" in page
    assert "VQ ids" in page and "<code>12</code> <code>13</code>" in page
    assert "&lt;b&gt;green" in page and "<b>green" not in page
    assert "It has seen its own code" in page
    assert "It has seen" not in describe_token(explanation(["a"], torch.zeros(1, 2, 4), causal=False), Cell(0, 0))


def test_ids_of_a_pyramid_belong_to_no_cell():
    ids = torch.zeros(1, 30, 1, dtype=torch.int64)
    assert "of a pyramid" in describe_token(explanation(["a"], torch.zeros(1, 2, 4), ids), Cell(0, 0))


def test_the_frame_is_around_the_cell(three):
    image, plain = draw_grid(three, Cell(1, 2)), three.image.getpixel((0, 0))
    assert image.getpixel((256, 256)) == image.getpixel((383, 511)) != plain
    assert image.getpixel((320, 384)) == image.getpixel((60, 60)) == plain
    assert image.getpixel((128, 60)) != plain  # a line between two cells


def test_the_small_model_is_offered_the_words_that_it_knows():
    assert "an orange star" in texts_for("toklip-tiny") and len(texts_for("toklip-tiny")) == 64
    assert "a photo of a dog" in texts_for("toklip-l-384")
