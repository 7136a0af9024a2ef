"""Scenes read from pixels, and whether pictures show what captions say: judges are right about real scenes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toklip_core.pictures import normalized
from toklip_core.scenes import (
    COLOURS,
    SHAPES,
    Background,
    Description,
    Phrase,
    SceneObject,
    parse_caption,
    render,
    scene,
)
from toklip_core.scenes.reading import read_scene
from toklip_gen.evaluation import (
    Match,
    caption_of,
    match_by_model,
    match_by_pixels,
    measure_match,
    scene_prompts,
    shares_table,
)

from tests.support.mean_colour import mean_colour
from tests.support.small_models import SIZE

ALL_RIGHT = Match(colour=1.0, shape=1.0, object=1.0, count=1.0, relation=1.0, caption=1.0)


def pixels_of(prompts):
    return normalized(torch.stack([torch.from_numpy(prompt.scene.rgb) for prompt in prompts]).movedim(-1, 1))


def thing(colour="red", shape="circle", x=0.5, y=0.5, radius=0.15, rgb=(0.9, 0.1, 0.1), **more):
    return SceneObject(shape=shape, colour=colour, size="medium", x=x, y=y, radius=radius, colour_values=rgb, **more)


GREY = Background(kind="plain", colours=((0.45, 0.45, 0.5), (0.4, 0.4, 0.4)), light=(0.95, 0.2, -0.2))


@pytest.mark.slow
def test_scenes_on_plain_backgrounds_are_read_without_an_error():
    prompts = scene_prompts(60, split="validation")
    assert match_by_pixels(pixels_of(prompts), [prompt.claims for prompt in prompts]) == ALL_RIGHT


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("turn", [-0.5, 0.0, 0.4])
def test_every_shape_is_told_from_the_others_whatever_its_turn(shape, turn):
    (found,) = read_scene(render([thing(shape=shape, turn=turn, radius=0.11)], GREY))
    assert (found.shape, found.colour) == (shape, "red")
    assert (found.x, found.y) == (pytest.approx(0.5, abs=0.02), pytest.approx(0.5, abs=0.02))


@pytest.mark.slow
def test_every_colour_is_read_from_the_palette_it_was_drawn_from():
    for index in range(80):
        drawn = scene(index, objects=1)
        plain = replace(drawn, background=replace(drawn.background, kind="plain", knots=()))
        (found,) = read_scene(plain.rgb)
        assert found.colour == drawn.objects[0].colour, index


def test_an_empty_picture_has_no_object():
    assert read_scene(render([], GREY)) == []
    assert read_scene(np.full((64, 64, 3), 128, np.uint8)) == []


def test_two_objects_whose_edges_touch_are_two():
    things = [thing(x=0.32, shape="circle"), thing(x=0.62, shape="circle")]
    blurred = render(things, GREY, 16).repeat(4, 0).repeat(4, 1)
    assert len(read_scene(blurred)) == 2


def judged(picture, caption):
    return match_by_pixels(normalized(torch.from_numpy(picture)).movedim(-1, 0)[None], [parse_caption(caption)])


def test_what_is_wrong_is_found_wrong_and_nothing_else():
    above = [thing(y=0.25), thing("blue", "square", y=0.75, rgb=(0.1, 0.2, 0.9))]
    picture = render(above, GREY)
    assert judged(picture, "a red circle above a blue square") == ALL_RIGHT
    assert judged(picture, "a red circle below a blue square") == replace(ALL_RIGHT, relation=0, caption=0)
    half = replace(ALL_RIGHT, object=0.5, caption=0)
    assert judged(picture, "a green circle above a blue square") == replace(half, colour=0.5)
    assert judged(picture, "a red star above a blue square") == replace(half, shape=0.5)
    one = judged(picture, "a red circle")
    assert (one.object, one.count, one.relation, one.caption) == (1, 0, None, 0)
    both = judged(picture, "a blue circle and a red square")
    assert {both.colour, both.shape} == {0, 1} and both.object == 0, "one object stands for one phrase"


def test_captions_of_descriptions_are_read_back():
    prompts = scene_prompts(80)
    for prompt in prompts:
        objects = tuple(phrase._replace(size=None, place=None) for phrase in prompt.claims.objects)
        claims = replace(prompt.claims, objects=objects, background=None)
        assert parse_caption(caption_of(claims)) == claims


def test_prompts_say_that_the_background_is_plain_and_are_true():
    prompts = scene_prompts(30)
    assert all(prompt.text.endswith(" plain background") for prompt in prompts)
    assert all(prompt.claims.is_true_of(prompt.scene.objects, prompt.scene.background) for prompt in prompts)


class Knowing:
    """A model that knows each picture's words: it counts those that a text shares with the true one, in order."""

    logit_scale = torch.zeros(())

    def __init__(self, prompts, wrong=""):
        self.config = type("Config", (), {"image_size": SIZE, "resize": "crop"})
        self.words = {}
        self._wrong = wrong
        self._prompts = prompts

    def _code(self, text):
        place = self.words.setdefault(text, len(self.words))
        return torch.nn.functional.one_hot(torch.tensor(place), 4096).float()

    def image_features(self, pixels):
        plain = [prompt.claims for prompt in self._prompts]
        listed = [self._code(caption_of(Description(c.objects))) for c in plain]
        true = [self._code(caption_of(c)) for c in plain]
        both = torch.stack(listed) + torch.stack(true)
        return both * (-1 if self._wrong else 1)

    def text_features(self, texts):
        return torch.stack([self._code(text) for text in texts])


