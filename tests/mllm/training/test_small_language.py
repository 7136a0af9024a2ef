"""The small language model and its tokenizer: decoded words, marked turns, and the vocabulary of the data."""

import pytest
import torch
from toklip_core.scenes import Scenes
from toklip_mllm.training import SmallLanguage, add_words, small_language_model, word_tokenizer
from transformers import AutoTokenizer

TEXTS = [text for scene in Scenes(200, split="train") for text in (*scene.captions, *(q.text for q in scene.questions))]
SIZES = SmallLanguage(width=32, hidden=48, heads=2, layers=1, context_length=64)


def made(texts=TEXTS):
    return word_tokenizer(texts, context_length=64)


def test_texts_in_known_words_come_back():
    tokenizer = made()
    for text in TEXTS:
        tokens = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in tokens
        assert tokenizer.decode(tokens) == text


def test_case_and_spaces_make_no_difference():
    tokenizer = made()
    plain = tokenizer("what colour is the circle?")["input_ids"]
    assert tokenizer("  What\n colour is the  Circle? ")["input_ids"] == plain


def test_the_vocabulary_does_not_depend_on_the_order_of_the_texts():
    assert made().get_vocab() == made(TEXTS[::-1]).get_vocab()


def test_numbers_are_known_though_the_texts_have_none():
    tokenizer = made(["red"])
    assert tokenizer.unk_token_id not in tokenizer("3")["input_ids"]


def test_new_words_are_added_and_the_tokens_that_were_there_keep_their_ids(tmp_path):
    tokenizer = made()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    before = tokenizer.get_vocab()
    assert add_words(tokenizer, ["draw an elephant, a red circle"]) == ["\u2581draw", "\u2581elephant"]
    assert add_words(tokenizer, ["draw an elephant"]) == []
    tokenizer.save_pretrained(tmp_path)
    for known in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        found = known.get_vocab()
        assert {word: found[word] for word in before} == before
        assert sorted(found.values()) == [*range(len(before) + 2)] and len(known) == len(found)
        assert known.decode(known("Draw an elephant<image>")["input_ids"]) == "draw an elephant<image>"


def test_the_template_marks_what_the_assistant_says_and_its_end():
    tokenizer = made()
    conversation = [{"role": "user", "content": "how many circles are there?"}, {"role": "assistant", "content": "2"}]
    found = tokenizer.apply_chat_template(conversation, return_dict=True, return_assistant_tokens_mask=True)
    pairs = zip(found["input_ids"], found["assistant_masks"], strict=True)
    said = [token for token, mark in pairs if mark]
    assert tokenizer.decode(said) == "2<|end|>" and said[-1] == tokenizer.eos_token_id


def test_saved_and_loaded_it_is_the_same(tmp_path):
    tokenizer = made()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab() and loaded.chat_template == tokenizer.chat_template
    assert [loaded(text)["input_ids"] for text in TEXTS[:50]] == [tokenizer(text)["input_ids"] for text in TEXTS[:50]]


def test_the_language_model_has_a_row_for_each_word_and_words_are_as_large_as_what_attention_adds():
    tokenizer = made()
    torch.manual_seed(0)
    model = small_language_model(SIZES, tokenizer)
    embeddings, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert len(embeddings) == len(outputs) == len(tokenizer)
    assert embeddings is not outputs
    assert embeddings.std().item() == pytest.approx(0.02 * SIZES.width**0.5, rel=0.05)
    assert outputs.std().item() == pytest.approx(0.02, rel=0.05)


def test_texts_without_words_are_refused():
    with pytest.raises(ValueError, match="got no words for a vocabulary"):
        made([" ", ""])
