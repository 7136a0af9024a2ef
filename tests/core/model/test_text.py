"""Texts are cleaned, cut and padded, and give open_clip's own numbers through the real conversion."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from toklip_core.model import (
    EOS_ID,
    PAD_ID,
    TextConfig,
    TextTokenizer,
    TextTower,
    clip_from_open_clip,
    read_tokenizer,
    word_tokenizer,
)

from tests.support.open_clip_models import CLIP, created, register, save_tokenizer, siglip
from tests.support.random_weights import randomised

TEXTS = ["a red circle", "Two small_Cats &amp; a DOG: isn't it?", "", "the long caption of a photo " * 4]
WORDS = ["A red circle, above a blue square."]
SMALL = {"context_length": 6, "vocabulary": 12, "width": 32, "heads": 4, "layers": 2, "output_dim": 24}


def tokenizer(**changes):
    return TextTokenizer(TextConfig(**SMALL | changes), word_tokenizer(WORDS)[0])


def tower(**changes):
    written = tokenizer(**changes)
    return randomised(TextTower(written.config, written)).eval()


def open_clip_text(monkeypatch, settings):
    """A model of open_clip, its tokenizer, and the text tower that it is converted to."""
    import open_clip

    register(monkeypatch, "tiny", settings)
    model, theirs = created("tiny"), open_clip.get_tokenizer("tiny")
    return model, theirs, clip_from_open_clip(model, settings["text_cfg"], theirs).eval().text


@torch.no_grad()
def check_same_function(model, theirs, mine):
    ids = theirs(TEXTS)
    assert torch.equal(mine.ids(TEXTS), ids)
    torch.testing.assert_close(mine(ids), model.encode_text(ids), rtol=0, atol=0)
    torch.testing.assert_close(mine.features(TEXTS), model.encode_text(ids, normalize=True), rtol=0, atol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"act_kwargs": None, "norm_kwargs": None},
        {"pool_type": "first"},
        {"pool_type": "eos", "eos_id": 2, "no_causal_mask": False, "proj_bias": False},
        {"proj_type": "none"},
        {"tokenizer_kwargs": {"clean": "lower"}},
        {"tokenizer_kwargs": {}},
    ],
    ids=str,
)
def test_a_text_tower_like_those_of_siglip_is_the_same_function(monkeypatch, tmp_path, changes):
    check_same_function(*open_clip_text(monkeypatch, siglip(save_tokenizer(tmp_path), **changes)))


@pytest.mark.parametrize("template", ["$A", "$A <eos>", "<bos> $A", "<bos> $A <eos>"])
def test_a_tokenizer_of_hugging_face_writes_the_same_ids(monkeypatch, tmp_path, template):
    settings = siglip(save_tokenizer(tmp_path, template))
    check_same_function(*open_clip_text(monkeypatch, settings))


def test_padding_is_the_tokenizers_own(monkeypatch, tmp_path):
    """SigLIP's pads with its end of text."""
    settings = siglip(save_tokenizer(tmp_path, pad_token="<eos>"))
    model, theirs, mine = open_clip_text(monkeypatch, settings)
    check_same_function(model, theirs, mine)
    assert mine.ids(["a"])[0].tolist() == [4] + [2] * 9


@pytest.mark.slow
@pytest.mark.parametrize("quick_gelu", [True, False])
@pytest.mark.parametrize("changes", [{}, {"custom_text": True}])
def test_a_text_tower_like_that_of_clip_is_the_same_function(monkeypatch, quick_gelu, changes):
    """Causal, pooled at the end of text, with its own tokenizer."""
    check_same_function(*open_clip_text(monkeypatch, {**CLIP, "quick_gelu": quick_gelu, **changes}))


def test_a_text_tower_of_clip_pooled_by_the_id_of_its_end_is_the_same_function(monkeypatch):
    text = {**CLIP["text_cfg"], "pool_type": "eos", "eos_id": 49407}
    check_same_function(*open_clip_text(monkeypatch, {**CLIP, "text_cfg": text}))


@pytest.mark.parametrize(
    ("settings", "saved"),
    [
        ({"tokenizer_kwargs": {"strip_sep_token": True}}, {"sep_token": "<eos>"}),
        ({}, {"padding_side": "left"}),
        ({"tokenizer_mode": "clips"}, {"cls_token": "<unk>"}),
        ({"pool_type": "eos", "eos_id": 3}, {}),
    ],
    ids=str,
)
def test_a_tokenizer_that_writes_in_another_way_is_refused(monkeypatch, tmp_path, settings, saved):
    with pytest.raises(ValueError, match="the tokenizer prepares texts in a way that is not supported"):
        open_clip_text(monkeypatch, siglip(save_tokenizer(tmp_path, **saved), **settings))


@pytest.mark.parametrize("settings", [{"embed_cls": True}, {"hf_model_name": "xlm-roberta-base"}], ids=str)
def test_text_towers_of_another_kind_are_refused(settings):
    with pytest.raises(ValueError, match="got a text tower of transformers or CoCa; wanted open_clip's own"):
        clip_from_open_clip(None, settings, None)


@pytest.mark.parametrize(
    ("clean", "words"),
    [("canonicalize", "a square dog"), ("lower", "a square, & dog!"), ("whitespace", "A SQUARE, & dog!")],
)
def test_texts_are_cleaned_as_the_config_says(clean, words):
    known = ["a", "square", "dog", "A", "SQUARE,", "square,", "&", "dog!"]
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", *known])}
    model = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    model.pre_tokenizer = WhitespaceSplit()
    mine = TextTokenizer(TextConfig(**SMALL, clean=clean), model.to_str())
    ids = [vocabulary[word] for word in words.split()]
    assert mine(["A  SQUARE, &amp; dog!"])[0].tolist() == ids + [0] * (6 - len(ids))


