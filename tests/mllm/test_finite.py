"""Logits that are NaN or infinite give no answer; such weights are refused by name."""

import copy
import math

import pytest
from toklip_mllm.chat import GREEDY, Chat
from toklip_mllm.model import load_language_model

from tests.core.conftest import picture
from tests.support.refusals import refusing
from tests.support.small_mllms import ids, prompt, shared

HOW = {
    "greedy": GREEDY,
    "drawn": {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 5},
    "beams": {"num_beams": 3, "do_sample": False},
    "prompt lookup": {"do_sample": False, "prompt_lookup_num_tokens": 2},
}


@pytest.fixture
def broken():
    """A model whose last norm has a NaN, and its processor."""
    model, processor = map(copy.deepcopy, shared("llama"))
    model.language_model.model.norm.weight.data[3] = math.nan
    return model, processor


@pytest.mark.parametrize("how", HOW)
def test_no_token_is_chosen_by_logits_that_are_no_numbers(broken, how):
    model, processor = broken
    batch = prompt(processor, "<image> what ?", image_ids=ids(1))
    with refusing("the greatest logit of row 1 of ", "is not finite"):
        model.generate(**batch, max_new_tokens=4, **HOW[how])


def test_tokens_that_are_ruled_out_are_no_fault():
    """The image token is never said: its logit is -inf."""
    model, processor = shared("llama")
    batch = prompt(processor, "<image> what ?", image_ids=ids(1))
    assert model.generate(**batch, max_new_tokens=2, **GREEDY).shape[1] == batch["input_ids"].shape[1] + 2


def test_a_conversation_says_so(broken):
    chat = Chat(*broken)
    with refusing("is not finite"):
        chat.ask("what ?", [picture(0)])
    assert chat.messages == []


def test_pictures_that_become_no_numbers_are_seen_in_the_logits():
    model, processor = map(copy.deepcopy, shared("llama"))
    model.connector[0].bias.data[0] = math.inf
    with refusing("is not finite"):
        model.generate(**prompt(processor, "<image> what ?", image_ids=ids(1)), max_new_tokens=4, **GREEDY)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_folder_with_such_a_weight_is_refused_by_its_name(tmp_path, value):
    model, processor = map(copy.deepcopy, shared("llama"))
    model.language_model.model.layers[1].mlp.up_proj.weight.data[3, 3] = value
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with refusing("'language_model.model.layers.1.mlp.up_proj.weight' of ", "has NaN or infinity"):
        load_language_model(tmp_path)
