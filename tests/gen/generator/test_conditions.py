"""Classes and texts as conditions: left padding, the words of a text tower, T5 as LlamaGen uses it."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from toklip_gen.generator import (
    ClassCondition,
    T5Words,
    TextCondition,
    Texts,
    TowerWords,
    build_conditions,
    clean_text,
    load_t5,
    pad_left,
)

from tests.support.small_models import WIDTH, small_toklip


def texts(length: int = 12) -> Texts:
    config = TextCondition(encoder="toklip", length=length, width=WIDTH)
    found = build_conditions(config, small_toklip())
    assert isinstance(found, Texts)
    return found


def test_embeddings_of_words_are_the_same_in_every_text_and_the_features_of_the_tower_are_not():
    pair = ["red circle", "red square"]
    for encoder, same in (("toklip", False), ("toklip-words", True)):
        config = TextCondition(encoder=encoder, length=12, width=WIDTH)
        condition = build_conditions(config, small_toklip())(pair)
        first, second = (values[mask] for values, mask in zip(condition.values, condition.mask, strict=True))
        assert torch.equal(first[0], second[0]) is same
        assert not torch.equal(first[1], second[1]) and not condition.values[~condition.mask].any()


def test_classes_are_their_numbers():
    condition = build_conditions(ClassCondition(classes=3))([0, 2])
    assert condition.values.tolist() == [0, 2] and condition.mask is None


@pytest.mark.parametrize("prompt", [3, -1, "a red circle"])
def test_what_is_no_class_is_refused(prompt):
    with pytest.raises(ValueError, match="draws classes, not texts: numbers from 0 to 2"):
        build_conditions(ClassCondition(classes=3))([prompt])


def test_words_end_where_the_picture_begins():
    features = torch.arange(1, 9).view(2, 4, 1).float()
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
    condition = pad_left(features, mask, 5)
    assert condition.values[..., 0].tolist() == [[0, 0, 0, 1, 2], [0, 5, 6, 7, 8]]
    assert condition.mask.tolist() == [[False, False, False, True, True], [False, True, True, True, True]]


def test_of_a_long_text_the_first_words_are_kept():
    condition = pad_left(torch.arange(4).view(1, 4, 1).float(), torch.ones(1, 4, dtype=torch.bool), 3)
    assert condition.values[..., 0].tolist() == [[0, 1, 2]] and condition.mask.all()


def test_a_text_does_not_depend_on_the_others():
    alone, together = texts()(["a red circle"]), texts()(["a red circle", "the picture of a blue square and a star"])
    torch.testing.assert_close(alone.values[0], together.values[0])
    assert torch.equal(alone.mask[0], together.mask[0]) and alone.mask.sum() == 4  # with its end


def test_the_words_are_those_of_the_text_tower():
    toklip = small_toklip()
    tokens, mask = toklip.text.tokens(["a red circle"])
    condition = texts()(["a red circle"])
    torch.testing.assert_close(condition.values[0, -int(mask.sum()) :], tokens[0, mask[0]])
    assert TowerWords(toklip.text).width == WIDTH


def test_a_text_that_is_longer_than_the_condition_is_said_once_counted_and_refused_where_it_was_typed(caplog):
    words = "a red circle and a blue square"
    assert texts(8).cut_texts([words]) == []  # with its end, 8
    short = texts(7)
    assert short.cut_texts([words, "a red circle"]) == [words]
    for _ in range(2):
        short([words, "a red circle"])
    assert short.cut == 2 and caplog.text.count("texts are cut after the first words") == 1
    with pytest.raises(ValueError, match=rf"the text '{words}' has 8 tokens, and the generator reads 7: it would be"):
        short.refuse_cut(["a red circle", words])
    assert texts(20).cut_texts(["red " * 11, "red " * 12]) == ["red " * 12]  # the tower reads 12


@pytest.mark.parametrize("length", [8, 20])
def test_a_text_that_is_longer_than_the_tower_reads_is_said_once(caplog, length):
    texts(length)(["red " * 12])
    (record,) = caplog.records
    assert record.getMessage().startswith("texts are cut after the first words that the generator reads")


def test_one_text_is_not_read_letter_by_letter():
    with pytest.raises(ValueError, match="wanted a list of texts"):
        texts()("a red circle")
    with pytest.raises(ValueError, match="got 1, but the generator draws texts, not classes"):
        texts()([1, 2])


def test_a_text_encoder_of_another_width_is_refused():
    config = TextCondition(encoder="toklip", length=12, width=WIDTH + 1)
    with pytest.raises(ValueError, match=f"has features of width {WIDTH}, but the generator takes {WIDTH + 1}"):
        build_conditions(config, small_toklip())
    with pytest.raises(LookupError, match="load that with text=True"):
        build_conditions(config)


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """The path of a T5 of random weights over a few words."""
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    folder = tmp_path_factory.mktemp("t5")
    words = ["<pad>", "</s>", "<unk>", "a", "red", "circle", "above", "blue", "square"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = T5Config(vocab_size=len(words), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    T5EncoderModel(config).save_pretrained(folder)
    return folder


def test_t5_gives_the_features_of_its_tokens_left_padded(t5):
    config = TextCondition(encoder=str(t5), length=7, width=16)
    condition = build_conditions(config)(["A red circle", "square"])
    assert condition.mask.sum(1).tolist() == [4, 2] and condition.mask[:, -2:].all()
    words = load_t5(str(t5), length=7)
    alone, mask = words(["square"])
    assert mask.all() and alone.dtype == torch.float32
    # bfloat16: 8 bits of a sum over more or fewer positions.
    torch.testing.assert_close(condition.values[1, -2:], alone[0], atol=0.05, rtol=0.05)
    assert not condition.values[~condition.mask].any()


def test_a_text_too_long_for_t5_keeps_its_end(t5):
    _, mask = load_t5(str(t5), length=3)(["a red circle above a blue square"])
    assert mask.sum() == 3 and isinstance(load_t5(str(t5), length=3), T5Words)


def test_a_text_too_long_for_t5_is_named_and_refused_where_it_was_typed(t5, caplog):
    conditions = build_conditions(TextCondition(encoder=str(t5), length=3, width=16))
    conditions(["a red circle above a blue square", "a circle"])
    assert conditions.cut == 1 and "texts are cut after the first words" in caplog.text
    with pytest.raises(ValueError, match="has 8 tokens, and the generator reads 3: it would be cut"):
        conditions.refuse_cut(["a red circle above a blue square"])
    conditions.refuse_cut(["a circle"])


def test_a_text_of_which_nothing_is_left_is_refused_where_it_was_typed(t5):
    conditions = build_conditions(TextCondition(encoder=str(t5), length=3, width=16))
    conditions.refuse_empty(["a circle"])
    for text in ("123456", "@rembrandt", "\u732b"):  # as LlamaGen cleans texts
        with pytest.raises(ValueError, match=f"nothing of the text '{text}' is left for the generator to read"):
            conditions.refuse_empty(["a circle", text])


def test_a_t5_that_is_not_there_is_one_line(tmp_path):
    wanted = r"transformers cannot load the text encoder .*nothing'; fetch it .*`hf download"
    with pytest.raises(FileNotFoundError, match=wanted):
        load_t5(str(tmp_path / "nothing"), length=3)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("A Red Circle", "a red circle"),
        ("a cat, sitting on the floor.", "a cat, sitting on the floor."),
        ("<b>A cat</b> &amp; a dog (2012)!", "a cat a dog 2012 !"),
        ("see https://example.com/x now @someone", "see now"),
        ("a\u2014b \u201cquoted\u201d 猫", 'a-b "quoted"'),
        ("one,two", "one, two"),
        ('"a cat"', "a cat"),
        ("a cat... and a dog", "a cat and a dog"),
        ("a cat -- a dog", "a cat - a dog"),
        ("a 4x4 grid of 3.5\u00d72 tiles", "a grid of tiles"),
        ("see example.com/x now", "see now"),
        ("<person> on a horse", "person on a horse"),
        ("i <3 cats", "i <3 cats"),
        ("this-is-my-cute-cat", "this is my cute cat"),
        ("a well-known cat", "a well-known cat"),
        ("IMG_1234.jpg of a dog free shipping page 3", "of a dog"),
        ("#123 at 192.168.0.1 jc6640vc 1234567", "at"),
    ],
)
def test_captions_are_cleaned_as_for_t5(text, clean):
    """What LlamaGen's clean_caption gives, called twice."""
    assert clean_text(clean_text(text)) == clean