def test_a_text_that_is_too_long_keeps_its_end():
    mine = tokenizer(eos_id=EOS_ID, bos_id=1)
    ids = mine(["a " * 20, "a"])
    assert ids.tolist() == [[1, 3, 3, 3, 3, EOS_ID], [1, 3, EOS_ID, PAD_ID, PAD_ID, PAD_ID]]


def test_no_texts_give_no_ids_and_no_features():
    assert tokenizer()([]).shape == (0, 6)
    assert tower().features([]).shape == (0, 24)


def test_one_text_is_not_read_letter_by_letter():
    with pytest.raises(ValueError, match="got one text, 'a red circle'; wanted a list of texts"):
        tower().features("a red circle")


def test_words_of_whole_texts_have_the_same_ids_whatever_their_order():
    texts = ["a red circle", "Blue squares, above!", "a dog"]
    made, count = word_tokenizer(texts)
    assert (made, count) == word_tokenizer(texts[::-1] * 2)
    assert count == 3 + 7
    assert sorted(json.loads(made)["model"]["vocab"].values()) == list(range(count))


def test_ids_of_another_models_tokenizer_are_refused():
    mine = TextTokenizer(TextConfig(**SMALL | {"vocabulary": 5}), word_tokenizer(WORDS)[0])
    with pytest.raises(ValueError, match="gives the id 8, but the text tower knows 5: they belong to different models"):
        mine(["a square"])


def test_a_damaged_or_missing_tokenizer_is_one_line(tmp_path):
    config = TextConfig(**SMALL)
    with pytest.raises(ValueError, match=r"tokenizer\.json is damaged: ") as raised:
        TextTokenizer(config, '{"model": ')
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match=r"the text tower wants tokenizer\.json, and there is none"):
        TextTokenizer(config, None)
    assert read_tokenizer(config, tmp_path) is None
    with pytest.raises(FileNotFoundError, match=r"put its tokenizer\.json beside the weights, into the model's folder"):
        TextTower(config, None).features(["a"])


@torch.no_grad()
def test_features_have_unit_norm_in_float32_and_do_not_depend_on_the_other_texts():
    texts = [f"a {word} {other}" for word in ("red", "blue", "dog") for other in ("circle", "square", "")] * 40
    for mine in (tower(), tower(pad_mask=True, pooling="eos", eos_id=EOS_ID, pad_id=PAD_ID)):
        features = mine.to(torch.float32).features(texts)
        assert features.dtype == torch.float32 and not features.requires_grad
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(len(texts)))
        torch.testing.assert_close(features[-5:], torch.cat([mine.features([text]) for text in texts[-5:]]))
        assert mine.to(torch.bfloat16).features(texts[:2]).dtype == torch.float32


@torch.no_grad()
def test_unseen_padding_changes_no_number():
    """With pad_mask a batch is cut to its longest text; more padding, which nobody sees, gives the same."""
    short = tower(pad_mask=True, pooling="eos", eos_id=EOS_ID)
    long = tower(pad_mask=True, pooling="eos", eos_id=EOS_ID, context_length=6)
    long.config = long.config.model_copy(update={"pad_mask": False})  # the cut alone: the network's mask stays
    ids = short.ids(["a red circle", "a"])
    torch.testing.assert_close(short(ids), long(ids))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"width": 30}, r"width \(30\) must be a multiple of heads \(4\)"),
        ({"context_length": 2, "bos_id": 1, "eos_id": 2}, r"context_length \(2\) leaves no room beside 2 special"),
        ({"pad_mask": True}, "pad_mask goes with pooling = 'eos', an eos_id that is not pad_id, and causal = false"),
        ({"pad_mask": True, "pooling": "eos", "eos_id": 3, "pad_id": 3}, "an eos_id that is not pad_id"),
        ({"clean": "none"}, "canonicalize"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        TextConfig(**SMALL | changes)


def test_tokens_are_what_is_pooled():
    """The last token of a text, projected, is the text's feature; padding is named as such."""
    written = tower(eos_id=EOS_ID, pad_id=PAD_ID, pooling="eos", pad_mask=True)
    texts = ["a red circle", "square", "a red circle above a blue square"]
    tokens, mask = written.tokens(texts)
    assert mask.sum(1).tolist() == [4, 2, 6] and tokens.shape == (3, 6, 32)
    ends = tokens[range(3), mask.sum(1) - 1]
    torch.testing.assert_close(written.network.text_projection(ends), written(written.ids(texts)))


def test_tokens_of_a_tower_that_sees_padding_keep_its_length():
    tokens, mask = tower().tokens(["a red circle"])
    assert tokens.shape == (1, 6, 32) and mask.tolist() == [[True] * 3 + [False] * 3]


@torch.no_grad()
def test_the_spread_of_the_words_is_computed_once_and_again_after_they_change(monkeypatch):
    written, spreads, std = tower(), [], torch.Tensor.std
    monkeypatch.setattr(torch.Tensor, "std", lambda table: spreads.append(1) or std(table))
    table = written.network.token_embedding.weight

    def embedded():
        ids = written.ids(["a red circle"])
        found, _ = written.embeddings(["a red circle"])
        torch.testing.assert_close(found, table[ids] / std(table))

    for change, computed in [
        (lambda: None, 1),
        (lambda: None, 1),
        (lambda: table.mul_(2), 2),
        (lambda: written.load_state_dict({name: 3 * x for name, x in written.state_dict().items()}), 3),
        (lambda: written.double(), 4),
    ]:
        change()
        embedded()
        assert len(spreads) == computed