def test_a_model_that_knows_the_true_captions_is_always_right_and_one_that_hates_them_never():
    prompts = scene_prompts(12)
    claims = [prompt.claims for prompt in prompts]
    pixels = torch.zeros(12, 3, SIZE, SIZE)
    assert match_by_model(Knowing(prompts), pixels, claims) == ALL_RIGHT
    never = match_by_model(Knowing(prompts, wrong="all"), pixels, claims)
    assert {never.colour, never.shape, never.count, never.caption} == {0}


def test_a_model_without_an_opinion_is_not_right():
    prompts = scene_prompts(4)
    blank = Knowing(prompts)
    blank.image_features = lambda pixels: torch.zeros(len(pixels), 4096)
    found = match_by_model(blank, torch.zeros(4, 3, SIZE, SIZE), [prompt.claims for prompt in prompts])
    assert (found.colour, found.count) == (0, 0)


def test_the_judges_are_measured_beside_what_they_judge():
    prompts = scene_prompts(6, split="validation")
    drawn = pixels_of(prompts)
    texts = [prompt.text for prompt in prompts]
    found = measure_match(
        lambda asked: drawn[[texts.index(text) for text in asked]], prompts, tokenizer=mean_colour(), batch_size=4
    )
    assert {*found} == {"pixels"} and {*found["pixels"]} == {"drawn", "scenes", "reconstructed"}
    assert found["pixels"]["drawn"] == found["pixels"]["scenes"] == ALL_RIGHT
    assert found["pixels"]["reconstructed"].colour < 0.9, "a tokenizer of grey levels loses colours"
    assert shares_table(found)[1][:3] == ["pixels", "drawn", "100.0%"]


def test_a_description_that_no_caption_says_is_refused():
    three = Description(tuple(Phrase(COLOURS[i], SHAPES[i], None) for i in range(4)))
    with pytest.raises(ValueError, match="got 4 objects"):
        caption_of(three)


def test_any_picture_is_read_without_a_complaint():
    draw = np.random.default_rng(0)
    for picture in (
        draw.integers(0, 256, (32, 32, 3), np.uint8),
        np.zeros((32, 32, 3), np.uint8),
        np.kron(draw.integers(0, 2, (4, 4, 1), np.uint8) * 255, np.ones((8, 8, 3), np.uint8)),
        255 - render([thing(rgb=(1.0, 1.0, 1.0))], GREY, 32),
    ):
        assert all(found.shape in SHAPES and found.colour in COLOURS for found in read_scene(picture))
