"""Logits that are NaN or infinite: no picture is drawn from them, greedy or sampled, compiled or not."""

import math

import pytest
import torch
from toklip_core.drawing import Drawing, Guidance, Sampler
from toklip_core.tokenizer import Tokenizer
from toklip_core.weights import save_model_folder
from toklip_gen.generator import IdPredictor, PictureGenerator, load_generator

from tests.support.mean_colour import MeanColour
from tests.support.refusals import refusing
from tests.support.small_generators import sample, small_config, small_generator, small_inputs, some_condition

BROKEN = [math.nan, math.inf, -math.inf]
CHOICES = {"greedy": {"temperature": 0}, "drawn": {}, "top-k": {"top_k": 5}, "top-p": {"top_p": 0.5}}


def draw(generator, **options):
    return sample(generator, small_inputs(), some_condition("class", 3), seeds=[1, 2, 3], **options)


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_id_is_chosen_by_logits_that_are_no_numbers(choice, value, compiled):
    compiler = (lambda step, **how: step) if compiled else None
    generator = small_generator()
    generator.norm.weight.data[3] = value
    with refusing("a logit of picture 1 of 3 is not finite", "lower the guidance"):
        draw(generator, compiler=compiler, **CHOICES[choice])


def test_one_picture_among_others_is_named():
    generator = small_generator()
    generator.condition.weight.data[some_condition("class", 3).values[1]] = math.nan
    with refusing("a logit of picture 2 of 3 is not finite"):
        draw(generator, guidance=1.0)


def test_a_guidance_too_large_for_the_numbers_is_refused():
    generator = small_generator()
    generator.head.weight.data *= 1e12
    with refusing("a logit of picture 1 of 3 is not finite", "lower the guidance"):
        draw(generator, guidance=1e30)


class WithoutSeven(IdPredictor):
    """Rules an id out, as a model may."""

    def logits(self, states, before, cache):
        return super().logits(states, before, cache).index_fill(1, torch.tensor([7]), -math.inf)


def test_an_id_that_is_ruled_out_is_no_fault():
    sampler = Sampler(WithoutSeven(small_generator(), small_inputs()))
    drawing = Drawing(guidance=Guidance(1.0))
    assert not (sampler.draw(some_condition("class", 3), seeds=[1, 2, 3], drawing=drawing).ids == 7).any()


class Blind(MeanColour):
    """A plugin whose decoder gives NaN."""

    def decode(self, ids):
        return super().decode(ids) * math.nan


@pytest.mark.parametrize("value", BROKEN)
def test_a_folder_with_such_a_weight_is_refused_by_its_name(toy, tmp_path, value):
    generator = small_generator()
    generator.blocks[1].qkv.weight.data[3, 3] = value
    save_model_folder(tmp_path, small_config().model_dump(mode="json"), generator)
    with refusing(f"the tensor 'blocks.1.qkv.weight' of '{tmp_path}' has NaN or infinity"):
        load_generator(tmp_path)


def test_pixels_that_are_no_numbers_are_no_pictures():
    pictures = PictureGenerator(small_generator(), tokenizer=Tokenizer("mean-colour", Blind(), None))
    with refusing("a pixel of picture 1 of 2 is not finite"):
        pictures.pixels(torch.zeros(2, 8, 8, 1, dtype=torch.int64))
