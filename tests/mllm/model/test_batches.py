"""Batches of prompts: a saved and loaded model answers several questions as it answers each alone."""

import pytest
import torch
from toklip_core.scenes import scene
from toklip_mllm.model import load_language_model
from toklip_mllm.published import FOLDERS, TINY_NAME
from transformers import AutoProcessor, AutoTokenizer, pipeline

from tests.support.small_mllms import ids, small_mllm

QUESTIONS = ("how many circles are there?", "what colour is the largest shape in the picture, and where does it lie?")


def asked(count: int = 2):
    """Messages about as many scenes, with questions of unequal length."""
    from PIL import Image

    for number in range(count):
        picture = Image.fromarray(scene(number, seed=1, size=64).rgb)
        parts = [{"type": "image", "image": picture}, {"type": "text", "text": QUESTIONS[number % 2]}]
        yield [{"role": "user", "content": parts}]


def said(model, processor, conversations, **options):
    batch = processor.apply_chat_template(
        conversations, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", **options
    )
    found = model.generate(**batch, max_new_tokens=6, do_sample=False)
    return processor.batch_decode(found[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.fixture(scope="module")
def tiny():
    pytest.importorskip("toklip_vq")
    return load_language_model("toklip-mllm-tiny")


def test_a_batch_of_unequal_questions_gives_what_each_alone_gives(tiny):
    conversations = [*asked()]
    assert said(*tiny, conversations) == [said(*tiny, [conversation])[0] for conversation in conversations]


def test_a_pipeline_of_transformers_gives_the_same_in_batches(tiny):
    model, processor = tiny
    answer = pipeline("image-text-to-text", model=model, processor=processor, max_new_tokens=6)
    options = dict(return_full_text=False, generate_kwargs={"do_sample": False})
    together = answer([*asked(4)], batch_size=2, **options)
    alone = [answer(conversation, **options) for conversation in asked(4)]
    assert [one[0]["generated_text"] for one in together] == [one[0]["generated_text"] for one in alone]


@pytest.mark.parametrize("loader", [AutoProcessor, AutoTokenizer])
def test_the_model_in_the_package_pads_on_the_left_when_transformers_loads_it(loader):
    loaded = loader.from_pretrained(FOLDERS[TINY_NAME])
    assert getattr(loaded, "tokenizer", loaded).padding_side == "left"


def test_a_saved_processor_pads_on_the_left_whatever_was_padded_on_the_right_before(tmp_path):
    _, processor = small_mllm()
    # What the tokenizer did last is saved with it.
    processor.tokenizer(["what is it", "yes"], padding=True, padding_side="right")
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert loaded(text=["what is it", "yes"], padding=True)["attention_mask"] == [[1, 1, 1], [0, 0, 1]]
    assert AutoTokenizer.from_pretrained(tmp_path).padding_side == "left"


def test_a_side_that_is_chosen_is_saved(tmp_path):
    _, processor = small_mllm()
    processor.tokenizer.padding_side = "right"
    processor.save_pretrained(tmp_path)
    assert AutoProcessor.from_pretrained(tmp_path).tokenizer.padding_side == "right"


def test_a_batch_that_is_padded_on_the_right_for_training_has_the_losses_of_its_rows():
    model, processor = small_mllm()
    texts = ["what <image> is it ? red", "how many <image> ?"]
    pictures = ids(2)

    def loss(text, images):
        batch = processor(text=text, image_ids=images, return_tensors="pt", padding=True, padding_side="right")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        labels[labels == processor.image_token_id] = -100
        with torch.no_grad():
            return model(**batch, labels=labels).loss * (labels[:, 1:] >= 0).sum()

    alone = sum(loss([text], pictures[row : row + 1]) for row, text in enumerate(texts))
    torch.testing.assert_close(loss(texts, pictures), alone)
